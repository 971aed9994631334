"""The dispatcher: a generation releases all that it held, however it ends, and has exactly one outcome."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import NoReturn

import httpx
import pytest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from tests.dispatch.bench import Script, ScriptedEngine, allowance, bench, complete, endless, failing, record, request
from tests.events import events_of, one_by_one
from tests.supervised import until_ready
from tokka.admission.prompt_estimate import PromptEstimate
from tokka.app import create_server
from tokka.core import (
    Accepted,
    ChatPrompt,
    ChoiceDone,
    Event,
    Finished,
    GenerateRequest,
    Prompt,
    Sampling,
    TextDelta,
    TextPrompt,
    Usage,
)
from tokka.errors import (
    ContextLengthExceeded,
    Draining,
    EngineError,
    InvalidRequest,
    ModelNotFound,
    ModelStarting,
    ServerOverloaded,
)
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
        events = await events_of(generation)
        await generation.aclose()
        assert isinstance(events[-1], Finished)
        assert (seen.outcome, seen.prompt_tokens, seen.completion_tokens, seen.cached_tokens) == ("stop", 2, 1, 1)
        assert (b.admission.open_requests, b.engine.open_generations) == (0, 0)


async def test_generation_that_is_never_run_releases() -> None:
    async with bench(endless) as b:
        seen = record()
        generation = await b.dispatcher.open(request(), seen, allowance())
        await generation.aclose()
        await generation.aclose()
        assert seen.outcome == "aborted"
        assert (b.admission.open_requests, b.engine.open_generations) == (0, 0)


async def test_closed_generation_is_aborted_and_counts_its_tokens() -> None:
    async with bench(endless) as b:
        seen = record()
        generation = await b.dispatcher.open(request(), seen, allowance())
        async with aclosing(one_by_one(generation.run)) as events:
            for _ in range(4):
                await anext(events)
        await generation.aclose()
        assert (seen.outcome, seen.completion_tokens) == ("aborted", 3)
        assert (b.admission.open_requests, b.engine.open_generations) == (0, 0)


async def test_estimate_learns_from_the_shortened_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    async def short_context(request: GenerateRequest) -> AsyncGenerator[Event, None]:
        if len(request.prompts[0].messages) > 1:  # type: ignore[union-attr]
            raise ContextLengthExceeded("too long", param="input")
        yield Accepted((range(100),))

    learnt: list[Prompt] = []
    monkeypatch.setattr(PromptEstimate, "learn", lambda self, prompts, tokens: learnt.extend(prompts))
    async with bench(short_context) as b:
        turns = tuple({"role": "user", "content": f"{number}" * 400} for number in range(3))
        asked = replace(request(), prompts=(ChatPrompt(turns),), drops_oldest=True)
        await (await b.dispatcher.open(asked, record(), allowance())).aclose()
    assert learnt == [ChatPrompt(turns[-1:])]


class Words(str):
    """A text that tells whether it is still in use."""

    __slots__ = ("__weakref__",)


@pytest.mark.bytecodes
async def test_running_generation_does_not_keep_a_long_prompt() -> None:
    async def long_prompt(request: GenerateRequest) -> AsyncGenerator[Event, None]:
        # The script must not keep the request either.
        del request
        yield Accepted((range(5000),))
        yield TextDelta(0, "a", (1,))
        await asyncio.Event().wait()

    async with bench(long_prompt) as b:
        words = Words("x" * 20_000)
        seen = weakref.ref(words)
        asked = replace(request(), prompts=(TextPrompt(words),))
        del words
        generation = await b.dispatcher.open(asked, record(), allowance())
        b.engine.prepared.clear()
        del asked
        assert seen() is not None
        async with aclosing(one_by_one(generation.run)) as events:
            await anext(events)
            await anext(events)
            assert seen() is None
        await generation.aclose()


async def test_engine_refusal_releases_the_request() -> None:
    async with bench(refusing) as b:
        with pytest.raises(InvalidRequest):
            await b.dispatcher.open(request(), record(), allowance())
        assert (b.admission.open_requests, b.engine.open_generations) == (0, 0)


async def test_failure_midway_is_an_error_and_releases() -> None:
    async with bench(failing) as b:
        seen = record()
        generation = await b.dispatcher.open(request(), seen, allowance())
        with pytest.raises(EngineError):
            await events_of(generation)
        await generation.aclose()
        assert seen.outcome == "error"
        assert (b.admission.open_requests, b.engine.open_generations) == (0, 0)


async def test_deadline_ends_every_open_choice_with_the_answer_so_far() -> None:
    async with bench(endless) as b:
        seen = record()
        generation = await b.dispatcher.open(request(n=2, timeout_s=0.05), seen, allowance())
        events = await events_of(generation)
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


async def test_deadline_returns_held_back_text() -> None:
    async with bench(holding) as b:
        generation = await b.dispatcher.open(request(timeout_s=0.05), record(), allowance())
        texts = [event.text for event in await events_of(generation) if isinstance(event, TextDelta)]
        await generation.aclose()
        assert "".join(texts) == "abc"


async def test_open_distinguishes_unknown_starting_full_and_draining() -> None:
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
    running: asyncio.Task[None] = asyncio.create_task(server.replicas.run())
    await until_ready(server.replicas)
    transport = httpx.ASGITransport(server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://tokka") as client:
        yield client, "fake"
    assert engine.open_generations == 0
    assert server.admission.open_requests == 0
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize(("script", "code"), [(failing, "engine_error"), (faulty, "internal_error")])
async def test_failed_plain_answer_is_a_500_without_details(script: Script, code: str) -> None:
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
