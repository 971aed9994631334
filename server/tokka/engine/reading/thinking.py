"""Separates a model's reasoning from its answer as the text arrives."""

from __future__ import annotations

from dataclasses import dataclass

from tokka.engine.markers import Markers


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    """A model family's reasoning markers. `begins`: the text begins with reasoning, after a marker in the prompt."""

    start: str
    end: str
    begins: bool


class ThoughtReader:
    """Splits one choice's text into reasoning and answer. The result does not depend on how the text is split."""

    def __init__(self, thoughts: ThoughtMarks) -> None:
        self._thoughts = thoughts
        self._ends = Markers([thoughts.end])
        self._text = ""
        self._has_begun = False
        self.is_over = False

    @property
    def held(self) -> str:
        """Received text that was not passed on, and is answer unless more of it makes a marker."""
        return "" if self._has_begun or self._thoughts.begins else self._text

    def feed(self, text: str) -> tuple[str, str]:
        """Add text; return the text that is certain to be reasoning, and the text that is certain to be answer."""
        self._text += text
        if not self._has_begun and not self._begin():
            return ("", self._rest()) if self.is_over else ("", "")
        # design 2.4
        thoughts, end, answer = self._text.partition(self._thoughts.end)
        if end:
            self.is_over = True
            self._text = ""
            return thoughts, answer
        # design 2.5
        certain = len(self._text) - self._ends.partial_length(self._text)
        thoughts, self._text = self._text[:certain], self._text[certain:]
        return thoughts, ""

    def finish(self) -> tuple[str, str]:
        """Return the held text when the text has ended, as reasoning and answer."""
        # design 2.6
        return (self._rest(), "") if self._has_begun or self._thoughts.begins else ("", self._rest())

    def _begin(self) -> bool:
        """Look for the start marker; return whether reasoning has begun."""
        begun = self._text.lstrip()
        if self._thoughts.start.startswith(begun) and begun != self._thoughts.start:
            # design 2.1
            # Undecided: this may become the start marker, which is not part of the reasoning even with `begins`.
            return False
        # design 2.2
        if begun.startswith(self._thoughts.start):
            self._text = begun[len(self._thoughts.start) :]
        elif not self._thoughts.begins:
            # design 2.3
            self.is_over = True
            return False
        self._has_begun = True
        return True

    def _rest(self) -> str:
        rest, self._text = self._text, ""
        return rest
