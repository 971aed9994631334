"""Reads tool calls from a model's text as it arrives. The result does not depend on the pieces the text arrives in.

Most models write a call as JSON between markers. Its arguments are passed on as they are written, since each piece is
certain when it arrives. Only the parser library can read the other formats; it gets each call as a whole. Text that
turns out not to be a call stays text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto

import structlog

from tokka.core import Tools
from tokka.engine.markers import Markers
from tokka.engine.reading.call_heads import (
    CallHead,
    JsonObjectEnd,
    Names,
    NeedMoreText,
    NotACall,
    named_head,
    object_head,
)
from tokka.engine.reading.call_output import CallOutput
from tokka.engine.reading.forms import Form
from tokka.engine.reading.library_calls import callable_ones, missed_calls
from tokka.engine.reading.pieces import MAX_CALLS, ParseWhole, Piece

log = structlog.get_logger("tokka.engine")

# Maximum characters of a text for the parser library. Some of its regular expressions take too long on longer text.
MAX_PARSED_CHARS = 64 * 1024
_SEPARATOR = re.compile(r"\s+|[\[\],;]|```(?:json)?")
_LONGEST_MARK = 32
_LONG_HEAD_CHARS = 1024
_GROWTH = 8


class Where(Enum):
    """The part of the text that the reader is in."""

    START = auto()  # only blanks so far, in a format whose calls may begin the text without a marker
    TEXT = auto()
    OPENED = auto()  # behind an opening marker, before a call
    AFTER_CALL = auto()
    ARGUMENTS = auto()
    TAIL = auto()  # behind the arguments, in the object around them
    REST = auto()  # further on in that object, whose end must come
    REGION = auto()  # a call that only the parser library can read
    OVER = auto()  # all allowed calls are made


@dataclass(frozen=True, slots=True)
class Gap:
    """Markers and separators before a possible call. Offsets are in the unread text.

    `call`: where the call may begin, -1 if a marker may be incomplete. `closed`: behind the last closing marker.
    `is_marked`: an opening marker is the last one before the call.
    """

    call: int
    closed: int
    is_marked: bool


class CallReader:
    """Reads the tool calls in one choice's text. `whole`: the parser library, which finds calls missed here."""

    def __init__(self, form: Form, tools: Tools, whole: ParseWhole | None = None) -> None:
        self._form = form
        self._openers = Markers(form.openers)
        self._names = Names.of(tools)
        self._most = MAX_CALLS if tools.parallel else 1
        self._whole = whole
        self._out = CallOutput()
        self._everything: list[str] = []
        # The unread text, and how much of it was scanned without a result. It is not scanned again for each character.
        self._text = ""
        self._scanned = 0
        self._where = Where.TEXT if form.leading is None else Where.START
        # The object that is being read: the arguments, then the one around them.
        self._object = JsonObjectEnd()
        self._behind_arguments = Where.AFTER_CALL

    @property
    def held(self) -> str:
        """Received text that was not passed on, and is text unless more of it makes a call."""
        match self._where:
            case _ if self._form.is_certain:
                return ""
            case Where.AFTER_CALL:
                gap = self._gap()
                return self._as_text(gap) if gap.call >= 0 else ""
            case _:
                return self._out.blanks + self._text

    @property
    def count(self) -> int:
        return len(self._out.calls)

    @property
    def has_all_calls(self) -> bool:
        """Whether the last allowed call is complete. Always False if a constraint ends the answer there anyway."""
        is_within = self._where in (Where.ARGUMENTS, Where.TAIL, Where.REST)
        return self.count >= self._most and not is_within and not self._form.is_certain

    def feed(self, text: str) -> list[Piece]:
        """Add text; return the pieces that are now certain."""
        self._everything.append(text)
        self._text += text
        while self._text and self._advance():
            pass
        return self._out.take()

    def finish(self, *, cut_short: bool) -> list[Piece]:
        """Return the remaining pieces when the text has ended. `cut_short`: the model had not finished."""
        self._scanned = 0
        pieces = self.feed("")
        # design 5.1
        if self._form.is_certain:
            return pieces
        match self._where:
            # design 5.2
            case Where.REGION:
                self._parse(self._take(len(self._text)))
            case Where.TEXT | Where.START:
                self._out.show(self._take(len(self._text)))
            # design 5.3
            case Where.OPENED | Where.AFTER_CALL:
                gap = self._gap()
                if gap.call >= 0 or self._where is Where.OPENED:
                    self._out.show(self._as_text(gap))
                self._text = ""
        self._out.finish()
        # design 5.4
        if self._form.is_json and self._whole and not cut_short:
            self._add_missed(self._whole)
        return pieces + self._out.take()

    def _advance(self) -> bool:
        """Read on from the present part. Return False if that needs more text."""
        match self._where:
            case Where.START:
                return self._start()
            case Where.TEXT:
                return self._in_text()
            case Where.OPENED | Where.AFTER_CALL:
                return self._before_call()
            case Where.ARGUMENTS:
                return self._in_arguments()
            case Where.TAIL:
                return self._in_tail()
            case Where.REST:
                return self._in_rest()
            case Where.REGION:
                return self._in_region()
            case Where.OVER:
                # The calls beyond the maximum are dropped. (design 3.20)
                self._text = ""
                return False

    # -- parts: each returns False if more text is needed

    def _start(self) -> bool:
        begun = self._text.lstrip()
        # design 3.1
        if not begun:
            return False
        # design 3.2, 3.3
        self._where = self._opened() if begun.startswith(self._form.leading or "") else Where.TEXT
        return True

    def _in_text(self) -> bool:
        found = [at for opener in self._openers if (at := self._text.find(opener)) >= 0]
        # design 3.4
        if not found:
            self._out.show(self._take(len(self._text) - self._openers.partial_length(self._text)))
            return False
        # design 3.5
        self._out.show(self._take(min(found)))
        self._where = self._opened()
        return True

    def _opened(self) -> Where:
        return Where.OPENED if self._form.is_json else Where.REGION

    def _before_call(self) -> bool:
        # A longer head than expected is read again when it has grown by a fraction of its length. (design 3.6)
        if len(self._text) < self._scanned + self._scanned // _GROWTH:
            return False
        gap = self._gap()
        # design 3.7
        if gap.call < 0:
            return False
        try:
            head = self._head(gap)
        except NeedMoreText:
            # design 3.8
            self._scanned = len(self._text) if len(self._text) > _LONG_HEAD_CHARS else 0
            return False
        except NotACall:
            # design 3.9
            self._back_to_text(gap)
            return True
        # design 3.10
        if self.count >= self._most:
            self._where = Where.OVER
        else:
            self._begin(head)
        return True

    def _in_arguments(self) -> bool:
        end = self._object.end(self._text)
        self._out.add_arguments(self._take(end if end >= 0 else len(self._text)))
        # design 3.13
        if end < 0:
            return False
        # design 3.14
        self._where = self._behind_arguments
        return True

    def _in_tail(self) -> bool:
        # design 3.15
        if not (rest := self._text.lstrip()):
            return False
        # With any other character, the model forgot the closing brace. (design 3.16)
        self._where = Where.REST if rest[0] in "}," else Where.AFTER_CALL
        self._object = JsonObjectEnd(1)
        return True

    def _in_rest(self) -> bool:
        end = self._object.end(self._text)
        self._take(end if end >= 0 else len(self._text))
        # design 3.17
        if end < 0:
            return False
        # design 3.18
        self._where = Where.AFTER_CALL
        return True

    def _in_region(self) -> bool:
        start = max(0, self._scanned - _LONGEST_MARK)
        ends = [at + len(mark) for mark in self._form.closers if (at := self._text.find(mark, start)) >= 0]
        # design 3.19
        if not ends:
            self._scanned = len(self._text)
            return False
        # design 3.21
        self._parse(self._take(min(ends)))
        self._where = Where.TEXT
        return True

    # -- helpers of the parts

    def _gap(self) -> Gap:
        at = closed = 0
        is_marked = False
        marks = self._form.marks
        while at < len(self._text):
            if mark := next((mark for mark in marks if self._text.startswith(mark, at)), ""):
                at += len(mark)
                is_marked = mark in self._form.openers
                closed = closed if is_marked else at
                continue
            rest = self._text[at : at + _LONGEST_MARK]
            if any(mark.startswith(rest) for mark in (*marks, "```json")):
                break
            found = _SEPARATOR.match(self._text, at)
            if found is None:
                return Gap(at, closed, is_marked)
            at = found.end()
        return Gap(-1, closed, is_marked)

    def _as_text(self, gap: Gap) -> str:
        """Return the unread text without the blanks and markers that belong to the call before it."""
        return self._text[gap.closed :].lstrip() if self._where is Where.AFTER_CALL else self._text

    def _back_to_text(self, gap: Gap) -> None:
        """Show the opening marker: the text behind it is not a call."""
        rest = self._as_text(gap)
        opener = next((opener for opener in self._openers if rest.startswith(opener)), "")
        self._out.show(opener)
        self._text, self._scanned = rest[len(opener) :], 0
        self._where = Where.TEXT

    def _head(self, gap: Gap) -> CallHead:
        # design 4.1
        if self._text[gap.call] == "{":
            return object_head(self._text, gap.call, self._names, is_marked=gap.is_marked)
        # design 4.2
        if not gap.is_marked:
            raise NotACall
        return named_head(self._text, gap.call, self._names, self._form.prefix)

    def _begin(self, head: CallHead) -> None:
        # design 3.11
        if head.after >= 0:
            self._out.begin_call(head.name, head.arguments)
            self._take(head.after)
            self._where = Where.AFTER_CALL
            return
        # design 3.12
        self._out.begin_call(head.name)
        self._take(head.begin)
        self._object = JsonObjectEnd()
        self._behind_arguments = Where.TAIL if head.in_object else Where.AFTER_CALL
        self._where = Where.ARGUMENTS

    def _parse(self, text: str) -> None:
        """Have the library read a whole region. If it has no calls, it is text."""
        # design 5.6
        is_short = len(text) <= MAX_PARSED_CHARS
        calls, beside = self._whole(text) if self._whole and is_short else ([], text)
        calls = callable_ones(calls, self._names)
        self._out.show(beside if calls else text)
        for name, arguments in calls[: self._most - self.count]:
            self._out.begin_call(name, arguments)

    def _add_missed(self, whole: ParseWhole) -> None:
        """Have the library read the whole text once more; add the calls that were missed, log a disagreement."""
        text = "".join(self._everything)
        if len(text) > MAX_PARSED_CHARS:
            return
        ours = [(name, "".join(arguments)) for name, arguments in self._out.calls]
        beyond = missed_calls(ours, callable_ones(whole(text)[0], self._names))
        if beyond is None:
            # It is unknown which calls are missing. The sent calls stay, and no call is sent twice. (design 5.5)
            log.warning("tool_call_parsers_disagree", streamed=len(ours))
            return
        # A call of an unknown name may be text that looks like a call, and that was already sent as text.
        offered = [call for call in beyond if call[0] in self._names.offered]
        for name, arguments in offered[: self._most - len(ours)]:
            self._out.begin_call(name, arguments)

    def _take(self, chars: int) -> str:
        taken, self._text = self._text[:chars], self._text[chars:]
        self._scanned = 0
        return taken
