"""Values that a request passes to the chat template besides messages and tools: variables and documents."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, PlainValidator

from tokka.protocol.common import Text, bounded_dict, invalid

# Maximum nesting, parts, and characters of all strings of one variable. A template may walk through it.
_MAX_DEPTH = 16
_MAX_PARTS = 1024
_MAX_CHARS = 4096
_MAX_DOCUMENTS = 256
_MAX_DOCUMENT_FIELDS = 16


def _template_value(value: Any) -> Any:
    """Accept any JSON value of bounded size. Checks level by level, because it may nest deeper than Python calls."""
    level, parts, chars = [value], 0, 0
    for _ in range(_MAX_DEPTH):
        parts += len(level)
        if parts > _MAX_PARTS:
            raise invalid(f"A variable may have at most {_MAX_PARTS} parts")
        chars += sum(len(part) for part in level if isinstance(part, str))
        if chars > _MAX_CHARS:
            raise invalid(f"A variable may have at most {_MAX_CHARS} characters")
        if any(isinstance(part, float) and not math.isfinite(part) for part in level):
            raise invalid("Numbers must be finite")
        level = [below for part in level for below in _below(part)]
        if not level:
            return value
    raise invalid(f"A variable may nest at most {_MAX_DEPTH} objects and lists deep")


def _below(part: Any) -> Iterator[Any]:
    if isinstance(part, dict):
        yield from part.keys()
        yield from part.values()
    elif isinstance(part, list):
        yield from part


TemplateValue = Annotated[Any, PlainValidator(_template_value, json_schema_input_type=Any)]
Documents = Annotated[
    list[
        Annotated[
            dict[Annotated[str, Field(min_length=1, max_length=64)], Text],
            bounded_dict(_MAX_DOCUMENT_FIELDS),
            Field(json_schema_extra={"maxProperties": _MAX_DOCUMENT_FIELDS}),
        ]
    ],
    Field(fail_fast=True, max_length=_MAX_DOCUMENTS),
]
