"""The dispatcher: a generation releases all that it held, however it ends, and has exactly one outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

import httpx
import pytest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from tests.dispatch.bench import Script, ScriptedEngine, allowance, bench, complete, endless, failing, record, request
from tests.supervised import until_ready
from tokka.app import create_server
from tokka.core import (
    Accepted,
    ChoiceDone,
    Event,
    Finished,
    GenerateRequest,
    Sampling,
    TextDelta,
    TextPrompt,
    Usage,
)
from tokka.errors import Draining, EngineError, InvalidRequest, ModelNotFound, ModelStarting, ServerOverloaded
from tokka.protocol.completions import CompletionEncoder
from tokka.settings import Settings


async def refusing(request: GenerateRequest) -> AsyncGenerator[Event, None]:
    raise InvalidRequest("no", param="prompt")
    yield


async def faulty(request: GenerateRequest) -> AsyncGenerator[Event, None]:
    yield Accepted(([1, 2],))
    raise KeyError("/secret/path")


async def test_finished_generation_releases_and_counts() -> None:
    async with bench(complete) as b:
        seen = record()
        generation = await b.dispatcher.open(request(), seen, allowance())
        assert b.admission.open_requests == 1
        events = [event async for event in generation]
        await generation.aclose()
        assert isinstance(events[-1], Finished)
        assert (seen.outcome, seen.prompt_tokens, seen.completion_tokens, seen.cached_tokens) == ("stop", 2, 1, 1)
        assert (b.admission.open_requests, b.engine.open_generations) == (0, 0)


async def test_generation_never_iterated_releases() -> None:
    async with bench(endless) as b:
        seen = record()
        generation = await b.dispatcher.open(request(), seen, allowance())
        await generation.aclose()
        await generation.aclose()
        assert seen.outcome == "aborted"
        assert (b.admission.open_requests, b.engine.open_generations) == (0, 0)


async def test_generation_closed_midway_is_aborted_with_what_it_used() -> None:
    async with bench(endless) as b:
        seen = record()
        generation = await b.dispatcher.open(request(), seen, allowance())
        events = aiter(generation)
        for _ in range(4):
            await anext(events)
        await generation.aclose()
        assert (seen.outcome, seen.completion_tokens) == ("aborted", 3)
        assert (b.admission.open_requests, b.engine.open_generations) == (0, 0)


async def test_refusal_of_the_engine_comes_before_anything_else_and_releases() -> None:
    async with bench(refusing) as b:
        with pytest.raises(InvalidRequest):
            await b.dispatcher.open(request(), record(), allowance())
        assert (b.admission.open_requests, b.engine.open_generations) == (0, 0)


async def test_failure_midway_is_an_error_and_releases() -> None:
    async with bench(failing) as b:
        seen = record()
        generation = await b.dispatcher.open(request(), seen, allowance())
        with pytest.raises(EngineError):
            async for _ in generation:
                pass
        await generation.aclose()
        assert seen.outcome == "error"
        assert (b.admission.open_requests, b.engine.open_generations) == (0, 0)


async def test_deadline_ends_every_open_choice_with_the_answer_so_far() -> None:
    async with bench(endless) as b:
        seen = record()
        generation = await b.dispatcher.open(request(n=2, timeout_s=0.05), seen, allowance())
        events = [event async for event in generation]
        await generation.aclose()
        assert events[-3:-1] == [ChoiceDone(0, "length", "timeout"), ChoiceDone(1, "length", "timeout")]
        assert events[-1] == Finished(Usage(2, seen.completion_tokens))
        assert seen.completion_tokens > 0
        assert seen.outcome == "timeout"
        assert b.engine.open_generations == 0


async def holding(request: GenerateRequest) -> AsyncGenerator[Event, None]:
    """Yield text that could still become a stop string, then wait for ever."""
    yield Accepted(([1, 2],))
    yield TextDelta(0, "a", (1,))
    yield TextDelta(0, "", (2,), held="bc")
    await asyncio.Event().wait()


async def test_deadline_returns_what_was_kept_back() -> None:
    async with bench(holding) as b:
        generation = await b.dispatcher.open(request(timeout_s=0.05), record(), allowance())
        texts = [event.text async for event in generation if isinstance(event, TextDelta)]
        await generation.aclose()
        assert "".join(texts) == "abc"


async def test_unknown_model_starting_full_and_draining_are_told_apart() -> None:
    async with bench(complete, ready=False) as b:
        with pytest.raises(ModelNotFound):
            await b.dispatcher.open(
                GenerateRequest("id", "other", (TextPrompt("x"),), Sampling()), record(), allowance()
            )
        with pytest.raises(ModelStarting):
            await b.dispatcher.open(request(), record(), allowance())
    async with bench(endless, max_open=2) as b:
        held = await b.dispatcher.open(request(n=2), record(), allowance())
        with pytest.raises(ServerOverloaded):
            await b.dispatcher.open(request(), record(), allowance())
        b.admission.start_draining()
        with pytest.raises(Draining):
            await b.dispatcher.open(request(), record(), allowance())
        await held.aclose()


@asynccontextmanager
async def served(script: Script) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    engine = ScriptedEngine(script)
    server = create_server(Settings(engine="fake"), lambda: engine)
    running: asyncio.Task[None] = asyncio.create_task(server.supervisor.run())
    await until_ready(server.supervisor)
    transport = httpx.ASGITransport(server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://tokka") as client:
        yield client, "fake"
    assert engine.open_generations == 0
    assert server.admission.open_requests == 0
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize(("script", "code"), [(failing, "engine_error"), (faulty, "internal_error")])
async def test_failure_of_a_plain_answer_is_a_500_that_says_no_more_than_it_should(script: Script, code: str) -> None:
    async with served(script) as (client, model):
        answer = await client.post("/v1/completions", json={"model": model, "prompt": "x"})
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == code
        assert "/secret/path" not in answer.text
        metrics = (await client.get("/metrics")).text
        assert f'tokka_requests_total{{endpoint="/v1/completions",model="{model}",outcome="error"}} 1.0' in metrics


@pytest.mark.parametrize(("script", "reason"), [(failing, "engine_error"), (faulty, "KeyError")])
async def test_failure_of_a_stream_is_one_event_before_done(script: Script, reason: str) -> None:
    headers = {"x-request-id": "the-one"}
    async with served(script) as (client, model):
        with capture_logs(processors=[merge_contextvars]) as lines:
            body = {"model": model, "prompt": "x", "stream": True}
            answer = await client.post("/v1/completions", json=body, headers=headers)
        assert answer.status_code == 200
        assert answer.text.count('"error"') == 1
        assert answer.text.endswith("data: [DONE]\n\n")
        assert "/secret/path" not in answer.text
        assert {line["request_id"] for line in lines} == {"the-one"}
        (access,) = (line for line in lines if line["event"] == "request_finished")
        assert (access["outcome"], access["reason"]) == ("error", reason)
        assert [line["event"] for line in lines if line is not access] == ["stream_failed"] * (script is faulty)


async def test_fault_in_an_encoder_is_an_error_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> NoReturn:
        raise KeyError("/secret/path")

    monkeypatch.setattr(CompletionEncoder, "encode", fail)
    async with served(complete) as (client, model):
        with capture_logs() as lines:
            answer = await client.post("/v1/completions", json={"model": model, "prompt": "x", "stream": True})
        assert answer.text.count('"error"') == 1
        assert (lines[-1]["outcome"], lines[-1]["reason"]) == ("error", "KeyError")
