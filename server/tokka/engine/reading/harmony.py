"""Reads gpt-oss's Harmony format, which labels each part of an answer as reasoning, text or a tool call."""

from __future__ import annotations

import re
from enum import Enum, auto

from tokka.core import Tools
from tokka.engine.markers import Markers
from tokka.engine.reading.call_heads import Names
from tokka.engine.reading.pieces import MAX_CALLS, CallPiece, Piece, Thought

MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>", "<|constrain|>")
_BODY = "<|message|>"
_ENDS = Markers(mark for mark in MARKS if mark not in (_BODY, "<|constrain|>"))
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"to=functions\.([^\s<]+)")
# Maximum characters of a part's header. Longer text is not a header.
_MAX_HEAD_CHARS = 512


class Part(Enum):
    """The part of the answer that the reader is in."""

    HEADER = auto()
    TEXT = auto()
    THOUGHT = auto()
    CALL = auto()
    DROPPED_CALL = auto()  # beyond the maximum


class HarmonyReader:
    """Reads one choice's text. `tools`: None if no tool call is wanted; a call is then read as text."""

    def __init__(self, tools: Tools | None) -> None:
        self._names = Names.of(tools) if tools else None
        self._most = MAX_CALLS if tools is None or tools.parallel else 1
        self._text = ""
        self._part = Part.HEADER
        self.count = 0

    @property
    def held(self) -> str:
        """Received text not passed on, because it may begin a marker. Empty in a header, a call or reasoning."""
        return self._text if self._part is Part.TEXT else ""

    @property
    def has_all_calls(self) -> bool:
        """Whether the last allowed call is complete."""
        return self._part is Part.HEADER and self.count >= self._most

    def feed(self, text: str) -> list[Piece]:
        """Add text; return the pieces that are now certain."""
        self._text += text
        pieces: list[Piece] = []
        while self._text and (self._head(pieces) if self._part is Part.HEADER else self._body(pieces)):
            pass
        return pieces

    def finish(self, *, cut_short: bool) -> list[Piece]:
        """Return the remaining pieces when the text has ended."""
        pieces: list[Piece] = []
        if self._part is not Part.HEADER:
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
        # design 6.2
        if function is not None and self._names is not None and self._names.may_be_called(function):
            self._part = Part.CALL if self.count < self._most else Part.DROPPED_CALL
        else:
            # design 6.3
            self._part = Part.THOUGHT if channel == "analysis" and function is None else Part.TEXT
        if self._part is Part.CALL:
            pieces.append(CallPiece(self.count, "", function))
            self.count += 1

    def _body(self, pieces: list[Piece]) -> bool:
        """Pass on a part's text; return whether the part has ended."""
        # design 6.4
        ends = [at for mark in _ENDS if (at := self._text.find(mark)) >= 0]
        if ends:
            self._add(self._text[: min(ends)], pieces)
            self._text = self._text[min(ends) :]
            ended = next((mark for mark in ("<|end|>", "<|call|>", "<|return|>") if self._text.startswith(mark)), "")
            self._text = self._text[len(ended) :]
            self._part = Part.HEADER
            return True
        held = _ENDS.partial_length(self._text)
        self._add(self._text[: len(self._text) - held], pieces)
        self._text = self._text[len(self._text) - held :]
        return False

    def _add(self, text: str, pieces: list[Piece]) -> None:
        if not text:
            return
        match self._part:
            case Part.CALL:
                pieces.append(CallPiece(self.count - 1, text))
            case Part.THOUGHT:
                pieces.append(Thought(text))
            case Part.TEXT:
                pieces.append(text)
