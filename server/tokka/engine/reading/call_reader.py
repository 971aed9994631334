"""Reads tool calls from a model's text as it arrives. The result does not depend on the pieces the text arrives in.

Most models write a call as JSON between markers. Its arguments are passed on as they are written, since each piece is
certain when it arrives. Only the parser library can read the other formats; it gets each call as a whole. Text that
turns out not to be a call stays text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from tokka.core import Tools
from tokka.engine.reading.call_heads import (
    CallHead,
    JsonObjectEnd,
    Names,
    NeedMoreText,
    NotACall,
    named_head,
    object_head,
)
from tokka.engine.reading.library_calls import callable_ones, missed_calls

log = structlog.get_logger("tokka.engine")

# Maximum tool calls in a choice. A model that never ends must not fill the memory with them.
MAX_CALLS = 1024
# Maximum characters of a text for the parser library. Some of its regular expressions take too long on longer text.
MAX_PARSED_CHARS = 64 * 1024
_SEPARATOR = re.compile(r"\s+|[\[\],;]|```(?:json)?")
_LONGEST_MARK = 32
_LONG_HEAD_CHARS = 1024
_GROWTH = 8


@dataclass(frozen=True, slots=True)
class Form:
    """A model family's tool call format."""

    # Each marks the start of calls, or of the next call.
    openers: tuple[str, ...] = ()
    closers: tuple[str, ...] = ()
    # A text that begins with this also consists of calls, without a marker. "": every text does.
    leading: str | None = None
    # Stands before a name that is outside the JSON.
    prefix: str = ""
    is_json: bool = True
    # A constraint allows only calls, so a call that is cut short is not text either.
    is_certain: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        return (*self.openers, *self.closers)


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

# The format that tool_choice `required` enforces.
ARRAY = Form(leading="[", is_certain=True)
_TAGS = (("<tool_call>",), ("</tool_call>",))
_DEEPSEEK = (("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"), ("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"))
FORMS = {
    "hermes": Form(*_TAGS),
    "qwen3_json": Form(*_TAGS),
    "llama3_json": Form(("<|python_tag|>",), leading="{"),
    "llama4_json": Form(("<|python_tag|>",), leading="{"),
    "mistral": Form(("[TOOL_CALLS]",)),
    "deepseek_v3": Form(*_DEEPSEEK, prefix="function<｜tool▁sep｜>"),
    "deepseek_v31": Form(*_DEEPSEEK),
    "qwen3_coder": Form(*_TAGS, is_json=False),
    "qwen3_xml": Form(*_TAGS, is_json=False),
    "pythonic": Form(leading="[", is_json=False),
    "llama4_pythonic": Form(("<|python_start|>",), leading="[", is_json=False),
}
# The formats that do not need the parser library.
READABLE = tuple(name for name, form in FORMS.items() if form.is_json)
# Any other parser of the library. Its markers are unknown, so its text is read only when it is complete.
UNKNOWN = Form(leading="", is_json=False)


class CallReader:
    """Reads the tool calls in one choice's text. `whole`: the parser library, which finds calls missed here."""

    def __init__(self, form: Form, tools: Tools, whole: ParseWhole | None = None) -> None:
        self._form = form
        self._names = Names.of(tools)
        self._most = MAX_CALLS if tools.parallel else 1
        self._whole = whole
        self._calls: list[tuple[str, list[str]]] = []
        # All received text, and its end that is still undecided.
        self._everything: list[str] = []
        self._text = ""
        # Blanks around calls are not text. They are held until other text follows.
        self._blanks = ""
        self._has_spoken = False
        # Number of characters searched in vain, so that they are not searched again for each new character.
        self._looked_at = 0
        self._is_ending = False
        # Directly after an opener, where a name may stand outside the JSON.
        self._is_open = False
        # Directly after a call, to which the next markers may belong.
        self._is_behind_call = False
        # The position in a call's arguments, and in the object around them.
        self._arguments: JsonObjectEnd | None = None
        self._tail: JsonObjectEnd | None = None
        self._state = self._in_text if form.leading is None else self._at_start

    @property
    def held(self) -> str:
        """Received text that was not passed on."""
        return "" if self._form.is_certain else self._blanks + self._text

    @property
    def count(self) -> int:
        return len(self._calls)

    @property
    def has_all_calls(self) -> bool:
        """Whether the last allowed call is complete. Always false with a constraint, which ends the answer itself."""
        is_within = self._state in (self._in_arguments, self._in_tail)
        return len(self._calls) >= self._most and not is_within and not self._form.is_certain

    def feed(self, text: str) -> list[Piece]:
        """Add text; return the pieces that are now certain."""
        self._everything.append(text)
        self._text += text
        pieces: list[Piece] = []
        while self._text and self._state(pieces):
            pass
        return pieces

    def finish(self, *, cut_short: bool) -> list[Piece]:
        """Return the remaining pieces when the text has ended. `cut_short`: the model had not finished."""
        self._is_ending = True
        pieces = self.feed("")
        # design 5.1
        if self._form.is_certain:
            return pieces
        # design 5.2
        if self._state == self._in_region:
            self._parse(self._take(len(self._text)), pieces)
        elif self._state in (self._in_text, self._at_start):
            self._show(self._take(len(self._text)), pieces)
        elif self._state == self._between:
            # design 5.3
            at, closed = self._skip_marks()
            if at >= 0 or not self._is_behind_call:
                self._show(self._as_text(closed), pieces)
            self._text = ""
        if not self._calls and self._blanks:
            pieces.append(self._blanks)
        # design 5.4
        if self._form.is_json and self._whole and not cut_short:
            self._add_missing(self._whole, pieces)
        return pieces

    # -- states: each returns whether it made progress; if not, it needs more text

    def _at_start(self, pieces: list[Piece]) -> bool:
        begun = self._text.lstrip()
        # design 3.1
        if not begun:
            return False
        opened = begun.startswith(self._form.leading or "")
        # design 3.2, 3.3
        self._state = (self._between if self._form.is_json else self._in_region) if opened else self._in_text
        return True

    def _in_text(self, pieces: list[Piece]) -> bool:
        found = [(at, opener) for opener in self._form.openers if (at := self._text.find(opener)) >= 0]
        # design 3.4
        if not found:
            self._show(self._take(len(self._text) - _overlap(self._text, self._form.openers)), pieces)
            return False
        # design 3.5
        self._show(self._take(min(found)[0]), pieces)
        self._state = self._between if self._form.is_json else self._in_region
        return True

    def _between(self, pieces: list[Piece]) -> bool:
        # The start of a call that is unusually long is read again only when it has grown by a fraction of its length.
        # design 3.6
        if not self._is_ending and len(self._text) < self._looked_at + self._looked_at // _GROWTH:
            return False
        at, closed = self._skip_marks()
        # design 3.7
        if at < 0:
            return False
        try:
            head = self._head(at)
        except NeedMoreText:
            # design 3.8
            self._looked_at = len(self._text) if len(self._text) > _LONG_HEAD_CHARS else 0
            return False
        except NotACall:
            # design 3.9
            rest = self._as_text(closed)
            opener = next((opener for opener in self._form.openers if rest.startswith(opener)), "")
            self._text, self._looked_at = rest[len(opener) :], 0
            self._show(opener, pieces)
            self._is_open = self._is_behind_call = False
            self._state = self._in_text
            return True
        # design 3.10
        if len(self._calls) >= self._most:
            self._state = self._over
            return True
        self._begin(head, pieces)
        return True

    def _in_arguments(self, pieces: list[Piece]) -> bool:
        assert self._arguments is not None
        end = self._arguments.end(self._text)
        self._add(self._take(end if end >= 0 else len(self._text)), pieces)
        # design 3.13
        if end < 0:
            return False
        # design 3.14
        self._state = self._in_tail if self._tail else self._between
        return True

    def _in_tail(self, pieces: list[Piece]) -> bool:
        """Skip the rest of the object around the arguments."""
        assert self._tail is not None
        # design 3.15
        if not (rest := self._text.lstrip()):
            return False
        if rest[0] not in "},":
            # The model has omitted the closing brace. (design 3.16)
            self._state = self._between
            return True
        end = self._tail.end(self._text)
        # design 3.15
        if end < 0:
            return False
        # design 3.17
        self._take(end)
        self._state = self._between
        return True

    def _in_region(self, pieces: list[Piece]) -> bool:
        start = max(0, self._looked_at - _LONGEST_MARK)
        ends = [at + len(mark) for mark in self._form.closers if (at := self._text.find(mark, start)) >= 0]
        # design 3.18
        if not ends:
            self._looked_at = len(self._text)
            return False
        # design 3.19
        self._parse(self._take(min(ends)), pieces)
        self._state = self._in_text
        return True

    def _over(self, pieces: list[Piece]) -> bool:
        """Drop the rest: the maximum number of calls is reached."""
        # design 3.20
        self._text = ""
        return False

    # -- helpers of the states

    def _skip_marks(self) -> tuple[int, int]:
        """Return where the next call may begin, or -1 if more text is needed, and where the previous call ends."""
        at = closed = 0
        marks = self._form.marks
        while at < len(self._text):
            if mark := next((mark for mark in marks if self._text.startswith(mark, at)), ""):
                at += len(mark)
                self._is_open = mark in self._form.openers
                closed = closed if self._is_open else at
                continue
            rest = self._text[at : at + _LONGEST_MARK]
            if any(mark.startswith(rest) for mark in (*marks, "```json")):
                return -1, closed
            found = _SEPARATOR.match(self._text, at)
            if found is None:
                return at, closed
            at = found.end()
        return -1, closed

    def _as_text(self, closed: int) -> str:
        """Return the text between calls, without the blanks and markers that belong to the previous call."""
        return self._text[closed:].lstrip() if self._is_behind_call else self._text

    def _head(self, at: int) -> CallHead:
        # design 4.1
        if self._text[at] == "{":
            return object_head(self._text, at, self._names, is_marked=self._is_open)
        # design 4.2
        if not self._is_open:
            raise NotACall
        return named_head(self._text, at, self._names, self._form.prefix)

    def _begin(self, head: CallHead, pieces: list[Piece]) -> None:
        self._is_open = False
        self._is_behind_call = True
        # design 3.11
        if head.after >= 0:
            self._call(head.name, head.arguments, pieces)
            self._take(head.after)
            return
        # design 3.12
        self._call(head.name, "", pieces)
        self._take(head.begin)
        self._arguments = JsonObjectEnd()
        self._tail = JsonObjectEnd(1) if head.in_object else None
        self._state = self._in_arguments

    def _parse(self, text: str, pieces: list[Piece]) -> None:
        """Parse a whole region with the library. A region without calls is text."""
        is_short = len(text) <= MAX_PARSED_CHARS
        calls, beside = self._whole(text) if self._whole and is_short else ([], text)
        calls = callable_ones(calls, self._names)
        # design 5.6
        self._show(beside if calls else text, pieces)
        for name, arguments in calls[: self._most - len(self._calls)]:
            self._call(name, arguments, pieces)

    def _add_missing(self, whole: ParseWhole, pieces: list[Piece]) -> None:
        """Parse the whole text again with the library. Send additional calls; log a disagreement."""
        text = "".join(self._everything)
        if len(text) > MAX_PARSED_CHARS:
            return
        ours = [(name, "".join(arguments)) for name, arguments in self._calls]
        beyond = missed_calls(ours, callable_ones(whole(text)[0], self._names))
        if beyond is None:
            # The missing calls cannot be identified. The sent ones stand, and no function is called twice. (design 5.5)
            log.warning("tool_call_parsers_disagree", streamed=len(ours))
            return
        # A call of an unknown function may be text that only looks like a call, and was sent as text.
        offered = [call for call in beyond if call[0] in self._names.offered]
        for name, arguments in offered[: self._most - len(ours)]:
            self._call(name, arguments, pieces)

    def _call(self, name: str, arguments: str, pieces: list[Piece]) -> None:
        pieces.append(CallPiece(len(self._calls), arguments, name))
        self._calls.append((name, [arguments]))
        self._blanks = ""
        self._has_spoken = False

    def _add(self, arguments: str, pieces: list[Piece]) -> None:
        if arguments:
            self._calls[-1][1].append(arguments)
            pieces.append(CallPiece(len(self._calls) - 1, arguments))

    def _show(self, text: str, pieces: list[Piece]) -> None:
        if not self._has_spoken and not text.strip():
            self._blanks += text
        elif text:
            pieces.append(self._blanks + text)
            self._blanks = ""
            self._has_spoken = True

    def _take(self, chars: int) -> str:
        taken, self._text = self._text[:chars], self._text[chars:]
        self._looked_at = 0
        return taken


def _overlap(text: str, marks: Sequence[str]) -> int:
    """Return the length of the longest suffix of the text that is a prefix of a marker."""
    longest = max(map(len, marks), default=1) - 1
    for at in range(max(0, len(text) - longest), len(text)):
        if any(mark.startswith(text[at:]) for mark in marks):
            return len(text) - at
    return 0
