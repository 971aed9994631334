"""The source of a constraint on tool calls: the functions, each with its enforced schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class FunctionSchema:
    """The enforced schema of one function's arguments."""

    name: str
    arguments: Mapping[str, Any]
    # The schema in the request, to make looser ones from. None: `arguments` must not be loosened.
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class RequiredCalls:
    """The source of a constraint on tool calls. `most_calls` is None for the arguments of one named function."""

    functions: tuple[FunctionSchema, ...]
    most_calls: int | None
