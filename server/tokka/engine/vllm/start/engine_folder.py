"""A private folder for one engine's temporary files: vLLM does not remove its sockets and rendezvous files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import MutableMapping
from pathlib import Path
from typing import Self

from tokka.errors import ConfigurationError

_PREFIX = "tokka-"
# Characters that `mkdtemp` appends.
_RANDOM_CHARS = 8
# Maximum bytes of the folder's path: the kernel's limit for Unix sockets, less vLLM's file names, which are UUIDs.
_LONGEST_PATH_BYTES = 107 - len("/") - 36
# Variables that name the folder of vLLM's sockets and the folder of temporary files in general.
_VARIABLES = ("VLLM_RPC_BASE_PATH", "TMPDIR")
# A file that stays locked while the folder's server lives. It gets this name once it is locked.
_OWNER = "owner"


class EngineFolder:
    """A folder that only this user can enter. Programs started inside the `with` block use it. Its end removes it."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        """Create the folder, and remove folders of killed servers. Raises ConfigurationError if it cannot be made."""
        self._environ = environ
        self.path = _make_folder(environ)
        self._lock = _lock(self.path)
        remove_leftovers(self.path.parent)
        self._before = {name: environ.get(name) for name in _VARIABLES}
        environ.update(dict.fromkeys(_VARIABLES, str(self.path)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if self._environ.get(name) != str(self.path):
                # Another engine starts, or this one's variables were already restored.
                continue
            if value is None:
                self._environ.pop(name, None)
            else:
                self._environ[name] = value
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)


def remove_leftovers(base: Path) -> None:
    """Remove this user's folders below `base` if their servers have ended. A folder in doubt stays."""
    for folder in base.glob(_PREFIX + "?" * _RANDOM_CHARS):
        if (lock := _lock_of_dead_owner(folder)) is not None:
            # `rmtree` refuses a symbolic link to a folder.
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _make_folder(environ: MutableMapping[str, str]) -> Path:
    bases = [environ.get("VLLM_RPC_BASE_PATH"), _usual_base(), "/tmp"]  # noqa: S108 - the shortest path on all systems
    for base in filter(None, bases):
        if len(os.fsencode(base)) + len(f"/{_PREFIX}") + _RANDOM_CHARS <= _LONGEST_PATH_BYTES:
            with contextlib.suppress(OSError):
                return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
    longest = _LONGEST_PATH_BYTES - len(f"/{_PREFIX}") - _RANDOM_CHARS
    raise ConfigurationError(
        f"no folder for the engine's sockets: TMPDIR cannot be written or is longer than {longest} bytes, and /tmp "
        "cannot be written; set TMPDIR to a writable folder with a short path"
    )


def _usual_base() -> str | None:
    # Python caches its first answer, so this is never an engine's folder.
    try:
        return tempfile.gettempdir()
    except OSError:
        return None


def _lock(folder: Path) -> int | None:
    """Mark the folder as in use while this process lives. Return the locked descriptor.

    Return None if the file system is full or has no locks. Other servers then leave the folder alone.
    """
    unlocked = folder / f"{_OWNER}.new"
    try:
        lock = os.open(unlocked, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except OSError:
        return None
    try:
        os.write(lock, _boot_id())
        fcntl.flock(lock, fcntl.LOCK_EX)
        unlocked.rename(folder / _OWNER)
    except OSError:
        os.close(lock)
        return None
    return lock


def _lock_of_dead_owner(folder: Path) -> int | None:
    """Lock a folder if its owner has ended, and return the descriptor; None if the folder may be in use."""
    try:
        if folder.lstat().st_uid != os.geteuid():
            return None
        lock = os.open(folder / _OWNER, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Locks of another machine on the same file system may be invisible here.
        if os.read(lock, 100) == _boot_id():
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def _boot_id() -> bytes:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        return b""
