"""The beginning of a function call in a model's text: its name, and where its arguments begin. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

import orjson

from tokka.core import Tools

_ARGUMENT_KEYS = frozenset({"arguments", "parameters"})
# What else a call may hold; of no use to us.
_OTHER_KEYS = frozenset({"type", "id"})
# Between a name and its arguments: marks and blanks, no prose.
_MAX_FILLER_CHARS = 48
_MAX_KEY_CHARS = 256

_NAME = re.compile(r"[a-zA-Z0-9_-]+")
# Names that no function has, and models write.
_ANY_NAME = re.compile(r"[a-zA-Z0-9_.:/-]+")
# Marks between such a name and its arguments. Prose may be there behind the name of a function that exists.
_MARKS = re.compile(r"(?:\s|<[^<>\s]{1,32}>|\[[A-Z_]{1,32}\]|```(?:json)?)*+")
_MARK_STARTS = "<[`"
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_SCALAR = re.compile(r"[a-zA-Z0-9+.-]+")
_BRACKET = re.compile(r'["{}\[\]]')
_STRING_END = re.compile(r'["\\]')
_BLANKS = re.compile(r"\s*")


class Wait(Exception):
    """More text is needed to tell."""


class NoCall(Exception):
    """This is no call, whatever follows."""


@dataclass(frozen=True, slots=True)
class Names:
    """The names that calls may have: any name, since a client can correct a wrong one."""

    # Of functions that exist and may be called.
    offered: frozenset[str]
    # Of functions that the request forbids to call.
    barred: frozenset[str] = frozenset()

    @classmethod
    def of(cls, tools: Tools) -> Names:
        existing = frozenset(tool["function"]["name"] for tool in tools.functions)
        return cls(tools.names, existing - tools.names)

    def may_be_called(self, name: str) -> bool:
        return 0 < len(name) <= _MAX_KEY_CHARS and name not in self.barred


@dataclass(frozen=True, slots=True)
class Head:
    """`begin`: where the arguments begin. `after`: where a call ends of which all is there already, else -1; then
    `arguments` are its own."""

    name: str
    begin: int = -1
    in_object: bool = False
    after: int = -1
    arguments: str = "{}"


class Braces:
    """Finds the end of a JSON object in text that comes in pieces. `depth`: how many are open already."""

    __slots__ = ("_depth", "_in_string", "_skips")

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._in_string = False
        # The next character is escaped.
        self._skips = False

    def end(self, text: str, at: int = 0) -> int:
        """Return the place just past the object's last brace, or -1 if it goes on."""
        while at < len(text):
            if self._skips:
                self._skips = False
                at += 1
                continue
            found = (_STRING_END if self._in_string else _BRACKET).search(text, at)
            if found is None:
                return -1
            at = found.end()
            match found[0]:
                case '"':
                    self._in_string = not self._in_string
                case "\\":
                    self._skips = True
                case "{" | "[":
                    self._depth += 1
                case _:
                    self._depth -= 1
                    if self._depth <= 0:
                        return at
        return -1


def object_head(text: str, at: int, names: Names, *, is_marked: bool) -> Head:
    """Read a call that is one JSON object, with its name and its arguments in it. Raises Wait, NoCall.

    `is_marked`: it stands behind a mark of calls. Without a mark, a name that is not offered needs arguments: the
    object may be any other JSON.
    """
    name: str | None = None
    begin = -1
    # Small models write them as a string that holds the object.
    quoted: str | None = None
    at = _blank(text, at + 1)
    while _char(text, at) != "}":
        key, at = _string(text, at)
        at = _blank(text, _expect(text, at, ":"))
        is_arguments = key in _ARGUMENT_KEYS and begin < 0 and quoted is None
        if is_arguments and _char(text, at) == "{":
            begin = at
            if name is not None:
                return Head(name, begin, in_object=True)
            at = Braces().end(text, at)
            if at < 0:
                raise Wait
        elif is_arguments:
            quoted, at = _quoted_object(text, at)
        elif key == "name" and name is None:
            name, at = _string(text, at)
            if not names.may_be_called(name):
                raise NoCall
        elif key in _OTHER_KEYS:
            at = _skip_scalar(text, at)
        else:
            raise NoCall
        at = _next_key(text, at)
    if name is None:
        raise NoCall
    if begin >= 0:
        return Head(name, begin, in_object=True)
    if quoted is None and not is_marked and name not in names.offered:
        raise NoCall
    return Head(name, after=at + 1, arguments=quoted or "{}")


def named_head(text: str, at: int, names: Names, prefix: str) -> Head:
    """Read a name that stands before its arguments, with marks between. Raises Wait, NoCall."""
    rest = text[at : at + len(prefix)]
    if prefix and len(rest) < len(prefix) and prefix.startswith(rest):
        raise Wait
    at += len(prefix) if rest == prefix else 0
    _char(text, at)
    found = _NAME.match(text, at)
    if found is None:
        raise NoCall
    if found.end() == len(text):
        raise Wait
    if found[0] not in names.offered:
        return _other_head(text, at, names)
    begin = text.find("{", found.end(), found.end() + _MAX_FILLER_CHARS)
    if begin >= 0:
        return Head(found[0], begin)
    if len(text) - found.end() < _MAX_FILLER_CHARS:
        raise Wait
    raise NoCall


def _other_head(text: str, at: int, names: Names) -> Head:
    """Read a name that is not offered, with marks alone between it and its arguments. Raises Wait, NoCall."""
    found = _ANY_NAME.match(text, at)
    if found is None or not names.may_be_called(found[0]):
        raise NoCall
    marks = _MARKS.match(text, found.end(), found.end() + _MAX_FILLER_CHARS)
    begin = marks.end() if marks else found.end()
    if begin < len(text) and text[begin] == "{":
        return Head(found[0], begin)
    is_fence = text.endswith("```", at, begin) and "json".startswith(text[begin:])
    may_go_on = begin == len(text) or text[begin] in _MARK_STARTS or is_fence
    if may_go_on and len(text) - found.end() < _MAX_FILLER_CHARS:
        raise Wait
    raise NoCall


def object_text(text: str) -> str | None:
    """Return the text of a JSON object, alone; None if the text is anything else. Of an empty one: no arguments."""
    text = text.strip() or "{}"
    try:
        return text if isinstance(orjson.loads(text), dict) else None
    except orjson.JSONDecodeError:
        return None


def _quoted_object(text: str, at: int) -> tuple[str, int]:
    """Return the object a string holds; of null, one without arguments."""
    if _char(text, at) != '"':
        end = _skip_scalar(text, at)
        if text[at:end] != "null":
            raise NoCall
        return "{}", end
    value, end = _string(text, at, most=len(text) + 1)
    held = object_text(value)
    if held is None:
        raise NoCall
    return held, end


def _skip_scalar(text: str, at: int) -> int:
    """Return where a string, a number or a word ends."""
    if _char(text, at) == '"':
        return _string(text, at)[1]
    found = _SCALAR.match(text, at, at + _MAX_KEY_CHARS)
    if found is None:
        raise NoCall
    if found.end() == len(text):
        raise Wait
    return found.end()


def _string(text: str, at: int, most: int = _MAX_KEY_CHARS) -> tuple[str, int]:
    if _char(text, at) != '"':
        raise NoCall
    found = _STRING.match(text, at, at + most)
    if found is None:
        raise Wait if len(text) - at < most else NoCall
    try:
        return str(orjson.loads(found[0])), found.end()
    except orjson.JSONDecodeError:
        raise NoCall from None


def _expect(text: str, at: int, char: str) -> int:
    at = _blank(text, at)
    if _char(text, at) != char:
        raise NoCall
    return at + 1


def _next_key(text: str, at: int) -> int:
    """Return the place behind the comma, or of the brace that ends the object."""
    at = _blank(text, at)
    if _char(text, at) == ",":
        return _blank(text, at + 1)
    if _char(text, at) != "}":
        raise NoCall
    return at


def _blank(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    return found.end() if found else at


def _char(text: str, at: int) -> str:
    if at >= len(text):
        raise Wait
    return text[at]
