"""Structured output: `response_format` and `structured_outputs`, and the constraint that they and the tools become."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from tokka.core import Constraint, Tools
from tokka.protocol.annotations import LooseSchema, checked_loose_schema
from tokka.protocol.closing import closed
from tokka.protocol.common import WireModel, invalid, unsupported
from tokka.protocol.json_schema import MAX_SCHEMA_BYTES, checked_schema, errors_below, mapped
from tokka.protocol.schema_loosening import LOOSER_LEVELS, Level, loosened
from tokka.protocol.structural_tag import StructuralTagFormat, parsed_tag
from tokka.protocol.tools import FunctionTool, Tool
from tokka.required_calls import FunctionSchema, RequiredCalls

MAX_REGEX_CHARS = 8192
MAX_CONSTRAINT_CHOICES = 4096
MAX_GRAMMAR_CHARS = 64 * 1024
# Maximum characters of all choices together.
MAX_CHOICE_CHARS = 64 * 1024
# Maximum tool calls of a choice that must call: a weak model might never stop.
MAX_REQUIRED_CALLS = 16
# Grammar directives that would bypass the limits of json_schema.py.
_INLINE = re.compile(r"%(json|llguidance)\b")
_MAX_WHITESPACE_CHARS = 256
# Blanks or sets of characters, each of which is optional.
_OPTIONAL_BLANKS = re.compile(r"(?:(?:\[(?:[^\]\\]|\\.)+\]|\\[sntr]|[ \t\n\r])(?:[*?]|\{0,\d*\}))*")
_ANY_OBJECT: dict[str, Any] = {"type": "object"}


_Schema = Annotated[Any, PlainValidator(lambda value: value, json_schema_input_type=dict[str, Any])]


def _only_true(value: bool) -> bool:
    if not value:
        raise invalid("Input should be true; otherwise leave it out")
    return value


# Not a Literal, because that accepts 1 as well.
_True = Annotated[bool, AfterValidator(_only_true), Field(json_schema_extra={"const": True})]


def _allows_none(pattern: str) -> str:
    if len(pattern) > _MAX_WHITESPACE_CHARS or not _OPTIONAL_BLANKS.fullmatch(pattern):
        raise unsupported(
            "JSON is generated without whitespace: send a pattern that allows none, like [ ]? or \\s*, or leave it out"
        )
    return pattern


class TextFormat(WireModel):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(WireModel):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(WireModel):
    """A JSON Schema with a name."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = Field(None, max_length=MAX_SCHEMA_BYTES)
    schema_: _Schema | None = Field(
        None,
        alias="schema",
        description="A JSON Schema. All its keywords must be enforceable in full. Default: any JSON object.",
    )
    strict: bool | None = Field(
        None,
        description="Also refuse unknown formats and annotations. The schema is always enforced.",
    )

    @model_validator(mode="after")
    def _is_enforceable(self) -> Self:
        if self.schema_ is not None:
            with errors_below(".schema"):
                self.schema_ = checked_schema(self.schema_) if self.strict else checked_loose_schema(self.schema_)
        return self


class JsonSchemaFormat(WireModel):
    """JSON that matches a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat | StructuralTagFormat, Field(discriminator="type")
]


class StructuredOutputs(WireModel):
    """A constraint on every choice. Send exactly one kind."""

    json_: LooseSchema | None = Field(None, alias="json", description="A JSON Schema, as an object or as text.")
    regex: str | None = Field(
        None, min_length=1, max_length=MAX_REGEX_CHARS, description="A regular expression for the whole text."
    )
    choice: Annotated[list[Annotated[str, Field(min_length=1)]], Field(fail_fast=True)] | None = Field(
        None, min_length=1, max_length=MAX_CONSTRAINT_CHOICES, description="The text is one of these."
    )
    grammar: str | None = Field(
        None, min_length=1, max_length=MAX_GRAMMAR_CHARS, description="A context-free grammar in Lark or GBNF."
    )
    json_object: _True | None = Field(None, description="Any JSON object.")
    structural_tag: Annotated[StructuralTagFormat, BeforeValidator(parsed_tag)] | None = Field(
        None, description="Free text with tags in it, as an object or as JSON text."
    )
    disable_any_whitespace: bool | None = Field(
        None, description="Changes nothing: JSON is generated without whitespace."
    )
    disable_additional_properties: bool | None = Field(
        None,
        description="true: also close objects with `patternProperties`. Others are closed unless opened.",
    )
    whitespace_pattern: Annotated[str, AfterValidator(_allows_none)] | None = Field(
        None, description="Must also match the empty string: JSON is generated without whitespace."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [self.json_, self.regex, self.choice, self.grammar, self.json_object, self.structural_tag]
        if sum(value is not None for value in given) != 1:
            raise invalid("Exactly one of json, regex, choice, grammar, json_object and structural_tag must be given")
        if (chars := sum(map(len, self.choice or ()))) > MAX_CHOICE_CHARS:
            raise invalid(
                f"The choices may have at most {MAX_CHOICE_CHARS} characters together; these have {chars}", "choice"
            )
        if self.grammar is not None and _INLINE.search(self.grammar):
            raise invalid("A grammar may not contain %json or %llguidance: send a schema as json", "grammar")
        return self

    def constraint(self) -> Constraint:
        at = "structured_outputs"
        if self.json_ is not None:
            schema = _with_no_others(self.json_) if self.disable_additional_properties else self.json_
            return json_constraint(schema, f"{at}.json")
        if self.regex is not None:
            return Constraint("regex", self.regex, f"{at}.regex")
        if self.choice is not None:
            return Constraint("choice", orjson.dumps(self.choice).decode(), f"{at}.choice")
        if self.grammar is not None:
            return Constraint("grammar", self.grammar, f"{at}.grammar")
        if self.structural_tag is not None:
            return _tags_constraint(self.structural_tag, f"{at}.structural_tag")
        return json_constraint(_ANY_OBJECT, f"{at}.json_object")


def text_constraint(form: ResponseFormat | None, outputs: StructuredOutputs | None) -> Constraint | None:
    """Return the constraint on text. Raises if both fields make one."""
    constraint = _format_constraint(form)
    if outputs is None:
        return constraint
    if constraint is not None:
        raise invalid("response_format and structured_outputs cannot be combined: leave one out", "structured_outputs")
    return outputs.constraint()


def chat_constraint(text: Constraint | None, tools: Sequence[Tool], called: Tools | None) -> Constraint | None:
    """Return the constraint on a chat's choices. Raises if `text`, the one without tool calls, is not JSON.

    A named function: its arguments. `required`: a JSON array of tool calls. `auto`: text with tool calls in it.
    """
    if called is None:
        return text
    if text is not None and text.kind != "json":
        raise invalid(
            f"{text.param} cannot be combined with tools: only JSON can be told from a tool call. Leave one out, or"
            " send tool_choice: none",
            text.param,
        )
    if called.choice == "named":
        for place, tool in enumerate(tools):
            if tool.function.name == called.name:
                calls = RequiredCalls((_function_schema(tool.function),), None)
                return _required_calls(calls, f"tools[{place}].function.parameters")
        # check_tools refuses the name.
        return None
    names = called.names
    functions = [tool.function for tool in tools if tool.function.name in names]
    if called.choice == "required":
        most = MAX_REQUIRED_CALLS if called.parallel else 1
        return _required_calls(RequiredCalls(tuple(map(_function_schema, functions)), most), "tools")
    return _optional_calls(text, functions, called)


def loosened_texts(calls: RequiredCalls) -> Iterator[str]:
    """Yield looser and looser schemas of the calls, to try if the schema in the constraint cannot be compiled."""
    for level in LOOSER_LEVELS:
        yield _calls_text(calls, level)


def _format_constraint(form: ResponseFormat | None) -> Constraint | None:
    match form:
        case JsonSchemaFormat():
            schema = form.json_schema.schema_
            return json_constraint(_ANY_OBJECT if schema is None else schema, "response_format.json_schema.schema")
        case StructuralTagFormat():
            return _tags_constraint(form, "response_format")
        case JsonObjectFormat():
            return json_constraint(_ANY_OBJECT, "response_format.type")
    return None


def json_constraint(schema: dict[str, Any], param: str) -> Constraint:
    """Return the constraint on JSON that matches a checked schema. `param`: the schema's place in the body."""
    return Constraint("json", orjson.dumps(closed(schema)).decode(), param)


def _tags_constraint(form: StructuralTagFormat, param: str) -> Constraint:
    return Constraint("tags", orjson.dumps(form.plain()).decode(), param)


def _required_calls(calls: RequiredCalls, param: str) -> Constraint:
    return Constraint("json", _calls_text(calls), param, calls)


def _optional_calls(text: Constraint | None, functions: Sequence[FunctionTool], called: Tools) -> Constraint | None:
    if text is None and not any(function.strict for function in functions):
        return None
    held = {
        "functions": {
            function.name: _function_schema(function).arguments if function.strict else _ANY_OBJECT
            for function in functions
        },
        "answer": orjson.Fragment(text.text) if text else None,
        "parallel": called.parallel,
    }
    param = text.param.partition(".")[0] if text else "tools"
    return Constraint("calls", orjson.dumps(held).decode(), param, is_optional=text is None)


def _function_schema(function: FunctionTool) -> FunctionSchema:
    """Return the strictest schema of the arguments that can be enforced."""
    try:
        schema: dict[str, Any] | None = function.checked_parameters
    except PydanticCustomError:
        schema = loosened(function.parameters or {})
    return FunctionSchema(function.name, _arguments(schema), None if function.strict else function.parameters or None)


def _arguments(schema: dict[str, Any] | None) -> dict[str, Any]:
    """Return the schema of an object of arguments. None: any arguments."""
    return _ANY_OBJECT if schema is None else {"type": "object", **closed(schema, is_arguments=True)}


def _calls_text(calls: RequiredCalls, level: Level | None = None) -> str:
    by_name = {
        function.name: function.arguments
        if level is None or function.parameters is None
        else _arguments(loosened(function.parameters, level))
        for function in calls.functions
    }
    if calls.most_calls is None:
        (schema,) = by_name.values()
        return orjson.dumps(schema).decode()
    return orjson.dumps(_calls_schema(by_name, calls.most_calls)).decode()


def _calls_schema(by_name: Mapping[str, Mapping[str, Any]], most: int) -> dict[str, Any]:
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


def _with_no_others(schema: Any) -> Any:
    """Return a checked schema whose objects with named properties allow no others, unless they say so."""
    if not isinstance(schema, dict):
        return schema
    result = {name: mapped(name, value, lambda _, below: _with_no_others(below)) for name, value in schema.items()}
    if "properties" in result or "patternProperties" in result:
        result.setdefault("additionalProperties", False)
    return result
