"""What an answer can be held to: `response_format` and `structured_outputs`, and the one constraint they become."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import orjson
from pydantic import AfterValidator, Field, PlainValidator, model_validator

from tokka.core import Constraint
from tokka.protocol.annotations import without_annotations
from tokka.protocol.closing import closed
from tokka.protocol.common import WireModel, invalid
from tokka.protocol.json_schema import MAX_SCHEMA_BYTES, errors_below, parsed, schema_text
from tokka.protocol.vllm_fields import STRUCTURED_FIELDS, Neutral, NeutralModel

MAX_REGEX_CHARS = 8192
MAX_CONSTRAINT_CHOICES = 4096
MAX_GRAMMAR_CHARS = 64 * 1024
# All choices together.
MAX_CHOICE_CHARS = 64 * 1024
# Ways around the bounds of json_schema.py.
_INLINE = re.compile(r"%(json|llguidance)\b")
_ANY_OBJECT = '{"type":"object"}'


def _text_not_strict(schema: Any) -> str:
    """As `schema_text`, with annotations of any kind."""
    return schema_text(without_annotations(parsed(schema)))


_SchemaText = Annotated[str, PlainValidator(_text_not_strict, json_schema_input_type=dict[str, Any])]
_Schema = Annotated[Any, PlainValidator(lambda value: value, json_schema_input_type=dict[str, Any])]


def _only_true(value: bool) -> bool:
    if not value:
        raise invalid("Input should be true, or left out")
    return value


# Not a Literal: that takes 1 as well.
_True = Annotated[bool, AfterValidator(_only_true), Field(json_schema_extra={"const": True})]


class TextFormat(WireModel):
    type: Literal["text"]


class JsonObjectFormat(WireModel):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(WireModel):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = Field(None, max_length=MAX_SCHEMA_BYTES)
    schema_: _Schema | None = Field(
        None,
        alias="schema",
        description="A JSON Schema of the keywords that are enforced in full. Default: any JSON object.",
    )
    strict: bool | None = Field(
        None,
        description="Refuse formats and annotations that are not known, too. A schema is always enforced.",
    )

    @model_validator(mode="after")
    def _is_enforceable(self) -> Self:
        if self.schema_ is not None:
            with errors_below(".schema"):
                self.schema_ = schema_text(self.schema_) if self.strict else _text_not_strict(self.schema_)
        return self


class JsonSchemaFormat(WireModel):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StructuredOutputs(NeutralModel):
    """Exactly one of these."""

    neutral: ClassVar[Mapping[str, Neutral]] = STRUCTURED_FIELDS

    json_: _SchemaText | None = Field(None, alias="json", description="A JSON Schema, or its text.")
    regex: str | None = Field(None, min_length=1, max_length=MAX_REGEX_CHARS, description="The whole answer matches.")
    choice: Annotated[list[Annotated[str, Field(min_length=1)]], Field(fail_fast=True)] | None = Field(
        None, min_length=1, max_length=MAX_CONSTRAINT_CHOICES, description="The answer is one of these."
    )
    grammar: str | None = Field(
        None, min_length=1, max_length=MAX_GRAMMAR_CHARS, description="A context-free grammar in Lark or GBNF."
    )
    json_object: _True | None = Field(None, description="Any JSON object.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [self.json_, self.regex, self.choice, self.grammar, self.json_object]
        if sum(value is not None for value in given) != 1:
            raise invalid("Exactly one of json, regex, choice, grammar and json_object must be given")
        if (chars := sum(map(len, self.choice or ()))) > MAX_CHOICE_CHARS:
            raise invalid(
                f"The choices have at most {MAX_CHOICE_CHARS} characters together; these have {chars}", "choice"
            )
        if self.grammar is not None and _INLINE.search(self.grammar):
            raise invalid("A grammar may not hold %json or %llguidance: give a schema as json", "grammar")
        return self

    def constraint(self) -> Constraint:
        at = "structured_outputs"
        if self.json_ is not None:
            return _json_constraint(self.json_, f"{at}.json")
        if self.regex is not None:
            return Constraint("regex", self.regex, f"{at}.regex")
        if self.choice is not None:
            return Constraint("choice", orjson.dumps(self.choice).decode(), f"{at}.choice")
        if self.grammar is not None:
            return Constraint("grammar", self.grammar, f"{at}.grammar")
        return Constraint("json", _ANY_OBJECT, f"{at}.json_object")


def format_constraint(form: TextFormat | JsonObjectFormat | JsonSchemaFormat | None) -> Constraint | None:
    """Return what a response format holds an answer to."""
    match form:
        case JsonSchemaFormat():
            return _json_constraint(form.json_schema.schema_ or _ANY_OBJECT, "response_format.json_schema.schema")
        case JsonObjectFormat():
            return Constraint("json", _ANY_OBJECT, "response_format.type")
    return None


def _json_constraint(schema: str, param: str) -> Constraint:
    return Constraint("json", orjson.dumps(closed(orjson.loads(schema))).decode(), param)
