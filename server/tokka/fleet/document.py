"""Reads a YAML file into nodes with their lines, with bounded work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tokka.errors import ConfigurationError, unreadable

# Maximum bytes of a file, its values, and their depth. A wrong path can name a file of any size and content.
_MAX_BYTES = 1 << 20
_MAX_NODES = 20_000
_MAX_DEPTH = 16


def read_document(path: Path, option: str) -> yaml.Node:
    """Return the content of the file; of an empty one, a null. Raises StartupError with one line."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise unreadable(f"{option}: cannot read {path}: {error.strerror}", error) from None
    if len(content) > _MAX_BYTES:
        raise ConfigurationError(f"{option}: {path} is larger than {_MAX_BYTES} bytes; name the right file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}:{line}: the file is not UTF-8 text") from None
    return _composed(path, text)


def _composed(path: Path, text: str) -> yaml.Node:
    try:
        node = yaml.compose(text, _Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigurationError(f"{path}:{line}: control characters are not allowed in YAML") from None
    except _Refused as error:
        raise ConfigurationError(f"{path}:{error.line}: {error}") from None
    except yaml.MarkedYAMLError as error:
        # Not the error's own text: it quotes the file, which may hold secrets.
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}: column {mark.column + 1}: " if mark else f"{path}: "
        raise ConfigurationError(f"{place}this is not YAML; check indentation, quotes and brackets") from None
    except (ValueError, OverflowError):
        # The escape \U of a quoted text with a number that is not a character.
        raise ConfigurationError(f"{path}: a \\U escape is not a character; correct it") from None
    return node if node is not None else yaml.ScalarNode("tag:yaml.org,2002:null", "")


class _Refused(Exception):
    """YAML that would cost too much."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class _Loader(yaml.SafeLoader):
    """Makes nodes without aliases, a bounded number of them and of bounded depth."""

    _nodes = 0
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise _Refused(line, "aliases are not supported; write the value out")
        self._nodes += 1
        if self._nodes > _MAX_NODES or self._depth >= _MAX_DEPTH:
            raise _Refused(line, f"the file has more than {_MAX_NODES} values or {_MAX_DEPTH} levels")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node
