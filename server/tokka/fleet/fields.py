"""Values of a YAML file by their keys. A wrong value is a fault: one line with its place and the remedy."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tokka.errors import ConfigurationError
from tokka.settings import parse_size
from tokka.suggestions import did_you_mean

# Maximum faults that are told, characters of a fault, and characters of a wrong value in it.
_MAX_FAULTS = 50
_MAX_MESSAGE = 500
_MAX_SHOWN = 80
# Maximum known words that a fault lists.
_MAX_LISTED = 12
# Maximum characters of a number. The conversion of a long one is slow.
_MAX_DIGITS = 32
# Maximum characters of a text, below the kernel's limit for an environment variable.
MAX_TEXT = 100_000
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600}


@dataclass(slots=True)
class Faults:
    """The faults of one file, in the order of its lines."""

    path: Path
    _found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: int, message: str) -> None:
        self._found.append((line, f"{self.path}:{line}: {message[:_MAX_MESSAGE]}"))

    @property
    def is_empty(self) -> bool:
        return not self._found

    def check(self) -> None:
        """Raise ConfigurationError with one line for each fault, if there are any."""
        if not self._found:
            return
        lines = [text for _, text in sorted(self._found, key=lambda found: found[0])]
        if (more := len(lines) - _MAX_FAULTS) > 0:
            lines = [*lines[:_MAX_FAULTS], f"{self.path}: {more} more faults"]
        raise ConfigurationError("\n".join(lines))


@dataclass(frozen=True, slots=True)
class Field:
    """A value of the file, its name (`models.poro.replicas`) and its line. Each reader returns None on a fault."""

    name: str
    line: int
    node: yaml.Node
    faults: Faults

    def fault(self, message: str) -> None:
        self.faults.add(self.line, f"{self.name}: {message}" if self.name else message)

    def fields(self, known: Collection[str] | None = None) -> dict[str, Field]:
        """Return the values of a map by their keys. `known` None: any key. An empty value is an empty map."""
        if _is_null(self.node):
            return {}
        if not isinstance(self.node, yaml.MappingNode):
            self.fault("it must hold `key: value` lines")
            return {}
        found: dict[str, Field] = {}
        for key_node, node in self.node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "[...]"
            # A key's line says where the value is missing if the value is empty.
            one = Field(f"{self.name}.{shown(key)}".lstrip("."), _line_of(key_node), node, self.faults)
            if not isinstance(key_node, yaml.ScalarNode):
                one.fault("a key must be text")
            elif known is not None and key not in known:
                one.fault(f"there is no such key{_hint('known are', key, known)}")
            elif key in found:
                one.fault(f"line {found[key].line} has the same key; remove one of them")
            else:
                found[key] = one
        return found

    def items(self) -> list[Field]:
        """Return the values of a list. Each has the list's name."""
        if _is_null(self.node):
            return []
        if not isinstance(self.node, yaml.SequenceNode):
            self.fault("it must be a list, for example [a, b]")
            return []
        return [Field(self.name, _line_of(node), node, self.faults) for node in self.node.value]

    def text(self, longest: int = 4096) -> str | None:
        """Return text of 1 to `longest` printable characters. Numbers are text, too."""
        if not isinstance(self.node, yaml.ScalarNode) or _is_null(self.node):
            self.fault("it must be text")
            return None
        value: str = self.node.value
        if not 0 < len(value) <= longest or not is_printable(value):
            self.fault(f"it must have 1 to {longest} characters, all of them printable")
            return None
        return value

    def choice(self, known: Collection[str]) -> str | None:
        """Return one of the known words."""
        value = self._scalar()
        if value in known:
            return value
        self.fault(f"{shown(value)} is not known{_hint('it must be', value, known)}")
        return None

    def whole(self, least: int, most: int) -> int | None:
        """Return a whole number within bounds."""
        value = self._scalar()
        # Ten digits are more than any bound. The conversion of very long numbers is slow.
        if re.fullmatch(r"[+-]?[0-9]{1,10}", value) and least <= int(value) <= most:
            return int(value)
        self.fault(f"{shown(value)} is not a whole number from {least} to {most}")
        return None

    def seconds(self, most: float) -> float | None:
        """Return a duration in seconds: `30s`, `5m`, `1h`, or a number of seconds."""
        value = self._scalar()
        match = re.fullmatch(r"([0-9]{1,10}(?:\.[0-9]{1,10})?)([smh]?)", value)
        seconds = float(match[1]) * _UNITS_S[match[2]] if match else math.inf
        if seconds <= most:
            return seconds
        self.fault(f"{shown(value)} is not a duration from 0 to {most / 3600:g}h; write for example 30s, 5m or 1h")
        return None

    def size(self, least: str) -> int | None:
        """Return a size in bytes: `64GiB`, `512MiB`, or a number of bytes."""
        value = self._scalar()
        try:
            if (size := parse_size(value[:_MAX_SHOWN])) >= parse_size(least):
                return size
        except ValueError:
            pass
        self.fault(f"{shown(value)} is not a size of {least} or more; write for example 64GiB or 512MiB")
        return None

    def plain(self) -> Any:
        """Return the value in Python's types, as YAML means it. Bad values are None, with a fault."""
        match self.node:
            case yaml.ScalarNode():
                return self._plain_scalar()
            case yaml.SequenceNode():
                return [one.plain() for one in self.items()]
        return {key: one.plain() for key, one in self.fields().items()}

    def _plain_scalar(self) -> Any:
        kind = self.node.tag.rpartition(":")[2]
        if kind not in ("null", "bool", "int", "float"):
            return self.text(MAX_TEXT) if self.node.value else ""
        try:
            if len(self.node.value) <= _MAX_DIGITS:
                return yaml.constructor.SafeConstructor().construct_object(self.node)
        except (ValueError, KeyError, yaml.YAMLError):
            # The file may say `!!int` of a text.
            pass
        self.fault("it is not a number")
        return None

    def _scalar(self) -> str:
        return str(self.node.value) if isinstance(self.node, yaml.ScalarNode) else "it"


def shown(value: str) -> str:
    """Return a value for a message of one line."""
    short = value if len(value) <= _MAX_SHOWN else f"{value[:_MAX_SHOWN]}..."
    return short if is_printable(short) else ascii(short)


def is_printable(value: str) -> bool:
    """Tell whether a text is free of control characters and of halves of characters."""
    return not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", value)


def _line_of(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _hint(intro: str, word: str, known: Collection[str]) -> str:
    """Return the known words that are like this one, else all, unless they are too many for a line."""
    listed = f"{intro} {', '.join(known)}" if len(known) <= _MAX_LISTED else "see docs/settings.md"
    return did_you_mean(word[:_MAX_SHOWN], known) or f"; {listed}"
