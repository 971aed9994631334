"""Reads the start of a tool call in a model's text: its name, and where its arguments begin. Pure functions."""

from __future__ import annotations

import re
from dataclasses import dataclass

import orjson

from tokka.core import Tools

_ARGUMENT_KEYS = frozenset({"arguments", "parameters"})
# Other keys that a call may have. They are ignored.
_OTHER_KEYS = frozenset({"type", "id"})
# Maximum characters between a name and its arguments: enough for markers and blanks, not for prose.
_MAX_FILLER_CHARS = 48
_MAX_KEY_CHARS = 256

_NAME = re.compile(r"[a-zA-Z0-9_-]+")
# Names that models write although no function can have them.
_ANY_NAME = re.compile(r"[a-zA-Z0-9_.:/-]+")
# Markers between an unknown name and its arguments. After a known name, any text may stand there.
_MARKS = re.compile(r"(?:\s|<[^<>\s]{1,32}>|\[[A-Z_]{1,32}\]|```(?:json)?)*+")
_MARK_STARTS = "<[`"
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_SCALAR = re.compile(r"[a-zA-Z0-9+.-]+")
_BRACKET = re.compile(r'["{}\[\]]')
_STRING_END = re.compile(r'["\\]')
_BLANKS = re.compile(r"\s*")


class NeedMoreText(Exception):
    """Raised if more text is needed to decide."""


class NotACall(Exception):
    """Raised if the text is not a call, regardless of the text that follows."""


@dataclass(frozen=True, slots=True)
class Names:
    """The names that calls may have. Unknown names are allowed, since a client can correct them."""

    # Functions that exist and may be called.
    offered: frozenset[str]
    # Functions that exist, but that the request forbids to call.
    barred: frozenset[str] = frozenset()

    @classmethod
    def of(cls, tools: Tools) -> Names:
        existing = frozenset(tool["function"]["name"] for tool in tools.functions)
        return cls(tools.names, existing - tools.names)

    def may_be_called(self, name: str) -> bool:
        # design 4.5
        return 0 < len(name) <= _MAX_KEY_CHARS and name not in self.barred


@dataclass(frozen=True, slots=True)
class CallHead:
    """The start of a call. `begin`: where the arguments begin. `in_object`: an object around them holds the name, too.

    `after`: where the call ends if it is complete, else -1. `arguments`: the arguments of a complete call.
    """

    name: str
    begin: int = -1
    in_object: bool = False
    after: int = -1
    arguments: str = "{}"


class JsonObjectEnd:
    """Finds the end of a JSON object in text that arrives in pieces. `depth`: number of brackets already open."""

    __slots__ = ("_depth", "_in_string", "_skips")

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._in_string = False
        # The next character is escaped.
        self._skips = False

    def end(self, text: str, at: int = 0) -> int:
        """Return the position after the object's last brace, or -1 if the object continues."""
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


def object_head(text: str, at: int, names: Names, *, is_marked: bool) -> CallHead:
    """Read a call that is one JSON object with a name and arguments. Raises NeedMoreText, NotACall.

    `is_marked`: the object follows a call marker. Without a marker, a call of an unknown function must have arguments,
    since the object may be any other JSON.
    """
    name: str | None = None
    begin = -1
    # The arguments, if they are a string that holds an object: small models write them so.
    quoted: str | None = None
    at = _blank(text, at + 1)
    while _char(text, at) != "}":
        key, at = _string(text, at)
        at = _blank(text, _expect(text, at, ":"))
        is_arguments = key in _ARGUMENT_KEYS and begin < 0 and quoted is None
        # design 4.3
        if is_arguments and _char(text, at) == "{":
            begin = at
            if name is not None:
                return CallHead(name, begin, in_object=True)
            at = JsonObjectEnd().end(text, at)
            if at < 0:
                raise NeedMoreText
        elif is_arguments:
            # design 4.4
            quoted, at = _quoted_object(text, at)
        elif key == "name" and name is None:
            name, at = _string(text, at)
            # design 4.5
            if not names.may_be_called(name):
                raise NotACall
        elif key in _OTHER_KEYS:
            # design 4.6
            at = _skip_scalar(text, at)
        else:
            raise NotACall
        at = _next_key(text, at)
    # design 4.7
    if name is None:
        raise NotACall
    if begin >= 0:
        return CallHead(name, begin, in_object=True)
    if quoted is None and not is_marked and name not in names.offered:
        raise NotACall
    return CallHead(name, after=at + 1, arguments=quoted or "{}")


def named_head(text: str, at: int, names: Names, prefix: str) -> CallHead:
    """Read a name that stands before its arguments, with markers between them. Raises NeedMoreText, NotACall."""
    rest = text[at : at + len(prefix)]
    if prefix and len(rest) < len(prefix) and prefix.startswith(rest):
        raise NeedMoreText
    at += len(prefix) if rest == prefix else 0
    _char(text, at)
    found = _NAME.match(text, at)
    if found is None:
        raise NotACall
    if found.end() == len(text):
        raise NeedMoreText
    if found[0] not in names.offered:
        return _other_head(text, at, names)
    # design 4.8
    begin = text.find("{", found.end(), found.end() + _MAX_FILLER_CHARS)
    if begin >= 0:
        return CallHead(found[0], begin)
    if len(text) - found.end() < _MAX_FILLER_CHARS:
        raise NeedMoreText
    raise NotACall


def _other_head(text: str, at: int, names: Names) -> CallHead:
    """Read an unknown name, with only markers between it and its arguments. Raises NeedMoreText, NotACall."""
    # design 4.9
    found = _ANY_NAME.match(text, at)
    if found is None or not names.may_be_called(found[0]):
        raise NotACall
    marks = _MARKS.match(text, found.end(), found.end() + _MAX_FILLER_CHARS)
    begin = marks.end() if marks else found.end()
    if begin < len(text) and text[begin] == "{":
        return CallHead(found[0], begin)
    is_fence = text.endswith("```", at, begin) and "json".startswith(text[begin:])
    may_go_on = begin == len(text) or text[begin] in _MARK_STARTS or is_fence
    if may_go_on and len(text) - found.end() < _MAX_FILLER_CHARS:
        raise NeedMoreText
    raise NotACall


def object_text(text: str) -> str | None:
    """Return the text of a JSON object without surrounding blanks, `{}` for empty text, None for anything else."""
    text = text.strip() or "{}"
    try:
        return text if isinstance(orjson.loads(text), dict) else None
    except orjson.JSONDecodeError:
        return None


def _quoted_object(text: str, at: int) -> tuple[str, int]:
    """Return the object that a string holds, or `{}` for null, and where the string or null ends."""
    if _char(text, at) != '"':
        end = _skip_scalar(text, at)
        if text[at:end] != "null":
            raise NotACall
        return "{}", end
    value, end = _string(text, at, most=len(text) + 1)
    held = object_text(value)
    if held is None:
        raise NotACall
    return held, end


def _skip_scalar(text: str, at: int) -> int:
    """Return where a string, a number or a word ends."""
    if _char(text, at) == '"':
        return _string(text, at)[1]
    found = _SCALAR.match(text, at, at + _MAX_KEY_CHARS)
    if found is None:
        raise NotACall
    if found.end() == len(text):
        raise NeedMoreText
    return found.end()


def _string(text: str, at: int, most: int = _MAX_KEY_CHARS) -> tuple[str, int]:
    if _char(text, at) != '"':
        raise NotACall
    found = _STRING.match(text, at, at + most)
    if found is None:
        raise NeedMoreText if len(text) - at < most else NotACall
    try:
        return str(orjson.loads(found[0])), found.end()
    except orjson.JSONDecodeError:
        raise NotACall from None


def _expect(text: str, at: int, char: str) -> int:
    at = _blank(text, at)
    if _char(text, at) != char:
        raise NotACall
    return at + 1


def _next_key(text: str, at: int) -> int:
    """Return the position of the next key, or of the brace that ends the object."""
    at = _blank(text, at)
    if _char(text, at) == ",":
        return _blank(text, at + 1)
    if _char(text, at) != "}":
        raise NotACall
    return at


def _blank(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    return found.end() if found else at


def _char(text: str, at: int) -> str:
    if at >= len(text):
        raise NeedMoreText
    return text[at]
