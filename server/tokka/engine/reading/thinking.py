"""What a model thinks before it answers, told from the answer as the text comes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Thoughts:
    """How a family of models marks them. `begins`: they begin without a mark, it stands in the prompt."""

    start: str
    end: str
    begins: bool


class ThoughtReader:
    """Splits one choice's text into thoughts and what follows. However the text is split, the same."""

    def __init__(self, thoughts: Thoughts) -> None:
        self._thoughts = thoughts
        self._text = ""
        self._has_begun = False
        self.is_over = False

    @property
    def held(self) -> str:
        """What has come and may be a part of a mark."""
        return self._text

    def feed(self, text: str) -> tuple[str, str]:
        """Add text; return what is certain to be thoughts, and what is certain to be answer."""
        self._text += text
        if not self._has_begun and not self._begin():
            return ("", self._rest()) if self.is_over else ("", "")
        thoughts, end, answer = self._text.partition(self._thoughts.end)
        if end:
            self.is_over = True
            self._text = ""
            return thoughts, answer
        certain = len(self._text) - _overlap(self._text, self._thoughts.end)
        thoughts, self._text = self._text[:certain], self._text[certain:]
        return thoughts, ""

    def finish(self) -> tuple[str, str]:
        """Return what was held when the text has ended."""
        return (self._rest(), "") if self._has_begun or self._thoughts.begins else ("", self._rest())

    def _begin(self) -> bool:
        """Look for the mark at the beginning; return whether thoughts have begun."""
        begun = self._text.lstrip()
        if self._thoughts.start.startswith(begun) and begun != self._thoughts.start:
            # Not to be told yet, even if thoughts need no mark: it is no part of them.
            return False
        if begun.startswith(self._thoughts.start):
            self._text = begun[len(self._thoughts.start) :]
        elif not self._thoughts.begins:
            self.is_over = True
            return False
        self._has_begun = True
        return True

    def _rest(self) -> str:
        rest, self._text = self._text, ""
        return rest


def _overlap(text: str, mark: str) -> int:
    for at in range(max(0, len(text) - len(mark) + 1), len(text)):
        if mark.startswith(text[at:]):
            return len(text) - at
    return 0
