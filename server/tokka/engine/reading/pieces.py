"""The pieces that a choice's text is read into, and the contract of its readers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

# Maximum tool calls in a choice. A model that never ends must not fill the memory with them.
MAX_CALLS = 1024


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A further piece of a call's arguments. `name`: only in the first piece."""

    number: int
    arguments: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Thought:
    """Reasoning text, in a format that has reasoning among the calls."""

    text: str


# Text, or a piece of a call or of reasoning.
Piece = str | CallPiece | Thought
# The parser library. Returns the names and arguments of the calls in a whole text, and the text beside them.
ParseWhole = Callable[[str], tuple[list[tuple[str, str]], str]]


class CallSource(Protocol):
    """Reads the tool calls in one choice's text, which arrives in pieces of any size."""

    @property
    def held(self) -> str:
        """Received text that was not passed on, and is text unless more of it makes a call."""

    @property
    def count(self) -> int:
        """The calls so far."""

    @property
    def has_all_calls(self) -> bool:
        """Whether the last allowed call is complete, so that the model need not go on."""

    def feed(self, text: str) -> list[Piece]:
        """Add text; return the pieces that are now certain."""

    def finish(self, *, cut_short: bool) -> list[Piece]:
        """Return the remaining pieces when the text has ended. `cut_short`: the model had not finished."""
