"""What can go wrong with the database, in words an operator may read: never a secret, never SQL."""

from __future__ import annotations

from tokka.errors import ConfigurationError


class Unavailable(Exception):
    """The database cannot be used now: down, locked, full, read-only. Later it may be."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Damaged(Unavailable):
    """The database's file is gone, is another one, or is not what was written."""


class NotWritable(ConfigurationError):
    """There is no database yet, and none can be made here."""
