"""Structured outputs on the real engine: every kind of constraint, invalid and hostile ones, 1000 random schemas."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal

import httpx
import jsonschema_rs
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field

from tests.e2e.schemas import schema as schema_of
from tests.program import Program
from tests.wire import endings, metric, post, stream, text_of

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MODEL = "SmolLM2-135M-Instruct"
# Number of random schemas. For a longer run:
# TOKKA_SCHEMAS=20000 scripts/test tests/e2e/test_structured.py -k chance
SCHEMAS = int(os.environ.get("TOKKA_SCHEMAS", "1000"))
AT_ONCE = 48

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "size": {"enum": ["small", "large"]},
        "districts": {"type": "array", "items": {"type": "string", "maxLength": 6}, "minItems": 1, "maxItems": 1},
        "founded": {"type": "integer", "minimum": 1500, "maximum": 1999},
    },
    "required": ["name", "size", "districts", "founded"],
    "additionalProperties": False,
}
# The request fields, and the check of a text.
KINDS: dict[str, tuple[dict[str, Any], Any]] = {
    "json": ({"structured_outputs": {"json": CITY}}, lambda text: jsonschema_rs.is_valid(CITY, json.loads(text))),
    "regex": (
        {"structured_outputs": {"regex": "[A-Z][a-z]{2,9}, [0-9]{4}"}},
        re.compile("[A-Z][a-z]{2,9}, [0-9]{4}").fullmatch,
    ),
    "choice": ({"structured_outputs": {"choice": ["käräjät", "a|b", "(c"]}}, {"käräjät", "a|b", "(c"}.__contains__),
    "lark": ({"structured_outputs": {"grammar": 'start: "<" /[a-z]{1,5}/ ">"'}}, re.compile("<[a-z]{1,5}>").fullmatch),
    "gbnf": ({"structured_outputs": {"grammar": 'root ::= "yes" | "no" root'}}, re.compile("(no)*yes").fullmatch),
}
FORMATS = {
    "json_schema": {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}},
    "not strict": {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}},
}


@pytest.fixture(scope="module")
def client(smollm2: Program) -> Iterator[httpx.Client]:
    with smollm2.client() as client:
        yield client


def chat(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Helsinki"}]
    return {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 120, **fields}


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "Helsinki is", "temperature": 0, "max_tokens": 120, **fields}


def serves(client: httpx.Client) -> None:
    """Check that the engine still answers and enforces a constraint."""
    answer = post(client, TEXT, completion(structured_outputs={"choice": ["still here"]}))
    assert answer["choices"][0]["text"] == "still here"


# -- every kind of constraint -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_an_answer_keeps_to_its_form_streamed_and_not(client: httpx.Client, name: str) -> None:
    fields, is_right = KINDS[name]
    for path, body in ((CHAT, chat(**fields)), (TEXT, completion(**fields))):
        answer = post(client, path, body)["choices"][0]
        text = answer["message"]["content"] if path == CHAT else answer["text"]
        assert is_right(text), text
        assert (answer["finish_reason"], answer["stop_reason"]) == ("stop", None)
        chunks = stream(client, path, body)
        assert is_right(text_of(chunks)), text_of(chunks)
        assert endings(chunks) == [(0, "stop", None)]


@pytest.mark.parametrize("name", FORMATS)
def test_a_response_format_is_kept_to(client: httpx.Client, name: str) -> None:
    body = chat(response_format=FORMATS[name])
    plain = post(client, CHAT, body)["choices"][0]["message"]["content"]
    for text in (plain, text_of(stream(client, CHAT, body))):
        assert jsonschema_rs.is_valid(CITY, json.loads(text))
        assert list(json.loads(text)) == list(CITY["properties"])
        assert "\n" not in text


@pytest.mark.parametrize(
    "fields", [{"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}]
)
def test_any_object_is_an_object(client: httpx.Client, fields: dict[str, Any]) -> None:
    # The model decides how long the object gets, so only its start is certain.
    text = post(client, CHAT, chat(**fields))["choices"][0]["message"]["content"]
    assert text.startswith("{")


def test_a_response_format_of_text_constrains_nothing(client: httpx.Client) -> None:
    # Constraints refuse `ignore_eos`; without one the completion runs to its limit.
    body = chat(max_tokens=12, ignore_eos=True, response_format={"type": "text"})
    answer = post(client, CHAT, body)
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (12, "length")


def test_an_answer_cut_by_its_length_says_so(client: httpx.Client) -> None:
    answer = post(client, CHAT, chat(response_format=FORMATS["json_schema"], max_tokens=3))["choices"][0]
    assert (answer["finish_reason"], answer["stop_reason"]) == ("length", None)
    assert answer["message"]["content"].startswith('{"')


class Person(BaseModel):
    name: str = Field(max_length=16)
    age: int = Field(ge=0, le=150)
    mood: Literal["glad", "sad"]
    friend: str | None = Field(max_length=8)


def test_the_openai_package_parses_into_a_model(smollm2: Program) -> None:
    with OpenAI(base_url=f"{smollm2.url}/v1", api_key="none", timeout=60, max_retries=0) as openai:
        answer = openai.chat.completions.parse(
            model=MODEL,
            messages=[{"role": "user", "content": "Who is Anna, 30?"}],
            response_format=Person,
            max_tokens=200,
            temperature=0,
        )
        person = answer.choices[0].message.parsed
        assert isinstance(person, Person)
        with openai.chat.completions.stream(
            model=MODEL,
            messages=[{"role": "user", "content": "Who is Anna, 30?"}],
            response_format=Person,
            max_tokens=200,
            temperature=0,
        ) as events:
            assert isinstance(events.get_final_completion().choices[0].message.parsed, Person)


# -- constraints with other fields ------------------------------------------------------------------------------


def test_each_of_several_choices_keeps_to_the_form(client: httpx.Client) -> None:
    fields = {"structured_outputs": {"regex": "[a-z]{3,6}"}, "n": 8, "temperature": 1.5, "seed": 7}
    texts = [choice["text"] for choice in post(client, TEXT, completion(**fields))["choices"]]
    assert len(texts) == 8
    assert all(re.fullmatch("[a-z]{3,6}", text) for text in texts)
    assert len(set(texts)) > 1


def test_each_of_several_prompts_keeps_to_the_form(client: httpx.Client) -> None:
    answer = post(client, TEXT, completion(prompt=["a", "b", "c"], structured_outputs={"regex": "[0-9]{3}"}, echo=True))
    assert all(re.fullmatch("[abc][0-9]{3}", choice["text"]) for choice in answer["choices"])


def test_best_of_ranks_answers_of_the_form(client: httpx.Client) -> None:
    fields = {"structured_outputs": {"regex": "[0-9]{3}"}, "best_of": 3, "temperature": 1, "max_tokens": 16}
    (choice,) = post(client, TEXT, completion(**fields))["choices"]
    assert re.fullmatch("[0-9]{3}", choice["text"])


def test_logprobs_are_of_the_answer(client: httpx.Client) -> None:
    answer = post(client, CHAT, chat(structured_outputs={"choice": ["other"]}, logprobs=True, top_logprobs=2))
    choice = answer["choices"][0]
    assert "".join(token["token"] for token in choice["logprobs"]["content"]) == choice["message"]["content"] == "other"


def test_excluded_tokens_have_openais_minimum_logprob(client: httpx.Client) -> None:
    held = {"structured_outputs": {"choice": ["other"]}}
    (choice,) = post(client, CHAT, chat(**held, logprobs=True, top_logprobs=2))["choices"]
    assert {top["logprob"] for token in choice["logprobs"]["content"] for top in token["top_logprobs"]} == {0, -9999}
    (choice,) = post(client, TEXT, completion(**held, logprobs=2))["choices"]
    assert {logprob for top in choice["logprobs"]["top_logprobs"] for logprob in top.values()} == {0, -9999}


def test_a_stop_string_cuts_the_form_short(client: httpx.Client) -> None:
    answer = post(client, TEXT, completion(structured_outputs={"regex": "abc-def"}, stop="-"))["choices"][0]
    assert (answer["text"], answer["finish_reason"], answer["stop_reason"]) == ("abc", "stop", "-")


def test_biases_and_penalties_do_not_break_the_form(client: httpx.Client) -> None:
    fields = {"logit_bias": {str(token): -100 for token in range(1000)}, "presence_penalty": 2, "min_p": 1, "top_k": 1}
    answer = post(client, TEXT, completion(structured_outputs={"regex": "ab{3}c"}, **fields))["choices"][0]
    assert (answer["text"], answer["finish_reason"]) == ("abbbc", "stop")


def test_an_empty_answer_can_be_the_form(client: httpx.Client) -> None:
    answer = post(client, TEXT, completion(structured_outputs={"regex": "(a{500}){0}"}))["choices"][0]
    assert (answer["text"], answer["finish_reason"]) == ("", "stop")


# -- invalid constraints ----------------------------------------------------------------------------------------

_S = "structured_outputs"
_F = "response_format.json_schema"


def _format(**schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


BAD: list[tuple[dict[str, Any], str]] = [
    ({_S: {}}, _S),
    ({_S: {"regex": "a", "choice": ["a"]}}, _S),
    ({_S: {"json_object": True, "json": {}}}, _S),
    ({_S: {"json_object": False}}, f"{_S}.json_object"),
    ({_S: "a"}, _S),
    ({_S: {"structural_tag": "{}"}}, f"{_S}.structural_tag.type"),
    ({_S: {"regex": ""}}, f"{_S}.regex"),
    ({_S: {"regex": 5}}, f"{_S}.regex"),
    ({_S: {"regex": "("}}, f"{_S}.regex"),
    ({_S: {"regex": "a" * 9000}}, f"{_S}.regex"),
    ({_S: {"regex": r"\bword\b"}}, f"{_S}.regex"),
    ({_S: {"regex": r"(a)\1"}}, f"{_S}.regex"),
    ({_S: {"regex": r"[^\s\S]"}}, f"{_S}.regex"),
    ({_S: {"choice": []}}, f"{_S}.choice"),
    ({_S: {"choice": "ab"}}, f"{_S}.choice"),
    ({_S: {"choice": ["a", ""]}}, f"{_S}.choice[1]"),
    ({_S: {"choice": ["a", 5]}}, f"{_S}.choice[1]"),
    ({_S: {"choice": ["a"] * 5000}}, f"{_S}.choice"),
    ({_S: {"choice": ["a" * 70000]}}, f"{_S}.choice"),
    ({_S: {"grammar": ""}}, f"{_S}.grammar"),
    ({_S: {"grammar": "start: other"}}, f"{_S}.grammar"),
    ({_S: {"grammar": "start: start"}}, f"{_S}.grammar"),
    ({_S: {"grammar": 'start: %json {"type": "integer", "multipleOf": 999983}'}}, f"{_S}.grammar"),
    ({_S: {"grammar": "x" * 70000}}, f"{_S}.grammar"),
    ({_S: {"json": []}}, f"{_S}.json"),
    ({_S: {"json": "not json"}}, f"{_S}.json"),
    ({_S: {"json": {"uniqueItems": True}}}, f"{_S}.json.uniqueItems"),
    ({_S: {"json": {"enum": []}}}, f"{_S}.json.enum"),
    ({_S: {"json": {"minItems": 10**6}}}, f"{_S}.json.minItems"),
    ({_S: {"choice": ["a"]}, "min_tokens": 2}, "min_tokens"),
    ({_S: {"choice": ["a"]}, "ignore_eos": True}, "ignore_eos"),
    ({_S: {"choice": ["a"]}, "bad_words": ["a"]}, "bad_words"),
    ({_S: {"choice": ["a"]}, "allowed_token_ids": [5]}, "allowed_token_ids"),
]
BAD_FORMATS: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "json_schema"}}, _F),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}}, f"{_F}.name"),
    ({"response_format": {"type": "json_object"}, _S: {"regex": "a"}}, _S),
    (_format(properties={"age": {"not": {}}}), f"{_F}.schema.properties.age.not"),
    (_format(properties={"a": {"$ref": "https://example.org/a"}}), f"{_F}.schema.properties.a.$ref"),
    (_format(properties={"a": {"type": "string", "pattern": "(a"}}), f"{_F}.schema.properties.a.pattern"),
    (_format(anyOf=[{"type": "string"}, {"uniqueItems": True}]), f"{_F}.schema.anyOf[1].uniqueItems"),
    (
        _format(type="object", properties={"a": {"minimum": 2, "maximum": 1, "type": "integer"}}, required=["a"]),
        f"{_F}.schema.properties.a",
    ),
    (_format(type="object", properties={"a": {"$ref": "#"}}, required=["a"]), f"{_F}.schema"),
    (_format(**{"x-guidance": {"lenient": True}}), f"{_F}.schema.x-guidance"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=lambda value: str(value)[:50])
def test_a_wrong_constraint_is_refused_where_it_is_wrong(
    client: httpx.Client, fields: dict[str, Any], param: str
) -> None:
    for path, body in ((CHAT, chat(**fields)), (TEXT, completion(**fields)), (TEXT, completion(**fields, stream=True))):
        response = client.post(path, json=body)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["param"] == param, error
        assert error["code"] in ("invalid_value", "unsupported_parameter")
        assert len(error["message"]) < 600


@pytest.mark.parametrize(("fields", "param"), BAD_FORMATS, ids=lambda value: str(value)[:50])
def test_a_wrong_response_format_is_refused_where_it_is_wrong(
    client: httpx.Client, fields: dict[str, Any], param: str
) -> None:
    response = client.post(CHAT, json=chat(**fields))
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


# -- hostile constraints ----------------------------------------------------------------------------------------


def _deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    return schema


NASTY: dict[str, tuple[dict[str, Any], set[int]]] = {
    "nested repetition": ({"regex": "((a{1,100}){1,100}){1,100}"}, {200, 400}),
    "backtracking": ({"regex": "(a+)+(b|c*)*$"}, {200}),
    "a repetition without bound": ({"regex": "a{1,1000000}"}, {200, 400}),
    "many states": ({"regex": r"(.*[ab]){1,200}.{30}c"}, {400}),
    "many more states": ({"regex": r"(\w+[a-m]\w{20})+ x"}, {400}),
    "alternatives": ({"regex": "|".join(f".*w{i}.{{{i % 17}}}x" for i in range(400))}, {200, 400}),
    "braces": ({"regex": "(" * 4000 + "a" + ")" * 4000}, {400}),
    "a null byte": ({"regex": "a\0b"}, {200, 400}),
    "without end": ({"grammar": 'start: "a" start'}, {400}),
    "ambiguous": ({"grammar": 'start: start start start | start start | "a" | ""'}, {200, 400}),
    "slow": ({"grammar": "start: " + "(a|b)? " * 8000 + '\na: "x" b\nb: "y" | "x"'}, {400}),
    "crashing": (
        {
            "grammar": "root ::= a0\n"
            + "\n".join(f'a{i} ::= ("x" a{i + 1} | [a-z]+ "y")*' for i in range(1500))
            + '\na1500 ::= "z"'
        },
        {400},
    ),
    "many choices": ({"choice": [f"choice number {i}" for i in range(3000)]}, {200}),
    "a large enum": ({"json": {"enum": [f"value {i}" for i in range(4000)]}}, {200}),
    "optional properties": ({"json": {"properties": {f"p{i}": {"type": "string"} for i in range(1000)}}}, {200, 400}),
    "depth": ({"json": _deep(30)}, {200}),
    "too much depth": ({"json": _deep(60)}, {400}),
    "a loop": ({"json": {"$ref": "#"}}, {400}),
    "a recursion": ({"json": {"type": "array", "items": {"$ref": "#"}}}, {200}),
    "a product": (
        {
            "json": {
                "allOf": [
                    {"anyOf": [{"properties": {f"k{j}_{i}": {"type": "null"}}} for i in range(5)]} for j in range(9)
                ]
            }
        },
        {400},
    ),
    "long lists": (
        {
            "json": {
                "type": "array",
                "minItems": 4096,
                "items": {"type": "array", "minItems": 4096, "items": {"type": "null"}},
            }
        },
        {200},
    ),
    "a long string": ({"json": {"type": "string", "minLength": 1000000}}, {200}),
    "multiples": ({"json": {"allOf": [{"type": "integer", "multipleOf": i} for i in (997, 991, 983)]}}, {400}),
    "patterns": ({"json": {"allOf": [{"type": "string", "pattern": f"a.{{{i}}}b"} for i in range(1, 40)]}}, {200, 400}),
}


@pytest.mark.parametrize("name", NASTY)
def test_a_nasty_constraint_harms_nobody(client: httpx.Client, smollm2: Program, name: str) -> None:
    constraint, statuses = NASTY[name]
    engine = smollm2.core().pid
    response = client.post(TEXT, json=completion(structured_outputs=constraint, max_tokens=24, temperature=1, seed=1))
    assert response.status_code in statuses, response.text
    serves(client)
    assert smollm2.core().pid == engine


def test_with_many_choices_a_nasty_one_is_refused(client: httpx.Client) -> None:
    for regex in (r"(\w+[a-m]\w{20})+ x", r"(\w+[a-m]\w{10})+ x"):
        body = completion(structured_outputs={"regex": regex}, max_tokens=300, temperature=1, n=64)
        response = client.post(TEXT, json=body)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == "structured_outputs.regex"


async def test_one_that_grows_late_takes_little_memory_and_nobodys_time(smollm2: Program) -> None:
    """The regex begins with more plain text than the trial run covers. Then each character adds thousands of states."""
    regex = " the capital of Finland and has a population of about 600 thousand people" * 14 + r"(\w+[a-m]\w{20})+ x"
    nasty = completion(structured_outputs={"regex": regex}, max_tokens=500, temperature=1, n=16, seed=1)
    core, largest = smollm2.core(), 0
    before = core.memory_info().rss
    arrivals: list[float] = []

    async with httpx.AsyncClient(base_url=smollm2.url, timeout=120) as client:
        ending = asyncio.create_task(client.post(TEXT, json=nasty))
        plain = completion(max_tokens=1000, stream=True, ignore_eos=True)
        async with client.stream("POST", TEXT, json=plain) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    arrivals.append(time.monotonic())
                    largest = max(largest, core.memory_info().rss)
                if ending.done():
                    break
        ended = await ending
    assert ended.status_code == 500, ended.text[:300]
    assert ended.json()["error"]["param"] == "structured_outputs.regex"
    assert ended.headers["x-should-retry"] == "false"
    assert largest - before < 200 << 20
    # The plain stream went on while the hostile request ran.
    assert len(arrivals) > 100
    assert max(later - earlier for earlier, later in pairwise(arrivals)) < 5
    assert smollm2.core().pid == core.pid


async def test_while_nasty_ones_are_refused_others_are_answered(smollm2: Program) -> None:
    slow = [{"grammar": "start: " + "(a|b)? " * (8000 + i) + '\na: "x" b\nb: "y" | "x"'} for i in range(1, 4)]
    async with httpx.AsyncClient(base_url=smollm2.url, timeout=60) as client:
        nasty = [client.post(TEXT, json=completion(structured_outputs=one)) for one in slow]
        plain = client.post(TEXT, json=completion(max_tokens=4))
        known = client.post(TEXT, json=completion(structured_outputs={"choice": ["still here"]}))
        *refused, answered, kept = await asyncio.gather(*nasty, plain, known)
    assert [response.status_code for response in refused] == [400] * len(slow)
    assert answered.elapsed.total_seconds() < max(response.elapsed.total_seconds() for response in refused)
    assert kept.json()["choices"][0]["text"] == "still here"


# -- random schemas ---------------------------------------------------------------------------------------------


async def test_no_schema_by_chance_harms_the_engine(smollm2: Program) -> None:
    """A few tokens per schema test compiling and masking. A completion that ended by itself must match its schema."""
    engine = smollm2.core().pid
    places = asyncio.Semaphore(AT_ONCE)
    seen: dict[int, int] = {}

    async with httpx.AsyncClient(base_url=smollm2.url, timeout=120) as client:

        async def ask(seed: int) -> None:
            schema = schema_of(seed)
            body = completion(prompt="A", structured_outputs={"json": schema}, max_tokens=6, temperature=1, seed=seed)
            async with places:
                # The compile queue is bounded; a refusal carries a Retry-After.
                while (response := await client.post(TEXT, json=body)).status_code == 503:
                    assert response.json()["error"]["code"] == "server_overloaded", (schema, response.text)
                    await asyncio.sleep(float(response.headers["retry-after"]))
            seen[response.status_code] = seen.get(response.status_code, 0) + 1
            if response.status_code == 500:
                # A schema may become unsatisfiable at some token, which shows only during generation.
                assert "could not be continued" in response.text, (schema, response.text)
                return
            if response.status_code == 400:
                assert response.json()["error"]["param"].startswith("structured_outputs.json"), (schema, response.text)
                return
            assert response.status_code == 200, (schema, response.text)
            choice = response.json()["choices"][0]
            # The checking library does not accept numbers that are too large for a float.
            if choice["finish_reason"] == "stop" and not re.search("[eE][+-]?[0-9]{3}", choice["text"]):
                assert jsonschema_rs.is_valid(schema, json.loads(choice["text"])), (schema, choice["text"])

        await asyncio.gather(*(ask(seed) for seed in range(SCHEMAS)))
    assert seen.get(500, 0) < SCHEMAS / 100
    # The test is meaningful only if the server accepts some schemas and refuses others.
    assert seen[200] > SCHEMAS / 4
    assert seen[400] > SCHEMAS / 20
    assert smollm2.core().pid == engine
    with smollm2.client() as plain:
        serves(plain)
        assert metric(plain, "tokka_engine_restarts_total") == 0


# -- numbers without a bound end


@pytest.mark.parametrize("schema", [{"type": "integer"}, {"minimum": 0}, {}, {"type": "number"}], ids=str)
def test_a_number_without_a_bound_ends(client: httpx.Client, schema: dict[str, Any]) -> None:
    seven = {str(post(client, "/tokenize", {"prompt": "7"})["tokens"][0]): 100}
    form = {"type": "object", "properties": {"n": schema}, "required": ["n"]}
    fields = {"logit_bias": seven, "temperature": 0, "max_tokens": 60}
    answer = post(client, "/v1/completions", completion(structured_outputs={"json": form}, **fields))
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ('{"n":' + "7" * 19 + "}", "stop")
