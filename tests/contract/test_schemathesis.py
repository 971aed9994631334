"""The real server keeps to its OpenAPI document, with valid and with invalid data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from pydantic import TypeAdapter
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection

from tests.program import Program, running
from tokka.app import create_server
from tokka.engine.fake import FakeEngine, FakeOptions
from tokka.engine.script import VOCAB_SIZE
from tokka.protocol.anthropic.models import AnthropicEvent
from tokka.protocol.response_models import ChatCompletionChunk, Completion, ErrorBody
from tokka.protocol.responses.models import ResponseEvent
from tokka.settings import Settings

# Errors of rules between fields and of facts about the model, which JSON Schema cannot state. Any other 400 for valid
# data is a bug of the document.
NOT_IN_A_SCHEMA = re.compile(
    r"stream_options is only allowed with stream: true"
    r"|top_logprobs needs logprobs: true"
    r"|best_of \(\d+\) must be at least n"
    r"|best_of above n cannot be streamed"
    r"|prompts times choices may be at most"
    r"|listed words, biases and token ids are more than"
    r"|continue_final_message (needs|and)"
    r"|chat_template_kwargs may not set"
    r"|(reasoning_effort|verbosity) is also in chat_template_kwargs"
    r"|No assistant message before it has a tool call with this id"
    r"|is only allowed with tools"
    r"|Function names must be unique"
    r"|The function '.*' is not in tools"
    r"|The schema of a function's arguments must have the type 'object'"
    r"|cannot be enforced in a schema"
    r"|cannot be combined with (tools|strict functions)"
    r"|Send either prompt or messages"
    r"|tools are only allowed with messages"
    r"|maximum context length is \d+ tokens"
    r"|min_tokens \(\d+\) exceeds the"
    r"|logit_bias holds the token id"
    r"|Exactly one of json, regex, choice, grammar, json_object and structural_tag"
    r"|JSON is generated without whitespace"
    r"|prompt_logprobs cannot be streamed"
    r"|logprob_token_ids needs logprobs"
    r"|logprob_token_ids holds the token id"
    r"|cannot be combined with thinking_token_budget"
    r"|Send either structures with triggers, or format"
    r"|Input should start with one of the triggers"
    r"|A structural tag given as a string must be JSON"
    r"|response_format and structured_outputs cannot be combined"
    r"|cannot be combined with (response_format|structured_outputs)"
    r"|in a schema"
    r"|A schema must be JSON with numbers of at most 64 bits"
    r"|needs a real engine"
    r"|images are not supported by this model"
    r"|No message before it has a tool_use block with this id"
    r"|This server runs no tools itself"
    r"|The server keeps no conversations"
    r"|The tool '.*' is not in tools"
    r"|prompt is too long: \d+ tokens > \d+ maximum"
    r"|The input (is missing|has no items)"
    r"|Previous response .* was not found"
    r"|Item .* was not found"
    r"|Another server made this summary"
    r"|background needs a stored response"
    r"|No function_call item before it has the call_id"
    r"|The name of the function is missing"
    r"|is also set by another field"
    r"|dimensions is \d+; this model's vectors have"
    r"|Send exactly one of (text_1|text_2)"
    r"|\d+ texts cannot be compared with \d+"
    r"|is not in the calendar"
    r"|'since': it must not be after until"
    r"|'expires_at': it must be in the future"
)


def narrowed(schema: Any, name: str = "") -> Any:
    """Return the document with the name and the vocabulary size of this model."""
    if isinstance(schema, list):
        return [narrowed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if name == "model" and "maxLength" in str(schema):
        return {"enum": ["fake", None] if "anyOf" in schema else ["fake"]}
    schema = {key: narrowed(value, key) for key, value in schema.items()}
    if (schema.get("in"), schema.get("name")) == ("path", "model"):
        schema["schema"] = {"enum": ["fake"]}
    if schema.get("minimum") == 0 and schema.get("maximum") == 2**31 - 1:
        schema["maximum"] = VOCAB_SIZE - 1
    return schema


def framed(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with stream schemas as schemathesis reads them: for a whole event, not for its data.

    OpenAPI 3.1 leaves this open. OpenAI's document describes the data, which
    `each_event_is_a_documented_chunk` checks.
    """
    for path in CHUNKS:
        content = document["paths"][path]["post"]["responses"]["200"]["content"]
        content["text/event-stream"] = {"schema": {"type": "object", "required": ["data"]}}
    return document


def whole_numbers(value: Any) -> Any:
    """Write 1.0 as 1. They are one number in JSON Schema, but the server's integers are strict."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {name: whole_numbers(item) for name, item in value.items()}
        case list():
            return [whole_numbers(item) for item in value]
    return value


def patient(body: Any) -> Any:
    """Raise a short `timeout` to 30 s. Otherwise, the machine's speed decides whether the response begins in time."""
    if isinstance(body, dict) and body.get("timeout") is not None:
        return {**body, "timeout": max(30, body["timeout"])}
    return body


CHUNKS: dict[str, TypeAdapter[Any]] = {
    "/v1/chat/completions": TypeAdapter(ChatCompletionChunk | ErrorBody),
    "/v1/completions": TypeAdapter(Completion | ErrorBody),
    "/v1/messages": TypeAdapter(AnthropicEvent),
    "/v1/responses": TypeAdapter(ResponseEvent),
}
DOCUMENT = narrowed(create_server(Settings(engine="fake"), lambda: FakeEngine(FakeOptions())).document())
schema = schemathesis.openapi.from_dict(framed(DOCUMENT))
# A body that is invalid and also too large may be refused for its size.
schema.config.checks.negative_data_rejection.expected_statuses += ["413"]
# Replaced by `valid_data_is_accepted`, which allows the errors in NOT_IN_A_SCHEMA.
schema.config.checks.positive_data_acceptance.enabled = False
# Read streams to their end.
schema.config.max_stream_events = 100_000


ADMIN_KEY = "the-admin-key-of-the-test"


@pytest.fixture(scope="module")
def server() -> Iterator[Program]:
    """Start a separate server, because the generated requests create keys in it."""
    with running("--engine", "fake", "--admin-key", ADMIN_KEY) as program:
        yield program


def is_positive(case: schemathesis.Case[Any]) -> bool:
    return case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE


def is_right_after_all(case: schemathesis.Case[Any]) -> bool:
    """Return whether a body is valid although it was made to be invalid: another alternative may allow it."""
    body = DOCUMENT["paths"][case.path].get(case.method.lower(), {}).get("requestBody")
    if is_positive(case) or body is None or not isinstance(case.body, dict) or case.path_parameters or case.query:
        return False
    schema = {**body["content"]["application/json"]["schema"], "components": DOCUMENT["components"]}
    return jsonschema_rs.validator_for(schema).is_valid(case.body)


def valid_data_is_accepted(
    _context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    if is_positive(case) and response.status_code == 400:
        message = response.json()["error"]["message"]
        assert NOT_IN_A_SCHEMA.search(message), f"valid data was refused: {message}"


def each_event_is_a_documented_chunk(
    _context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    if response.headers["content-type"][0].startswith("text/event-stream"):
        *events, rest = response.content.decode().split("\n\n")
        assert rest == ""
        if case.path != "/v1/messages":
            assert events.pop() == "data: [DONE]"
        assert events
        for event in events:
            data = next(line for line in event.splitlines() if line.startswith("data: "))
            CHUNKS[case.path].validate_json(data.removeprefix("data: "), strict=True)


@schema.parametrize()
@settings(max_examples=120, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_server_keeps_its_own_document(case: schemathesis.Case[Any], server: Program) -> None:
    if is_positive(case):
        case.body = patient(whole_numbers(case.body))
    case.call_and_validate(
        base_url=server.url,
        headers={"authorization": f"Bearer {ADMIN_KEY}"},
        additional_checks=[valid_data_is_accepted, each_event_is_a_documented_chunk],
        excluded_checks=[negative_data_rejection] if is_right_after_all(case) else [],
    )


def open_objects(part: Any, path: str) -> Iterator[str]:
    """Yield the paths of objects that list their fields and still allow others."""
    if isinstance(part, list):
        for number, item in enumerate(part):
            yield from open_objects(item, f"{path}[{number}]")
    elif isinstance(part, dict):
        if {"properties", "patternProperties"} & set(part) and part.get("additionalProperties", True) is True:
            yield path
        for name, item in part.items():
            yield from open_objects(item, f"{path}.{name}")


@pytest.mark.parametrize(
    "name",
    [
        "ChatRequest",
        "CompletionRequest",
        "MessagesRequest",
        "CountTokensRequest",
        "ResponsesRequest",
        "TokenizeRequest",
        "DetokenizeRequest",
        "NewKeyRequest",
        "RotateRequest",
    ],
)
def test_request_objects_are_closed_in_the_document(name: str) -> None:
    assert list(open_objects(DOCUMENT["components"]["schemas"][name], name)) == []
