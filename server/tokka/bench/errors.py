"""The error of a benchmark that cannot give figures."""

from __future__ import annotations


class BenchFailedError(Exception):
    """The cause and the remedy for the user. `code`: the exit code, 2 if the user can fix the cause."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code
