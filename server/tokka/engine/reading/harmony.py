"""Reads gpt-oss's Harmony format, which labels each part of an answer as reasoning, text or a tool call."""

from __future__ import annotations

import re

from tokka.core import Tools
from tokka.engine.reading.call_heads import Names
from tokka.engine.reading.call_reader import MAX_CALLS, CallPiece, Piece, Thought

MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>", "<|constrain|>")
_BODY = "<|message|>"
_ENDS = tuple(mark for mark in MARKS if mark not in (_BODY, "<|constrain|>"))
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"to=functions\.([^\s<]+)")
# Maximum characters of a part's header. Longer text is not a header.
_MAX_HEAD_CHARS = 512


class HarmonyReader:
    """Reads one choice's text. `tools`: None if no tool call is wanted; a call is then read as text."""

    def __init__(self, tools: Tools | None) -> None:
        self._names = Names.of(tools) if tools else None
        self._most = MAX_CALLS if tools is None or tools.parallel else 1
        self._text = ""
        self._in_head = True
        # Properties of the current part.
        self._is_thought = False
        self._is_call = False
        self._is_dropped = False
        self.count = 0

    @property
    def held(self) -> str:
        """Received text not passed on, because it may begin a marker. Empty in a header, a call or reasoning."""
        return "" if self._in_head or self._is_call or self._is_thought else self._text

    @property
    def has_all_calls(self) -> bool:
        """Whether the last allowed call is complete."""
        return self._in_head and self.count >= self._most

    def feed(self, text: str) -> list[Piece]:
        """Add text; return the pieces that are now certain."""
        self._text += text
        pieces: list[Piece] = []
        while self._text and (self._head(pieces) if self._in_head else self._body(pieces)):
            pass
        return pieces

    def finish(self, *, cut_short: bool) -> list[Piece]:
        """Return the remaining pieces when the text has ended."""
        pieces: list[Piece] = []
        if not self._in_head:
            self._add(self._text, pieces)
        self._text = ""
        return pieces

    def _head(self, pieces: list[Piece]) -> bool:
        """Read the header of a part; return whether its kind is known."""
        begun = self._text.lstrip()
        if not any(mark.startswith(begun[: len(mark)]) for mark in MARKS):
            # A part without a header. (design 6.1)
            self._begin("final", None, pieces)
            return True
        head, mark, rest = self._text.partition(_BODY)
        if not mark:
            # design 6.1
            if len(self._text) <= _MAX_HEAD_CHARS:
                return False
            self._begin("final", None, pieces)
            return True
        channel, recipient = _CHANNEL.search(head), _RECIPIENT.search(head)
        self._text = rest
        self._begin(channel[1] if channel else "final", recipient[1] if recipient else None, pieces)
        return True

    def _begin(self, channel: str, function: str | None, pieces: list[Piece]) -> None:
        self._in_head = False
        # design 6.3
        self._is_thought = channel == "analysis" and function is None
        # design 6.2
        self._is_call = function is not None and self._names is not None and self._names.may_be_called(function)
        self._is_dropped = self._is_call and self.count >= self._most
        if self._is_call and not self._is_dropped:
            pieces.append(CallPiece(self.count, "", function))
            self.count += 1

    def _body(self, pieces: list[Piece]) -> bool:
        """Pass on a part's text; return whether the part has ended."""
        ends = [at for mark in _ENDS if (at := self._text.find(mark)) >= 0]
        # design 6.4
        if ends:
            self._add(self._text[: min(ends)], pieces)
            self._text = self._text[min(ends) :]
            ended = next((mark for mark in ("<|end|>", "<|call|>", "<|return|>") if self._text.startswith(mark)), "")
            self._text = self._text[len(ended) :]
            self._in_head = True
            return True
        held = _overlap(self._text)
        self._add(self._text[: len(self._text) - held], pieces)
        self._text = self._text[len(self._text) - held :]
        return False

    def _add(self, text: str, pieces: list[Piece]) -> None:
        if not text or self._is_dropped:
            return
        if self._is_call:
            pieces.append(CallPiece(self.count - 1, text))
        else:
            pieces.append(Thought(text) if self._is_thought else text)


def _overlap(text: str) -> int:
    for at in range(max(0, len(text) - max(map(len, _ENDS)) + 1), len(text)):
        if any(mark.startswith(text[at:]) for mark in _ENDS):
            return len(text) - at
    return 0
