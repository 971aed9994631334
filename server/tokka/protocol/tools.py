"""Tools: their wire format, and what the engine sees of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import orjson
from pydantic import Field, PlainValidator, model_validator

from tokka.core import ToolChoice, Tools
from tokka.protocol.common import WireModel, invalid
from tokka.protocol.json_schema import MAX_SCHEMA_BYTES, MAX_SCHEMA_DEPTH, checked_schema, errors_below
from tokka.protocol.messages import FunctionName
from tokka.protocol.vllm_fields import TOOL_FIELDS, Neutral, NeutralModel

MAX_TOOLS = 128
MAX_DESCRIPTION_CHARS = 16 * 1024
# Maximum bytes of all tools of a request, which a template writes into the prompt.
MAX_TOOLS_BYTES = 256 * 1024
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


def parameters_of(value: Any) -> dict[str, Any] | None:
    """Accept any bounded JSON object that can be the schema of an object."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise invalid("Input should be an object: a JSON Schema")
    if not _is_within(value, MAX_SCHEMA_DEPTH * 2):
        raise invalid(f"A schema may nest at most {MAX_SCHEMA_DEPTH * 2} objects and lists deep")
    try:
        size = len(orjson.dumps(value))
    except orjson.JSONEncodeError as error:
        raise invalid(f"A schema must be JSON with numbers of at most 64 bits ({error})") from None
    if size > MAX_SCHEMA_BYTES:
        raise invalid(f"A schema may have at most {MAX_SCHEMA_BYTES} bytes; this one has {size}")
    if value.get("type", "object") != "object":
        raise invalid("The schema of a function's arguments must have the type 'object'", ".type")
    # Some serialisers write null for no properties.
    return {name: below for name, below in value.items() if name != "properties" or below is not None}


def _is_within(value: Any, depth: int) -> bool:
    """Return whether no part is nested deeper. Checks level by level, because Python calls may not nest as deep."""
    level = [value]
    for _ in range(depth):
        level = [below for part in level for below in _parts(part)]
        if not level:
            return True
    return False


def _parts(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        return [part for part in value.values() if isinstance(part, dict | list)]
    return [part for part in value if isinstance(part, dict | list)]


class FunctionTool(NeutralModel):
    """A function that the model may call."""

    neutral: ClassVar[Mapping[str, Neutral]] = TOOL_FIELDS
    # The place of the parameters below the function, for error messages.
    schema_name: ClassVar[str] = ".parameters"

    name: FunctionName
    description: str | None = Field(None, max_length=MAX_DESCRIPTION_CHARS)
    parameters: Annotated[
        dict[str, Any] | None, PlainValidator(parameters_of, json_schema_input_type=dict[str, Any] | None)
    ] = Field(None, description="A JSON Schema of the arguments. Default: no arguments.")
    strict: bool | None = Field(
        None,
        description="Refuse a schema that cannot be enforced in full. With `tool_choice: auto`, it is enforced only if"
        " the model calls in the Hermes format; with `required` or a named function, always.",
    )

    @model_validator(mode="after")
    def _is_enforceable(self) -> FunctionTool:
        if self.strict:
            with errors_below(self.schema_name):
                _ = self.checked_parameters
        return self

    @cached_property
    def checked_parameters(self) -> dict[str, Any]:
        """The schema of the arguments. Raises PydanticCustomError if it cannot be enforced in full."""
        return checked_schema(self.parameters or _NO_PARAMETERS)


class Tool(NeutralModel):
    """A tool of a request. The only type is `function`."""

    neutral: ClassVar[Mapping[str, Neutral]] = TOOL_FIELDS

    type: Literal["function"]
    function: FunctionTool

    def plain(self) -> dict[str, Any]:
        """Return the tool as chat templates know it."""
        function = {"name": self.function.name, "description": self.function.description or ""}
        return {"type": "function", "function": {**function, "parameters": self.function.parameters or _NO_PARAMETERS}}


class NamedFunction(WireModel):
    """A function by its name."""

    name: FunctionName


class NamedTool(WireModel):
    """A tool by the name of its function."""

    type: Literal["function"]
    function: NamedFunction


class AllowedFunctions(WireModel):
    """The functions that may be called, and whether a call is required."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(fail_fast=True, min_length=1, max_length=MAX_TOOLS)]


class AllowedTools(WireModel):
    """Let the model call only some of the functions in the prompt."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedFunctions


WireTools = Annotated[list[Tool], Field(fail_fast=True, max_length=MAX_TOOLS)]
WireToolChoice = Literal["none", "auto", "required"] | Annotated[NamedTool | AllowedTools, Field(discriminator="type")]


def check_tools(tools: Sequence[Tool] | None, choice: WireToolChoice | None, parallel: bool | None) -> None:
    """Raise if the list is too large or has a name twice, or if the choice names a function that is not in it."""
    if not tools:
        # An empty list means no tools. Clients that send it also send fields that go with tools; vLLM's send defaults.
        is_harmless = tools is not None and choice in (None, "none", "auto")
        for name, value, neutral in (("tool_choice", choice, "none"), ("parallel_tool_calls", parallel, True)):
            if value not in (None, neutral) and not is_harmless:
                raise invalid(f"{name} is only allowed with tools: leave it out, or send tools", name)
        return
    names = check_functions(tools, [f"tools[{place}].function.name" for place in range(len(tools))])
    for at, name in _chosen(choice):
        if name not in names:
            raise invalid(f"The function {name!r} is not in tools", f"tool_choice.{at}function.name")


def check_functions(tools: Sequence[Tool], places: Sequence[str]) -> set[str]:
    """Return the names of the functions. Raises if they are too large together, or if a name is used twice.

    `places`: the path of each function's name in the body.
    """
    names: set[str] = set()
    for place, tool in zip(places, tools, strict=True):
        if tool.function.name in names:
            raise invalid(f"Function names must be unique; {tool.function.name!r} is used twice", place)
        names.add(tool.function.name)
    if (size := len(orjson.dumps([tool.plain() for tool in tools]))) > MAX_TOOLS_BYTES:
        raise invalid(f"The tools may have at most {MAX_TOOLS_BYTES} bytes together; these have {size}", "tools")
    return names


def _chosen(choice: WireToolChoice | None) -> Iterator[tuple[str, str]]:
    """Yield the functions that a choice names, each with its place in the choice."""
    match choice:
        case NamedTool(function=function):
            yield "", function.name
        case AllowedTools(allowed_tools=allowed):
            for place, tool in enumerate(allowed.tools):
                yield f"allowed_tools.tools[{place}].", tool.function.name


def _kind(choice: WireToolChoice | None) -> ToolChoice:
    match choice:
        case NamedTool():
            return "named"
        case AllowedTools(allowed_tools=allowed):
            return allowed.mode
    return choice or "auto"


def tools_of(tools: Sequence[Tool] | None, choice: WireToolChoice | None, parallel: bool | None) -> Tools | None:
    """Return the tools as the engine sees them; None if none may be called."""
    if not tools or choice == "none":
        return None
    kind = _kind(choice)
    return Tools(
        tuple(tool.plain() for tool in tools),
        kind,
        choice.function.name if isinstance(choice, NamedTool) else None,
        allowed=frozenset(name for _, name in _chosen(choice)) if isinstance(choice, AllowedTools) else None,
        parallel=parallel is not False and kind != "named",
    )
