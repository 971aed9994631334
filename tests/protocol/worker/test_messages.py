"""Requests, events and errors are the same behind the wire."""

from __future__ import annotations

import ast
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tokka import errors
from tokka.core import (
    ChatPrompt,
    ChoiceDone,
    Constraint,
    Embedding,
    Event,
    GenerateRequest,
    Image,
    Prompt,
    PromptEcho,
    PromptLogprobs,
    ReasoningDelta,
    Sampling,
    TextDelta,
    TextPrompt,
    TokenLogprob,
    TokensPrompt,
    ToolCallDelta,
    Tools,
)
from tokka.errors import ContextLengthExceeded, EngineDied, InvalidRequest, RateLimited, TokkaError
from tokka.protocol.worker import messages
from tokka.protocol.worker.events import event_of, packed_event
from tokka.protocol.worker.frames import BrokenFrame
from tokka.protocol.worker.requests import (
    ERRORS,
    error_of,
    ids_of,
    open_of,
    packed_error,
    packed_ids,
    request_of,
)
from tokka.required_calls import FunctionSchema, RequiredCalls

TOOLS = Tools(({"type": "function", "function": {"name": "f"}},), "named", "f", frozenset({"f"}), parallel=False)
CHAT = ChatPrompt(
    ({"role": "user", "content": "Hei", "n": [1, 2.5, None, True]},),
    TOOLS,
    add_generation_prompt=False,
    continue_final_message=True,
    template_kwargs={"thinking": True},
    reasoning_effort="low",
    verbosity="high",
    add_special_tokens=False,
    images=(Image("data:,", "messages", "too small"),),
)
CALLS = RequiredCalls((FunctionSchema("f", {"type": "object"}, {"a": 1}),), 3)
SAMPLING = Sampling(
    n=2,
    max_tokens=5,
    temperature=0.0,
    logit_bias={7: -1.5},
    stop=("a",),
    allowed_token_ids=(1, 2),
    constraint=Constraint("calls", "{}", "tools", CALLS, is_optional=True),
)
PROMPTS: tuple[Prompt, ...] = (
    CHAT,
    TextPrompt("x", add_special_tokens=True),
    TokensPrompt([1, 2**31 - 1, -1], "query"),
)
REQUEST = GenerateRequest(
    "id",
    "m",
    PROMPTS,
    SAMPLING,
    "embed",
    256,
    "prompt",
    "max_tokens",
    echo=True,
    truncate_prompt_tokens=-1,
    truncation_side="right",
    timeout_s=1.5,
    priority=-3,
    cache_salt="salt",
    tenant="t",
    max_tokens_cap=9,
    stream=False,
    keeps_answer=True,
    drops_oldest=True,
    fingerprint=b"\x00\xff",
    resume=(0, 2**32 - 1),
)
SCORE = TokenLogprob(1, "ä", b"\xc3", -0.5, (TokenLogprob(2, "b", b"b", None), TokenLogprob(3, "c", b"c", -math.inf)))
EVENTS: list[Event] = [
    TextDelta(3, "text", [1, 2], None, "held"),
    TextDelta(0, "", [], None),
    TextDelta(0, "t", [1], (SCORE,), "h", (SCORE, SCORE)),
    TextDelta(0, "t", [1], ()),
    ReasoningDelta(1, "why"),
    ToolCallDelta(1, 2, '{"a"', "f"),
    ChoiceDone(0, "stop", "END", -3.5),
    ChoiceDone(0, "length", 128_001),
    PromptEcho(1, "the prompt", (SCORE,)),
    PromptEcho(1, "the prompt", None),
    PromptLogprobs(0, (SCORE, SCORE), (0, 7)),
    Embedding(3, b"\x00\xff"),
]


def sent(message: messages.Message) -> Any:
    """Return a message of a worker as the gateway reads it."""
    (read,) = messages.from_worker(messages.encode([message]))
    return read


def test_a_request_is_the_same_behind_the_wire() -> None:
    (read,) = messages.from_gateway(messages.encode([open_of(7, REQUEST)]))
    assert isinstance(read, messages.Open)
    assert request_of(read) == REQUEST
    assert read.request == 7


def test_the_request_above_sets_every_field() -> None:
    plain = GenerateRequest("", "", (), Sampling())
    assert [f.name for f in fields(plain) if getattr(plain, f.name) == getattr(REQUEST, f.name)] == []


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_is_the_same_behind_the_wire(event: Event) -> None:
    assert event_of(sent(packed_event(1, event))) == event


def test_a_delta_may_hold_any_sequence_of_ids() -> None:
    read = event_of(sent(packed_event(1, TextDelta(0, "t", bytes([1, 2])))))
    assert read == TextDelta(0, "t", [1, 2])


def test_token_ids_take_four_bytes_each() -> None:
    ids = [0, 1, 2**31 - 1, 2**32 - 1]
    assert len(packed_ids(ids)) == 16
    assert ids_of(packed_ids(ids)) == ids


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("wrong", param="stop"),
        ContextLengthExceeded("long", param="messages", prompt_tokens=9, maximum=8),
        EngineDied(),
        errors.ServerOverloaded("full", retry_after_s=2.5),
        errors.NoChatTemplate(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_the_same_behind_the_wire(error: TokkaError) -> None:
    read = error_of(sent(messages.Failed(1, packed_error(error))).error)
    assert type(read) is type(error)
    assert vars(read) == vars(error)
    assert (read.body(), read.headers()) == (error.body(), error.headers())


def test_an_error_of_another_layer_becomes_an_engine_error() -> None:
    error = RateLimited("too many", of="requests", retry_after_s=1)
    assert type(error_of(packed_error(error))) is errors.EngineError


def test_every_error_that_an_engine_raises_is_known() -> None:
    raised = set()
    for path in (Path(errors.__file__).parent / "engine").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "tokka.errors":
                raised |= {alias.name for alias in node.names}
    found = {name: getattr(errors, name) for name in raised}
    kinds = {name for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, TokkaError)}
    # `TokkaError` is only caught, and the gateway itself raises the other.
    assert kinds - {"TokkaError", "EngineLost"} <= ERRORS.keys()


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x91\x93\x00\x01\x02", b"\x91\x92\xcc\xfa\x01", b"\x80"])
def test_other_bytes_are_a_broken_frame(payload: bytes) -> None:
    with pytest.raises(BrokenFrame):
        messages.from_worker(payload)
    with pytest.raises(BrokenFrame):
        messages.from_gateway(payload)
