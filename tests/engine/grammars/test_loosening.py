"""Functions that are not strict can be called with any schema, and as much of it as possible is enforced."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import pytest
from llguidance import LLTokenizer
from pydantic import BaseModel, Field

from tests.engine.tokenizer import EOS, byte_tokenizer
from tests.protocol.tool_bodies import NAMED, held, properties, tool
from tokka.core import Constraint
from tokka.engine.grammars.limits import matcher_of
from tokka.engine.grammars.loosening import compile_loosening
from tokka.engine.grammars.service import GrammarService
from tokka.errors import InvalidRequest
from tokka.protocol.constraint import JsonSchemaFormat, text_constraint

pytestmark = pytest.mark.engine


@pytest.fixture
async def grammars() -> AsyncIterator[GrammarService]:
    grammars = GrammarService(byte_tokenizer())
    yield grammars
    await grammars.close()


async def fits(grammars: GrammarService, constraint: Constraint, *values: Any) -> list[bool]:
    line = byte_tokenizer()
    tokenizer = LLTokenizer(line["tokenizer"], n_vocab=line["vocab_size"], eos_token=EOS)
    grammar = await compile_loosening(grammars, constraint)
    found = []
    for value in values:
        text = json.dumps(value, separators=(",", ":")).encode()
        matcher = matcher_of(tokenizer, grammar)
        found.append(matcher.try_consume_tokens([*text]) == len(text) and matcher.is_accepting())
    return found


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: str


class Owner(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


OWNED = [{"pet": {"kind": "cat", "lives": 7}}, {"pet": {"kind": "dog", "name": "Musti"}}]
NOT_OWNED: list[Any] = [{"pet": {"lives": 7}}, {"pet": {"kind": "dog", "lives": 7}}, {}]


async def test_discriminated_union_is_enforced(grammars: GrammarService) -> None:
    schema = Owner.model_json_schema()
    form = {"type": "json_schema", "json_schema": {"name": "owner", "schema": schema}}
    constraint = text_constraint(JsonSchemaFormat.model_validate(form), None)
    assert constraint is not None
    for made in (constraint, held(NAMED, tool("f", schema, strict=True)), held(NAMED, tool("f", schema))):
        assert await fits(grammars, made, *OWNED, *NOT_OWNED) == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, 3, "x"),
        ({"type": "string", "pattern": "^(?!x)a"}, "xa", 3),
        ({"type": "object", "patternProperties": {"^a": {"type": "null"}, "b$": {}}}, {"ab": 3}, 3),
        ({"type": "array", "uniqueItems": True, "items": {"type": "null"}}, [None, None], [3]),
    ],
    ids=str,
)
async def test_loosening_drops_keywords_that_the_compiler_refuses(
    grammars: GrammarService, schema: Any, good: Any, bad: Any
) -> None:
    made = held(NAMED, tool("f", properties(x=schema)))
    assert await fits(grammars, made, {"x": good}, {"x": bad}, {}) == [True, False, False]
    strict = tool("g", properties(x={"type": "integer"}), strict=True)
    made = held("required", tool("f", properties(x=schema)), strict)
    calls = [[{"name": "f", "parameters": {"x": good}}], [{"name": "f", "parameters": {"x": bad}}]]
    assert await fits(grammars, made, *calls, [{"name": "g", "parameters": {"x": "y"}}]) == [True, False, False]


@pytest.mark.parametrize(
    "schema", [{"type": "string", "pattern": "("}, {"minLength": 3, "maxLength": 2, "type": "string"}]
)
async def test_uncompilable_schema_keeps_property_names_and_types(grammars: GrammarService, schema: Any) -> None:
    made = held(NAMED, tool("f", properties(x=schema)))
    assert await fits(grammars, made, {"x": "y"}, {"x": 3}, {}) == [True, False, False]


async def test_if_that_does_not_help_it_is_any_object(grammars: GrammarService) -> None:
    made = held(NAMED, tool("f", properties(x={"allOf": [{"type": "string"}, {"type": "null"}]})))
    assert await fits(grammars, made, {"x": 3}, {}, []) == [True, True, False]


async def test_a_strict_function_is_refused_at_its_place(grammars: GrammarService) -> None:
    bad = properties(x={"type": "string", "pattern": "("})
    with pytest.raises(InvalidRequest) as caught:
        await compile_loosening(grammars, held("required", tool("f", bad), tool("g", bad, strict=True)))
    assert caught.value.param == "tools.items.anyOf[1].properties.parameters"
