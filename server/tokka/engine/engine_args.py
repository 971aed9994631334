"""Parses the options of --engine-arg NAME=VALUE."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

from tokka.errors import ConfigurationError

Options = TypeVar("Options")


def parse_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """Return {name: value}. A value that is not valid JSON stays text. Dashes in names become underscores."""
    parsed: dict[str, Any] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            parsed[name.strip().replace("-", "_")] = json.loads(value)
        except json.JSONDecodeError:
            parsed[name.strip().replace("-", "_")] = value
    return parsed


def parse_engine_args(options: type[Options], pairs: Sequence[str]) -> Options:
    """Return the dataclass `options` filled from the pairs. Raises ConfigurationError that names the option."""
    known = {field.name: field for field in fields(options)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for pair in pairs:
        ((name, value),) = parse_pairs([pair]).items()
        if name not in known:
            raise ConfigurationError(
                f"--engine-arg {name}: no such option; this engine's options are {', '.join(known)}"
            )
        wanted = type(known[name].default)
        if wanted is str:
            value = pair.partition("=")[2]
        elif wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            raise ConfigurationError(f"--engine-arg {name}: {value!r} is not a value of type {wanted.__name__}")
        values[name] = value
    return options(**values)
