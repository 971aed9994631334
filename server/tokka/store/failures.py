"""What can go wrong with the database, in words an operator may read: never a secret, never SQL."""

from __future__ import annotations

from tokka.errors import ConfigurationError, StartupError, TemporaryError


class Unavailable(Exception):
    """The database cannot be used now: down, locked, full, read-only.

    `is_temporary`: it may be usable later without anybody's help, as one that is still being started.
    """

    def __init__(self, reason: str, *, is_temporary: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_temporary = is_temporary

    def at_start(self, place: str) -> StartupError:
        """Return the same as the reason why a program cannot start."""
        message = f"cannot use the database {place}: {self.reason}"
        return TemporaryError(message) if self.is_temporary else ConfigurationError(message)


class Damaged(Unavailable):
    """The database's file is gone, is another one, or is not what was written."""


class WithoutLocks(Unavailable):
    """The file system has no locks, and SQLite needs them."""

    def __init__(self) -> None:
        super().__init__(
            "its file system has no file locks (Lustre without `flock`, NFS without lockd); choose a --state-dir on a "
            "local disk, or --database-url",
            is_temporary=False,
        )


class NotWritable(ConfigurationError):
    """There is no database yet, and none can be made here. `is_temporary`: as that of Unavailable."""

    def __init__(self, message: str, *, is_temporary: bool = False) -> None:
        super().__init__(message)
        self.is_temporary = is_temporary
        if is_temporary:
            self.exit_code = TemporaryError.exit_code
