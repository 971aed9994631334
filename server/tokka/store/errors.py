"""Errors of the database. Operators read their texts, which never contain a secret or SQL."""

from __future__ import annotations

from tokka.errors import ConfigurationError, StartupError, TemporaryError


class Unavailable(Exception):
    """The database cannot be used now: it is down, locked, full or read-only.

    `is_temporary`: it may become usable without an operator, for example because it is still starting.
    """

    def __init__(self, reason: str, *, is_temporary: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_temporary = is_temporary

    def at_start(self, place: str) -> StartupError:
        """Return the StartupError of a program that cannot start because of this error."""
        message = f"cannot use the database {place}: {self.reason}"
        return TemporaryError(message) if self.is_temporary else ConfigurationError(message)


class Damaged(Unavailable):
    """The database's file is missing, replaced or damaged."""


class WithoutLocks(Unavailable):
    """The file system has no file locks, which SQLite needs."""

    def __init__(self) -> None:
        super().__init__(
            "its file system has no file locks (Lustre without `flock`, NFS without lockd); choose a --state-dir on a "
            "local disk, or --database-url",
            is_temporary=False,
        )


class NotWritable(ConfigurationError):
    """No database exists yet, and none can be created here. `is_temporary`: as for Unavailable."""

    def __init__(self, message: str, *, is_temporary: bool = False) -> None:
        super().__init__(message)
        self.is_temporary = is_temporary
        if is_temporary:
            self.exit_code = TemporaryError.exit_code
