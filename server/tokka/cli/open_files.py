"""How many files this process may have open: each stream is one."""

from __future__ import annotations

import resource

_WANTED = 65536


def raise_open_files() -> None:
    """Raise the soft limit as far as the system lets us: the usual 1024 is reached long before the engine's limits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED if hard == resource.RLIM_INFINITY else min(hard, _WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def open_files() -> int:
    """Return how many may be open; without a limit as many as we want."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _WANTED if soft == resource.RLIM_INFINITY else soft
