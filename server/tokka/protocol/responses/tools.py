"""Tools of a response: functions, also in namespaces. Tools that only another server can run are left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from tokka.protocol.common import OpenModel, WireModel, invalid, type_of, unsupported
from tokka.protocol.messages import FunctionName
from tokka.protocol.responses.conversation import flat_name
from tokka.protocol.tools import (
    MAX_DESCRIPTION_CHARS,
    MAX_TOOLS,
    AllowedFunctions,
    AllowedTools,
    FunctionTool,
    NamedFunction,
    NamedTool,
    Tool,
    WireToolChoice,
    check_functions,
)
from tokka.protocol.vllm_fields import Neutral

_RUNS_FUNCTIONS = "This server runs no tools itself: send functions, or leave it out"


class FlatFunction(FunctionTool):
    """A function that the model may call."""

    neutral: ClassVar[Mapping[str, Neutral]] = {}

    type: Literal["function"]
    # Accepted without effect: the model gets every function at once, and the client runs it.
    defer_loading: bool | None = None
    async_: bool | None = Field(None, alias="async")
    allowed_callers: list[Annotated[str, Field(max_length=64)]] | None = Field(None, max_length=8)
    output_schema: dict[str, Any] | None = None


class HostedTool(OpenModel):
    """A tool of another type. It is left out of the prompt and named in the header `x-tokka-ignored-tools`."""

    type: Annotated[
        str, Field(min_length=1, max_length=64, json_schema_extra={"not": {"enum": ["function", "namespace"]}})
    ]


def _kind_of(tool: Any) -> str:
    kind = type_of(tool)
    return kind if kind in ("function", "namespace") else "hosted"


class Namespace(OpenModel):
    """Functions under a common name. The model knows each as `NAMESPACE__NAME`."""

    type: Literal["namespace"]
    name: FunctionName
    description: str | None = Field(None, max_length=MAX_DESCRIPTION_CHARS)
    tools: Annotated[
        list[
            Annotated[
                Annotated[FlatFunction, Tag("function")] | Annotated[HostedTool, Tag("hosted")],
                Discriminator(lambda tool: "function" if _kind_of(tool) == "function" else "hosted"),
            ]
        ],
        Field(fail_fast=True, max_length=MAX_TOOLS),
    ]


FlatTool = Annotated[
    Annotated[FlatFunction, Tag("function")]
    | Annotated[Namespace, Tag("namespace")]
    | Annotated[HostedTool, Tag("hosted")],
    Discriminator(_kind_of),
]
FlatTools = Annotated[list[FlatTool], Field(fail_fast=True, max_length=MAX_TOOLS)]


class NamedChoice(OpenModel):
    """A tool by its name. Functions of a namespace have the name `NAMESPACE__NAME`, or the namespace beside it."""

    type: Annotated[str, Field(min_length=1, max_length=64, json_schema_extra={"not": {"enum": ["allowed_tools"]}})]
    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    namespace: Annotated[str, Field(min_length=1, max_length=256)] | None = None

    @property
    def full_name(self) -> str:
        return flat_name(self.namespace, self.name or "") if self.namespace else self.name or ""


class AllowedChoice(WireModel):
    """Let the model call only some of the functions in the prompt."""

    type: Literal["allowed_tools"]
    mode: Literal["none", "auto", "required"] = "auto"
    tools: Annotated[list[NamedChoice], Field(fail_fast=True, min_length=1, max_length=MAX_TOOLS)]


FlatChoice = (
    Literal["none", "auto", "required"]
    | Annotated[
        Annotated[AllowedChoice, Tag("allowed_tools")] | Annotated[NamedChoice, Tag("tool")],
        Discriminator(lambda choice: "allowed_tools" if type_of(choice) == "allowed_tools" else "tool"),
    ]
)


@dataclass(frozen=True, slots=True)
class OfferedTools:
    """The tools that the model gets, in the form of chat."""

    tools: tuple[Tool, ...]
    choice: WireToolChoice
    # The path of each tool in the body.
    places: tuple[str, ...]
    # Namespaces and local names of flattened functions, by the name that the model knows.
    namespaces: Mapping[str, tuple[str, str]]
    # Labels of the tools that are left out.
    left_out: tuple[str, ...]


def offered(tools: Sequence[FlatTool] | None, choice: FlatChoice | None) -> OfferedTools:
    """Return the tools that the model gets. Raises if the choice demands a tool that is left out or missing."""
    known: list[Tool] = []
    places: list[str] = []
    namespaces: dict[str, tuple[str, str]] = {}
    left_out: list[str] = []
    for place, namespace, tool in _flattened(tools or ()):
        if isinstance(tool, HostedTool):
            left_out.append(_label(tool, namespace))
            continue
        name = tool.name
        if namespace:
            name = flat_name(namespace, tool.name)
            namespaces[name] = (namespace, tool.name)
        # Built without validation: the fields are valid, and flattened names may be longer than others.
        function = tool.model_copy(update={"name": name})
        known.append(Tool.model_construct(type="function", function=function))
        places.append(place)
    if len(known) > MAX_TOOLS:
        raise invalid(f"At most {MAX_TOOLS} functions are allowed; got {len(known)}", "tools")
    names = check_functions(known, [f"{place}.name" for place in places])
    asked = _choice(choice, names, left_out)
    return OfferedTools(tuple(known), asked, tuple(places), namespaces, tuple(dict.fromkeys(left_out)))


def _flattened(tools: Sequence[FlatTool]) -> Iterator[tuple[str, str, FlatFunction | HostedTool]]:
    """Yield the place, the namespace or "", and the tool."""
    for at, tool in enumerate(tools):
        if isinstance(tool, Namespace):
            for below, inner in enumerate(tool.tools):
                yield f"tools[{at}].tools[{below}]", tool.name, inner
        else:
            yield f"tools[{at}]", "", tool


def _label(tool: HostedTool, namespace: str) -> str:
    extra = tool.model_extra or {}
    name = extra.get("name") or extra.get("server_label")
    label = f"{tool.type}:{name[:64]}" if isinstance(name, str) else tool.type
    return f"{namespace}.{label}" if namespace else label


def _choice(choice: FlatChoice | None, names: set[str], left_out: Sequence[str]) -> WireToolChoice:
    """Return the choice in the form of chat."""
    match choice:
        case None | "auto" | "none":
            return choice or "auto"
        case "required":
            if not names:
                raise _no_function(left_out)
            return choice
        case NamedChoice():
            _check_named(choice, names, "tool_choice")
            return NamedTool.model_construct(type="function", function=_named(choice.full_name))
        case AllowedChoice():
            return _allowed(choice, names, left_out)


def _allowed(choice: AllowedChoice, names: set[str], left_out: Sequence[str]) -> WireToolChoice:
    if choice.mode == "none":
        return "none"
    functions = []
    for at, tool in enumerate(choice.tools):
        # A hosted tool that the model may call, but need not, is left out.
        if tool.type == "function":
            _check_named(tool, names, f"tool_choice.tools[{at}]")
            functions.append(NamedTool.model_construct(type="function", function=_named(tool.full_name)))
    if not functions:
        if choice.mode == "required":
            raise _no_function(left_out)
        return "none"
    return AllowedTools.model_construct(
        type="allowed_tools", allowed_tools=AllowedFunctions.model_construct(mode=choice.mode, tools=functions)
    )


def _named(name: str) -> NamedFunction:
    return NamedFunction.model_construct(name=name)


def _check_named(choice: NamedChoice, names: set[str], at: str) -> None:
    if choice.type != "function":
        raise unsupported(_RUNS_FUNCTIONS, f"{at}.type")
    if choice.name is None:
        raise invalid("The name of the function is missing", f"{at}.name")
    if choice.full_name not in names:
        raise invalid(f"The function {choice.full_name[:128]!r} is not in tools", f"{at}.name")


def _no_function(left_out: Sequence[str]) -> Exception:
    if left_out:
        return unsupported(
            f"It demands a tool call, but there are no functions in tools. {_RUNS_FUNCTIONS}", "tool_choice"
        )
    return invalid("required is only allowed with tools: leave it out, or send tools", "tool_choice")
