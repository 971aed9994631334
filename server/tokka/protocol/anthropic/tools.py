"""Tools of Anthropic's Messages API. Tools that only Anthropic's servers run are left out of the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Discriminator, Field, PlainValidator, Tag

from tokka.core import Tools
from tokka.protocol.common import OpenModel, invalid, type_of, unsupported
from tokka.protocol.tools import (
    MAX_TOOLS,
    FunctionTool,
    NamedFunction,
    NamedTool,
    Tool,
    WireToolChoice,
    check_functions,
    parameters_of,
    tools_of,
)
from tokka.protocol.vllm_fields import Neutral

MAX_DESCRIPTION_CHARS = 64 * 1024
# Longer than at OpenAI.
_Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
_RUNS_NONE = "This server runs no tools itself: send tools with an input_schema, or leave it out"


def _input_schema(value: Any) -> dict[str, Any]:
    schema = parameters_of(value)
    if schema is None:
        raise invalid("Input should be an object: a JSON Schema")
    return schema


class ClientTool(FunctionTool):
    """A tool that the client runs. Unknown fields are ignored: new versions of clients send some."""

    model_config = ConfigDict(extra="allow")
    neutral: ClassVar[Mapping[str, Neutral]] = {}
    schema_name: ClassVar[str] = ".input_schema"

    type: Literal["custom"] | None = None
    name: _Name
    description: str | None = Field(None, max_length=MAX_DESCRIPTION_CHARS)
    parameters: Annotated[
        dict[str, Any] | None, PlainValidator(_input_schema, json_schema_input_type=dict[str, Any])
    ] = Field(alias="input_schema", description="A JSON Schema of the tool's input.")
    # Accepted without effect: the model gets every tool at once, and the client runs it.
    cache_control: dict[str, Any] | None = None
    defer_loading: bool | None = None
    eager_input_streaming: bool | None = None
    allowed_callers: list[Annotated[str, Field(max_length=64)]] | None = Field(None, max_length=8)
    input_examples: list[dict[str, Any]] | None = Field(None, max_length=64)

    @property
    def unknown(self) -> int:
        """Return the number of unknown fields."""
        return len(self.model_extra or ())


class ServerTool(OpenModel):
    """A tool of another type. It is left out of the prompt and named in the header `x-tokka-ignored-tools`."""

    type: Annotated[str, Field(min_length=1, max_length=64, json_schema_extra={"not": {"const": "custom"}})]
    name: Annotated[str, Field(max_length=128)] | None = None


def _kind_of(tool: Any) -> str:
    return "client" if type_of(tool) in (None, "custom") else "server"


AnthropicTools = Annotated[
    list[
        Annotated[Annotated[ClientTool, Tag("client")] | Annotated[ServerTool, Tag("server")], Discriminator(_kind_of)]
    ],
    Field(fail_fast=True, max_length=MAX_TOOLS),
]


class _Choice(OpenModel):
    disable_parallel_tool_use: bool | None = Field(None, description="true: at most one tool call.")


class AutoChoice(_Choice):
    """The model decides."""

    type: Literal["auto"]


class AnyChoice(_Choice):
    """The model calls at least one tool."""

    type: Literal["any"]


class ToolChoice(_Choice):
    """The model calls this tool."""

    type: Literal["tool"]
    name: Annotated[str, Field(min_length=1, max_length=128)]


class NoneChoice(OpenModel):
    """No tool is called, and no tools are in the prompt."""

    type: Literal["none"]


AnthropicToolChoice = Annotated[AutoChoice | AnyChoice | ToolChoice | NoneChoice, Field(discriminator="type")]


def functions_of(tools: Sequence[ClientTool | ServerTool] | None) -> list[Tool]:
    """Return the tools that the client runs."""
    return [
        Tool.model_construct(type="function", function=tool) for tool in tools or () if isinstance(tool, ClientTool)
    ]


def left_out(tools: Sequence[ClientTool | ServerTool] | None) -> tuple[str, ...]:
    """Return the types of the tools that this server does not run."""
    return tuple(tool.type for tool in tools or () if isinstance(tool, ServerTool))


def called_tools(
    tools: Sequence[ClientTool | ServerTool] | None, choice: AnthropicToolChoice | None
) -> tuple[list[Tool], Tools | None]:
    """Return the tools that the client runs, and the same as the engine sees them: None if none may be called."""
    functions = functions_of(tools)
    parallel = not (isinstance(choice, _Choice) and choice.disable_parallel_tool_use)
    return functions, tools_of(functions, _wire_choice(choice), parallel)


def check_tools(tools: Sequence[ClientTool | ServerTool] | None, choice: AnthropicToolChoice | None) -> None:
    """Raise if the tools are too large or have a name twice, or if the choice demands a tool that cannot be called."""
    places = [f"tools[{place}].name" for place, tool in enumerate(tools or ()) if isinstance(tool, ClientTool)]
    names = check_functions(functions_of(tools), places)
    if isinstance(choice, ToolChoice) and choice.name not in names:
        if any(isinstance(tool, ServerTool) and tool.name == choice.name for tool in tools or ()):
            raise unsupported(_RUNS_NONE, "tool_choice.name")
        raise invalid(f"The tool {choice.name!r} is not in tools", "tool_choice.name")
    if isinstance(choice, AnyChoice) and not names:
        if tools:
            raise unsupported(_RUNS_NONE, "tool_choice.type")
        raise invalid("tool_choice is only allowed with tools: leave it out, or send tools", "tool_choice")


def _wire_choice(choice: AnthropicToolChoice | None) -> WireToolChoice | None:
    match choice:
        case NoneChoice():
            return "none"
        case AnyChoice():
            return "required"
        case ToolChoice(name=name):
            # The names at OpenAI are shorter.
            return NamedTool.model_construct(type="function", function=NamedFunction.model_construct(name=name))
    return None
