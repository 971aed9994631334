"""Why there are no figures."""

from __future__ import annotations


class BenchFailedError(Exception):
    """The cause and the remedy in words for the user, and the exit code: 2 if the user can do something about it."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code
