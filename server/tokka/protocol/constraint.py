"""Structured output: `response_format` and `structured_outputs`, and the one constraint they become."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, model_validator

from tokka.core import Constraint
from tokka.protocol.annotations import SchemaText, loose_schema_text
from tokka.protocol.closing import closed
from tokka.protocol.common import WireModel, invalid, unsupported
from tokka.protocol.json_schema import MAX_SCHEMA_BYTES, errors_below, mapped, schema_text
from tokka.protocol.structural_tag import StructuralTagFormat, parsed_tag

MAX_REGEX_CHARS = 8192
MAX_CONSTRAINT_CHOICES = 4096
MAX_GRAMMAR_CHARS = 64 * 1024
# Maximum characters of all choices together.
MAX_CHOICE_CHARS = 64 * 1024
# Grammar directives that would bypass the limits of json_schema.py.
_INLINE = re.compile(r"%(json|llguidance)\b")
_MAX_WHITESPACE_CHARS = 256
# Blanks or sets of characters, each of which is optional.
_OPTIONAL_BLANKS = re.compile(r"(?:(?:\[(?:[^\]\\]|\\.)+\]|\\[sntr]|[ \t\n\r])(?:[*?]|\{0,\d*\}))*")
_ANY_OBJECT = '{"type":"object"}'


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
                self.schema_ = schema_text(self.schema_) if self.strict else loose_schema_text(self.schema_)
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

    json_: SchemaText | None = Field(None, alias="json", description="A JSON Schema, as an object or as text.")
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
            schema = orjson.loads(self.json_)
            if self.disable_additional_properties:
                schema = _with_no_others(schema)
            return _json_constraint(schema, f"{at}.json")
        if self.regex is not None:
            return Constraint("regex", self.regex, f"{at}.regex")
        if self.choice is not None:
            return Constraint("choice", orjson.dumps(self.choice).decode(), f"{at}.choice")
        if self.grammar is not None:
            return Constraint("grammar", self.grammar, f"{at}.grammar")
        if self.structural_tag is not None:
            return self.structural_tag.constraint(f"{at}.structural_tag")
        return Constraint("json", _ANY_OBJECT, f"{at}.json_object")


def format_constraint(form: ResponseFormat | None) -> Constraint | None:
    """Return the constraint of a response format, or None."""
    match form:
        case JsonSchemaFormat():
            schema = orjson.loads(form.json_schema.schema_ or _ANY_OBJECT)
            return _json_constraint(schema, "response_format.json_schema.schema")
        case StructuralTagFormat():
            return form.constraint("response_format")
        case JsonObjectFormat():
            return Constraint("json", _ANY_OBJECT, "response_format.type")
    return None


def _json_constraint(schema: dict[str, Any], param: str) -> Constraint:
    return Constraint("json", orjson.dumps(closed(schema)).decode(), param)


def _with_no_others(schema: Any) -> Any:
    """Return a checked schema whose objects with named properties allow no others, unless they say so."""
    if not isinstance(schema, dict):
        return schema
    result = {name: mapped(name, value, lambda _, below: _with_no_others(below)) for name, value in schema.items()}
    if "properties" in result or "patternProperties" in result:
        result.setdefault("additionalProperties", False)
    return result
