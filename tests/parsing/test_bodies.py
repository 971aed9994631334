"""Large bodies are parsed in a separate process, with the same results and errors as small ones."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pickle
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from tokka.core import TokensPrompt
from tokka.engine.supervision.processes import PARSER_NAME
from tokka.errors import InvalidRequest, ServerOverloaded, UnsupportedParameter
from tokka.observability.loop_turns import LoopTurns, Turn
from tokka.parsing.bodies import BodyParser, _Plain, is_light
from tokka.parsing.worker import PARSABLE, answer_to
from tokka.protocol.chat import ChatRequest
from tokka.protocol.completions import CompletionRequest
from tokka.protocol.fingerprint import fingerprint_of
from tokka.protocol.responses.resource import ResponseForm
from tokka.protocol.validation import validated
from tokka.sandbox.process import start_confined

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {}}}},
}
FLAT_TOOL = {"type": "function", **TOOL["function"]}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hei"}]}
ANTHROPIC_TOOL = {"name": "f", "input_schema": {"type": "object", "properties": {"x": {}}}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("ChatRequest", CHAT),
    ("ChatRequest", {**CHAT, "stream": True, "stream_options": {"include_usage": True}, "logprobs": True, "n": 2}),
    ("ChatRequest", {**CHAT, "tools": [TOOL], "tool_choice": "required", "logit_bias": {"5": 1}}),
    ("ChatRequest", {**CHAT, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}}),
    ("ChatRequest", {**CHAT, "response_format": {"type": "json_object"}, "chat_template_kwargs": {"a": 1}}),
    ("CompletionRequest", {"model": "m", "prompt": ["a", "b"], "echo": True, "best_of": 3, "stop": ["x"]}),
    ("CompletionRequest", {"model": "m", "prompt": [[1, 2], [3]], "allowed_token_ids": [1, 2]}),
    ("MessagesRequest", {**CHAT, "max_tokens": 1, "tools": [ANTHROPIC_TOOL], "tool_choice": {"type": "any"}}),
    ("MessagesRequest", {**CHAT, "max_tokens": 1, "messages": [{"role": "user", "content": [IMAGE]}]}),
    ("CountTokensRequest", {**CHAT, "tools": [ANTHROPIC_TOOL]}),
    ("ResponsesRequest", {"model": "m", "input": [{"role": "user", "content": "Hei"}], "metadata": {"a": "b"}}),
    ("ResponsesRequest", {"model": "m", "input": "Hei", "tools": [FLAT_TOOL], "tool_choice": "required"}),
    ("TokenizeRequest", {"messages": CHAT["messages"]}),
    ("DetokenizeRequest", {"tokens": [1, 2, 3]}),
]


@pytest.fixture
async def bodies() -> AsyncIterator[BodyParser]:
    parser = BodyParser()
    yield parser
    await parser.close()


def large(body: dict[str, Any], spaces: int = 300 << 10) -> bytes:
    """Return a body that is large enough for a parser process."""
    return json.dumps(body).encode() + b" " * spaces


def status_of(process: psutil.Process) -> str:
    return Path(f"/proc/{process.pid}/status").read_text()


def comparable(parsed: Any) -> Any:
    if not hasattr(parsed, "request"):
        return parsed
    # A body parsed in this process is hashed only on demand.
    parsed = replace(parsed, request=replace(parsed.request, id="", fingerprint=fingerprint_of(parsed.request)))
    if isinstance(parsed.form, ResponseForm):
        # Items without an id get a new one.
        items = tuple({**item, "id": ""} for item in parsed.form.items)
        parsed = replace(parsed, form=replace(parsed.form, items=items))
    return parsed


@pytest.mark.parametrize(("kind", "body"), BODIES, ids=str)
async def test_body_parsed_apart_equals_one_parsed_here(kind: str, body: dict[str, Any], bodies: BodyParser) -> None:
    here = validated(PARSABLE[kind], json.dumps(body).encode()).parsed()
    apart = await bodies.parse(PARSABLE[kind], large(body), "tenant")
    assert comparable(apart) == comparable(here)


async def test_body_parsed_apart_is_refused_alike(bodies: BodyParser) -> None:
    wrong = {**CHAT, "temperature": 3}
    with pytest.raises(InvalidRequest) as refused:
        await bodies.parse(ChatRequest, large(wrong), "tenant")
    with pytest.raises(InvalidRequest) as refused_here:
        await bodies.parse(ChatRequest, json.dumps(wrong).encode(), "tenant")
    assert (refused.value.message, refused.value.param) == (refused_here.value.message, refused_here.value.param)
    with pytest.raises(UnsupportedParameter):
        await bodies.parse(ChatRequest, large({**CHAT, "audio": {}}), "tenant")


async def test_body_parser_leaves_the_loop_free() -> None:
    token_ids = json.dumps({"model": "m", "prompt": [[5] * 2000] * 500}).encode()
    many = json.dumps({**CHAT, "messages": [*CHAT["messages"]] * 4096}).encode()
    broken = b'{"model": "m", "prompt": [' + b"1," * (2 << 20)

    turns: list[Turn] = []
    parser = BodyParser()
    # Start the parser process before the measurement.
    await parser.parse(CompletionRequest, large({"model": "m", "prompt": "a"}), "tenant")
    measure = LoopTurns(turns.append)
    measure.start()
    parsed = await parser.parse(CompletionRequest, token_ids, "tenant")
    prompts = [prompt for prompt in parsed.request.prompts if isinstance(prompt, TokensPrompt)]
    assert sum(len(prompt.token_ids) for prompt in prompts) == 1_000_000
    await parser.parse(ChatRequest, many, "tenant")
    with pytest.raises(InvalidRequest):
        await parser.parse(CompletionRequest, broken, "tenant")
    measure.close()
    await parser.close()
    assert max((turn.cpu_s for turn in turns), default=0.0) < 0.05


async def test_body_parser_goes_on_when_a_process_is_killed(bodies: BodyParser) -> None:
    await bodies.parse(ChatRequest, large(CHAT), "tenant")
    for process in psutil.Process().children():
        if process.name() == PARSER_NAME:
            process.kill()
    assert (await bodies.parse(ChatRequest, large(CHAT), "tenant")).form.model == "m"


async def test_closing_during_a_start_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()
    processes: list[asyncio.subprocess.Process] = []

    async def held(module: str, *arguments: str) -> asyncio.subprocess.Process:
        processes.append(await start_confined(module, *arguments))
        started.set()
        await go_on.wait()
        return processes[0]

    monkeypatch.setattr("tokka.parsing.bodies.start_confined", held)
    parser = BodyParser()
    parsing = asyncio.create_task(parser.parse(ChatRequest, large(CHAT), "tenant"))
    await started.wait()
    await parser.close()
    go_on.set()
    with pytest.raises(ServerOverloaded, match="stopping"):
        await parsing
    assert processes[0].returncode is not None


async def test_body_parser_finishes_for_others_when_one_leaves(bodies: BodyParser) -> None:
    first = asyncio.create_task(bodies.parse(ChatRequest, large(CHAT, 4 << 20), "tenant"))
    await asyncio.sleep(0)
    others = [asyncio.create_task(bodies.parse(ChatRequest, large(CHAT), "other")) for _ in range(3)]
    first.cancel()
    assert [(await other).form.model for other in others] == ["m"] * 3


async def test_parser_process_has_no_secret_and_no_way_out(bodies: BodyParser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKKA_API_KEY", "secret")
    await bodies.parse(ChatRequest, large(CHAT), "tenant")
    (process,) = (child for child in psutil.Process().children() if child.name() == PARSER_NAME)
    assert "TOKKA_API_KEY" not in process.environ()
    # 2: a filter of system calls is active. tests/sandbox/test_confinement.py tests the filter itself.
    assert "Seccomp:\t2" in status_of(process)
    assert process.rlimit(psutil.RLIMIT_NOFILE) == (1, 1)


async def test_body_parser_leaves_no_process_behind() -> None:
    parser = BodyParser()
    await parser.parse(ChatRequest, large(CHAT), "tenant")
    await parser.close()
    assert not [process for process in psutil.Process().children() if process.name() == PARSER_NAME]


async def test_body_parser_starts_none_after_its_close() -> None:
    parser = BodyParser()
    await parser.parse(ChatRequest, large(CHAT), "tenant")
    running = asyncio.create_task(parser.parse(ChatRequest, large(CHAT, 16 << 20), "tenant"))
    # Let the parser send the body to the process.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await parser.close()
    with pytest.raises(ServerOverloaded):
        await running
    assert not [process for process in psutil.Process().children() if process.name() == PARSER_NAME]


def test_answer_of_a_process_holds_plain_data_only() -> None:
    for kind, body in BODIES:
        assert _Plain(io.BytesIO(answer_to(kind, json.dumps(body).encode()))).load()
    for hostile in (os.system, json.loads, pickle.loads):
        with pytest.raises(pickle.UnpicklingError):
            _Plain(io.BytesIO(pickle.dumps(hostile))).load()


def test_light_bodies_are_small_and_have_few_parts() -> None:
    assert is_light(json.dumps({**CHAT, "messages": [{"role": "user", "content": "word " * 40_000}]}).encode())
    assert not is_light(json.dumps({"model": "m", "prompt": [1] * 5000}).encode())
    assert not is_light(b" " * (300 << 10))


def test_loop_policy_of_the_server_parses_apart_too() -> None:
    async def parse() -> str:
        parser = BodyParser()
        parsed = await parser.parse(ChatRequest, large(CHAT, 8 << 20), "tenant")
        await parser.close()
        return parsed.form.model

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(parse()) == "m"
