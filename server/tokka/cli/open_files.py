"""The process's limit of open files. Each stream needs one."""

from __future__ import annotations

import resource

# Number of open files that a server asks for.
_WANTED = 65536


def raise_open_files() -> None:
    """Raise the soft limit as far as the system allows. The usual 1024 is far below the engine's limits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED if hard == resource.RLIM_INFINITY else min(hard, _WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def open_files() -> int:
    """Return the soft limit of open files. Without a limit, return the number that a server asks for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _WANTED if soft == resource.RLIM_INFINITY else soft
