"""Tools: their wire format, and the constraint on a choice that must call one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import orjson
from pydantic import Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from tokka.core import Constraint, FunctionSchema, RequiredCalls, ToolChoice, Tools
from tokka.protocol.closing import closed
from tokka.protocol.common import WireModel, invalid
from tokka.protocol.json_schema import MAX_SCHEMA_BYTES, MAX_SCHEMA_DEPTH, errors_below, mapped, schema_text
from tokka.protocol.messages import FunctionName
from tokka.protocol.schema_loosening import LOOSER_LEVELS, Level, loosened
from tokka.protocol.vllm_fields import TOOL_FIELDS, Neutral, NeutralModel

MAX_TOOLS = 128
MAX_DESCRIPTION_CHARS = 16 * 1024
# Maximum bytes of all tools of a request, which a template writes into the prompt.
MAX_TOOLS_BYTES = 256 * 1024
# Maximum tool calls of a choice that must call: a weak model might never stop.
MAX_REQUIRED_CALLS = 16
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}
_ANY_ARGUMENTS: dict[str, Any] = {"type": "object"}


def _parameters(value: Any) -> dict[str, Any] | None:
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

    name: FunctionName
    description: str | None = Field(None, max_length=MAX_DESCRIPTION_CHARS)
    parameters: Annotated[
        dict[str, Any] | None, PlainValidator(_parameters, json_schema_input_type=dict[str, Any] | None)
    ] = Field(None, description="A JSON Schema of the arguments. Default: no arguments.")
    strict: bool | None = Field(
        None,
        description="Refuse a schema that cannot be enforced in full. With `tool_choice: auto`, it is enforced only if"
        " the model calls in the Hermes format; with `required` or a named function, always.",
    )

    @model_validator(mode="after")
    def _is_enforceable(self) -> FunctionTool:
        if self.strict and self.parameters is not None:
            with errors_below(".parameters"):
                schema_text(self.parameters)
        return self


class Tool(NeutralModel):
    """A tool of a request. The only type is `function`."""

    neutral: ClassVar[Mapping[str, Neutral]] = TOOL_FIELDS

    type: Literal["function"]
    function: FunctionTool

    def plain(self) -> dict[str, Any]:
        """Return the tool as chat templates know it."""
        function = {"name": self.function.name, "description": self.function.description or ""}
        return {"type": "function", "function": {**function, "parameters": self.function.parameters or _NO_PARAMETERS}}

    def function_schema(self) -> FunctionSchema:
        return FunctionSchema(self.function.name, self.function.parameters, bool(self.function.strict))


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
    names: set[str] = set()
    for place, tool in enumerate(tools):
        if tool.function.name in names:
            raise invalid(
                f"Function names must be unique; {tool.function.name!r} is used twice",
                f"tools[{place}].function.name",
            )
        names.add(tool.function.name)
    if (size := len(orjson.dumps([tool.plain() for tool in tools]))) > MAX_TOOLS_BYTES:
        raise invalid(f"The tools may have at most {MAX_TOOLS_BYTES} bytes together; these have {size}", "tools")
    for at, name in _chosen(choice):
        if name not in names:
            raise invalid(f"The function {name!r} is not in tools", f"tool_choice.{at}function.name")


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


def _callable(tools: Sequence[Tool], choice: WireToolChoice | None) -> list[Tool]:
    """Return the tools that may be called."""
    if not isinstance(choice, AllowedTools):
        return list(tools)
    names = {name for _, name in _chosen(choice)}
    return [tool for tool in tools if tool.function.name in names]


def tools_of(
    tools: Sequence[Tool] | None, choice: WireToolChoice | None, parallel: bool | None, form: Constraint | None
) -> Tools | None:
    """Return the tools as the engine sees them; None if none may be called.

    `form`: the constraint on a choice without tool calls. It is ignored for a choice that must call.
    """
    if not tools or choice == "none":
        return None
    kind = _kind(choice)
    may_be_called = _callable(tools, choice)
    answer = orjson.loads(form.text) if form is not None and kind == "auto" else None
    is_held = kind == "auto" and (answer is not None or any(tool.function.strict for tool in may_be_called))
    return Tools(
        tuple(tool.plain() for tool in tools),
        kind,
        choice.function.name if isinstance(choice, NamedTool) else None,
        allowed=frozenset(tool.function.name for tool in may_be_called) if isinstance(choice, AllowedTools) else None,
        parallel=parallel is not False and kind != "named",
        schemas={
            tool.function.name: arguments_schema(tool.function_schema()) if tool.function.strict else _ANY_ARGUMENTS
            for tool in may_be_called
        }
        if is_held
        else None,
        answer=answer,
        answer_param="response_format" if form is None else form.param.partition(".")[0],
    )


def calls_constraint(
    tools: Sequence[Tool] | None, choice: WireToolChoice | None, parallel: bool | None
) -> Constraint | None:
    """Return the constraint on a choice that must call, or None if it need not.

    A named function: its arguments. `required`: a JSON array of tool calls.
    """
    if not tools:
        return None
    if isinstance(choice, NamedTool):
        for place, tool in enumerate(tools):
            if tool.function.name == choice.function.name:
                return _constraint(
                    RequiredCalls((tool.function_schema(),), None), f"tools[{place}].function.parameters"
                )
    if _kind(choice) != "required":
        return None
    functions = tuple(tool.function_schema() for tool in _callable(tools, choice))
    return _constraint(RequiredCalls(functions, 1 if parallel is False else MAX_REQUIRED_CALLS), "tools")


def loosened_texts(calls: RequiredCalls) -> Iterator[str]:
    """Yield looser and looser schemas of the calls, to try if the schema in the constraint cannot be compiled."""
    for level in LOOSER_LEVELS:
        yield _text(calls, level)


def _constraint(calls: RequiredCalls, param: str) -> Constraint:
    return Constraint("json", _text(calls), param, calls)


def _text(calls: RequiredCalls, level: Level | None = None) -> str:
    by_name = {function.name: arguments_schema(function, level) for function in calls.functions}
    if calls.most_calls is None:
        (schema,) = by_name.values()
        return orjson.dumps(schema).decode()
    return orjson.dumps(_calls_schema(by_name, calls.most_calls)).decode()


def arguments_schema(function: FunctionSchema, level: Level | None = None) -> dict[str, Any]:
    """Return the schema that constrains a function's arguments. `level` loosens it, unless the function is strict."""
    given = function.parameters
    if not given:
        return {**_NO_PARAMETERS, "additionalProperties": False}
    if level is None or function.strict:
        try:
            return {"type": "object", **closed(orjson.loads(schema_text(given)), is_arguments=True)}
        except PydanticCustomError:
            level = "enforced"
    wide = None if level == "any" else loosened(dict(given), level)
    return _ANY_ARGUMENTS if wide is None else {"type": "object", **closed(wide, is_arguments=True)}


def _calls_schema(by_name: dict[str, dict[str, Any]], most: int) -> dict[str, Any]:
    return {
        "type": "array",
        "minItems": 1,
        "maxItems": most,
        "items": {"anyOf": [_call_schema(name) for name in by_name]},
        "$defs": {name: _moved(schema, f"#/$defs/{name}") for name, schema in by_name.items()},
    }


def _call_schema(name: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "parameters": {"$ref": f"#/$defs/{name}"}},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _moved(schema: Any, to: str) -> Any:
    """Return the schema with its references changed for its place `to` below another root."""
    if not isinstance(schema, dict):
        return schema
    return {
        name: to + part[1:] if name == "$ref" else mapped(name, part, lambda _, below: _moved(below, to))
        for name, part in schema.items()
    }
