"""Responses in the background: followed, resumed, cancelled, interrupted by the end of their server."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from tests.contract.bodies import RESPONSES, assert_error
from tests.contract.conftest import serving
from tokka.accounts.admin_views import NewKey
from tokka.admission.allowance import Allowance
from tokka.app import Server
from tokka.core import Limits
from tokka.dispatch import background
from tokka.dispatch.generation import Generation
from tokka.engine.base import Sink
from tokka.engine.fake import FakeOptions
from tokka.errors import ModelStarting, StateUnavailable
from tokka.protocol import sse
from tokka.protocol.responses.models import ResponseObject
from tokka.protocol.responses.resource import ResponseForm

SLOW = FakeOptions(token_delay_s=0.02)
ENDLESS = FakeOptions(token_delay_s=0.02, max_model_len=1 << 20, answer="x" * (1 << 18))


@asynccontextmanager
async def storing(folder: Path, options: FakeOptions) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    async with serving(options, state_dir=folder, api_key=["a-key"]) as server:
        await server.accounts.open()
        transport = httpx.ASGITransport(server.app)
        headers = {"authorization": "Bearer a-key"}
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://tokka", headers=headers) as client:
                yield server, client
        finally:
            await server.background.close()
            await server.accounts.close()


async def start(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post(RESPONSES, json={"model": "fake", "input": "Hei", "background": True, **fields})
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def events_in(text: str) -> list[dict[str, Any]]:
    *events, done, rest = [event for event in text.split("\n\n") if event != ": keep-alive"]
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.partition("data: ")[2]) for event in events]


async def events_of(client: httpx.AsyncClient, response_id: str, **query: Any) -> list[dict[str, Any]]:
    answer = await client.get(f"{RESPONSES}/{response_id}", params={"stream": "true", **query})
    assert answer.headers["content-type"].startswith("text/event-stream")
    return events_in(answer.text)


async def test_background_response_is_queued_then_completed(tmp_path: Path) -> None:
    async with storing(tmp_path, SLOW) as (server, client):
        made = await start(client)
        assert (made["status"], made["background"], made["store"]) == ("queued", True, True)
        events = await events_of(client, made["id"])
        assert [event["type"] for event in events[:3]] == [
            "response.created",
            "response.queued",
            "response.in_progress",
        ]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert events[-1]["type"] == "response.completed"
        found = (await client.get(f"{RESPONSES}/{made['id']}")).json()
        assert found == events[-1]["response"]
        ResponseObject.model_validate_json(json.dumps(found))
        # Its usage is counted, although no connection waited for the end.
        (entry,) = server.accounts.book.take()
        assert (entry.requests, entry.tokens) == (1, found["usage"]["total_tokens"])


async def test_stream_is_resumed_while_the_response_runs(tmp_path: Path) -> None:
    async with storing(tmp_path, SLOW) as (_, client):
        made = await start(client)
        whole, rest = await asyncio.gather(
            events_of(client, made["id"]), events_of(client, made["id"], starting_after=10)
        )
        assert rest == whole[11:]
        assert await events_of(client, made["id"], starting_after=len(whole) - 2) == whole[-1:]
    async with storing(tmp_path, SLOW) as (_, client):
        assert await events_of(client, made["id"]) == whole
        assert await events_of(client, made["id"], starting_after=10) == whole[11:]


async def test_stream_of_the_request_itself_has_all_events(tmp_path: Path) -> None:
    async with storing(tmp_path, FakeOptions()) as (_, client):
        body = {"model": "fake", "input": "Hei", "background": True, "stream": True}
        events = events_in((await client.post(RESPONSES, json=body)).text)
        assert events[-1]["type"] == "response.completed"
        assert await events_of(client, events[0]["response"]["id"]) == events


async def test_end_is_seen_only_when_it_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with storing(tmp_path, FakeOptions()) as (server, client):
        stores, may_store = asyncio.Event(), asyncio.Event()
        finish = server.responses.finish

        async def late(*arguments: Any) -> dict[str, Any]:
            stores.set()
            await may_store.wait()
            return await finish(*arguments)

        monkeypatch.setattr(server.responses, "finish", late)
        made = await start(client)
        await stores.wait()
        run = server.background.running(made["id"])
        assert run is not None
        assert b"response.completed" not in b"".join(run.events_after(-1))
        reading = asyncio.create_task(client.get(f"{RESPONSES}/{made['id']}"))
        following = asyncio.create_task(events_of(client, made["id"]))
        await asyncio.wait([reading, following], timeout=0.1)
        assert not reading.done()
        may_store.set()
        assert (await reading).json() == (await following)[-1]["response"]


async def test_disconnect_leaves_the_allowance_to_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled: list[int] = []
    monkeypatch.setattr(Allowance, "settle", lambda self, used, now_s, *, served=True: settled.append(used))
    async with storing(tmp_path, SLOW) as (server, client):
        run, begun = server.background._run, asyncio.Event()

        async def leaving(*arguments: Any) -> None:
            asking.cancel()
            begun.set()
            await run(*arguments)

        monkeypatch.setattr(server.background, "_run", leaving)
        asking = asyncio.create_task(start(client))
        await begun.wait()
        await asyncio.gather(asking, return_exceptions=True)
        assert asking.cancelled()
        assert settled == []
        (left,) = server.background._runs.values()
        assert left.task is not None
        await left.task
        assert len(settled) == 1


async def test_response_closed_at_once_is_stored_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with storing(tmp_path, ENDLESS) as (server, client):
        start_run = server.background.start

        async def closing(*arguments: Any) -> background.Run:
            run = await start_run(*arguments)
            await server.background.close()
            return run

        monkeypatch.setattr(server.background, "start", closing)
        made = await start(client)
        assert (await client.get(f"{RESPONSES}/{made['id']}")).json()["status"] == "failed"


async def test_cancelled_response_ends_and_stays_so(tmp_path: Path) -> None:
    async with storing(tmp_path, ENDLESS) as (server, client):
        made = await start(client)
        path = f"{RESPONSES}/{made['id']}"
        following = asyncio.create_task(events_of(client, made["id"]))
        run = server.background.running(made["id"])
        assert run is not None
        while run.visible < 10:
            await run.changed.wait()
        continuing = {"model": "fake", "input": "x", "previous_response_id": made["id"]}
        assert_error(await client.post(RESPONSES, json=continuing), 400, "previous_response_id")
        cancelled = (await client.post(f"{path}/cancel")).json()
        assert cancelled["status"] == "cancelled"
        assert (await client.post(f"{path}/cancel")).json() == cancelled
        assert (await client.get(path)).json() == cancelled
        assert (await following)[-1]["response"] == cancelled
        assert server.admission.open_requests == 0


async def test_only_background_responses_are_cancelled(tmp_path: Path) -> None:
    async with storing(tmp_path, FakeOptions()) as (_, client):
        made = (await client.post(RESPONSES, json={"model": "fake", "input": "Hei"})).json()
        assert (await client.post(f"{RESPONSES}/{made['id']}/cancel")).status_code == 400
        events = await events_of(client, made["id"])
        assert events[-1]["response"] == made
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        # Its own stream had more events than its replay.
        (end,) = await events_of(client, made["id"], starting_after=10_000)
        assert (end["type"], end["sequence_number"], end["response"]) == ("response.completed", 10_001, made)
        assert (await client.post(f"{RESPONSES}/resp_{'0' * 32}/cancel")).status_code == 404


async def test_removed_response_ends(tmp_path: Path) -> None:
    async with storing(tmp_path, ENDLESS) as (server, client):
        made = await start(client)
        assert (await client.delete(f"{RESPONSES}/{made['id']}")).status_code == 200
        assert (await client.get(f"{RESPONSES}/{made['id']}")).status_code == 404
        assert server.admission.open_requests == 0


async def test_response_fails_if_its_server_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_FLUSH_S", 0.05)
    monkeypatch.setattr(background, "_SILENCE_S", 0.0)
    async with storing(tmp_path, ENDLESS) as (server, client):
        made = await start(client)
        run = server.background.running(made["id"])
        assert run is not None
        while run.log.unsaved or run.visible < 20:
            await run.changed.wait()
        # The server is killed: it stores nothing more.
        monkeypatch.setattr(server.background, "_finish", lambda run: asyncio.sleep(0))
        monkeypatch.setattr(server.background, "_store_chunks", lambda run: asyncio.sleep(0, True))
        seen = run.events_after(-1)
    async with storing(tmp_path, SLOW) as (_, client):
        events = await events_of(client, made["id"], starting_after=4)
        assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
        assert [event["sequence_number"] for event in events] == list(range(5, 5 + len(events)))
        assert events[0] == json.loads(seen[5].decode().partition("data: ")[2])
        found = (await client.get(f"{RESPONSES}/{made['id']}")).json()
        assert (found["status"], found["error"]["code"]) == ("failed", "response_interrupted")
        # A client that has seen more events than were stored learns of the end, too.
        (end,) = await events_of(client, made["id"], starting_after=10_000)
        assert (end["type"], end["sequence_number"], end["response"]) == ("response.failed", 10_001, found)


async def test_follower_at_another_server_gets_keep_alives(tmp_path: Path) -> None:
    async with storing(tmp_path, ENDLESS) as (_, first):
        made = await start(first)
        async with storing(tmp_path, SLOW) as (second, _):
            kept = await second.responses.find("key-1", made["id"])
            assert kept is not None
            events = await second.background.follow(kept, "key-1", 1 << 20, keep_alive_s=0.01)
            async with asyncio.timeout(5):
                assert [await anext(events), await anext(events)] == [sse.KEEP_ALIVE, sse.KEEP_ALIVE]


async def test_end_at_another_server_is_the_end_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_FLUSH_S", 0.05)
    async with storing(tmp_path, ENDLESS) as (server, first):
        made = await start(first)
        path = f"{RESPONSES}/{made['id']}"
        run = server.background.running(made["id"])
        assert run is not None
        while run.visible < 20:
            await run.changed.wait()
        following = asyncio.create_task(events_of(first, made["id"]))
        async with storing(tmp_path, SLOW) as (_, second):
            cancelled = (await second.post(f"{path}/cancel")).json()
            events = await following
            assert run.response() == cancelled == (await second.get(path)).json()
        assert (events[-1]["type"], events[-1]["response"]) == ("response.incomplete", cancelled)
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert (await first.get(path)).json() == cancelled


async def unavailable(*_: Any) -> dict[str, Any]:
    raise StateUnavailable("told to")


async def test_response_that_cannot_be_stored_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_FINISH_TRIES", 2)
    monkeypatch.setattr(background, "_RETRY_S", 0.0)
    async with storing(tmp_path, SLOW) as (server, client):
        monkeypatch.setattr(server.responses, "finish", unavailable)
        made = await start(client)
        events = await events_of(client, made["id"])
        assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
        assert events[-1]["response"]["error"]["code"] == "response_interrupted"
        assert [event["sequence_number"] for event in events] == list(range(len(events)))


async def test_cancel_says_if_the_end_cannot_be_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_CLOSE_S", 0.05)
    async with storing(tmp_path, ENDLESS) as (server, client):
        finish = server.responses.finish
        monkeypatch.setattr(server.responses, "finish", unavailable)
        made = await start(client)
        assert (await client.post(f"{RESPONSES}/{made['id']}/cancel")).status_code == 503
        monkeypatch.setattr(server.responses, "finish", finish)
        monkeypatch.setattr(background, "_CLOSE_S", 5.0)
        assert (await client.post(f"{RESPONSES}/{made['id']}/cancel")).json()["status"] == "cancelled"


async def test_server_is_dead_after_a_minute_of_silence(tmp_path: Path) -> None:
    async with storing(tmp_path, ENDLESS) as (_, first):
        made = await start(first)
        async with storing(tmp_path, SLOW) as (second, _):
            kept = await second.responses.find("key-1", made["id"])
            assert kept is not None
            for silence_s, statuses in ((50, {"queued", "in_progress"}), (70, {"failed"})):
                silent = replace(kept, seen_at=int(time.time() - silence_s) * 1000)
                found = await second.background.current(silent, "key-1")
                assert found.response["status"] in statuses


async def test_stopped_server_ends_its_responses(tmp_path: Path) -> None:
    async with storing(tmp_path, ENDLESS) as (_, client):
        made = await start(client)
    async with storing(tmp_path, SLOW) as (_, client):
        found = (await client.get(f"{RESPONSES}/{made['id']}")).json()
        assert (found["status"], found["error"]["code"]) == ("failed", "response_interrupted")


async def test_refused_background_response_has_failed(tmp_path: Path) -> None:
    async with storing(tmp_path, FakeOptions(max_model_len=64)) as (_, client):
        made = await start(client, input="x" * 100)
        events = await events_of(client, made["id"])
        assert events[-1]["response"]["error"]["code"] == "context_length_exceeded"
        unknown = {"model": "other", "input": "x", "background": True}
        assert (await client.post(RESPONSES, json=unknown)).status_code == 404


async def refuse_to_save(*_: Any) -> None:
    raise AssertionError("a refused request was stored")


async def test_refusal_comes_before_anything_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"model": "fake", "input": "x", "background": True}
    async with storing(tmp_path, FakeOptions()) as (server, client):
        monkeypatch.setattr(server.responses, "save", refuse_to_save)
        with capture_logs() as logs:
            assert_error(await client.post(RESPONSES, json={**body, "model": "other"}), 404, "model", "model_not_found")
            # The model is starting, then the server drains.
            with monkeypatch.context() as patched:
                patched.setattr(server.replicas, "engine", starting)
                answer = await client.post(RESPONSES, json=body)
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_starting")
            server.drain()
            answer = await client.post(RESPONSES, json={**body, "stream": True})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
        outcomes = [line["outcome"] for line in logs if line["event"] == "request_finished"]
        assert outcomes == ["invalid", "rejected", "rejected"]


def starting() -> None:
    raise ModelStarting("The model is starting.", retry_after_s=1.0)


async def test_limit_of_a_key_refuses_a_background_request(tmp_path: Path) -> None:
    async with storing(tmp_path, ENDLESS) as (server, client):
        issued = await server.accounts.create(
            NewKey("k", "t", frozenset({"inference"}), limits=Limits(rpm=3, max_running=1))
        )
        client.headers["authorization"] = f"Bearer {issued.secret}"
        made = await start(client)
        # A refusal gives the request back, as in the foreground.
        for _ in range(3):
            answer = await client.post(RESPONSES, json={"model": "fake", "input": "x", "background": True})
            assert answer.status_code == 429
            assert "choices at once" in answer.json()["error"]["message"]
        assert (await client.post(f"{RESPONSES}/{made['id']}/cancel")).json()["status"] == "cancelled"
        await start(client)


def forms_with_items() -> int:
    # isinstance() would read attributes of every object, and some objects of torch then warn.
    return sum(type(one) is ResponseForm and bool(one.items) for one in gc.get_objects())


@pytest.mark.bytecodes
@pytest.mark.parametrize("fields", [{"background": True}, {"store": False}])
async def test_open_stream_does_not_keep_the_input(tmp_path: Path, fields: dict[str, bool]) -> None:
    async with storing(tmp_path, ENDLESS) as (server, client):
        before = forms_with_items()
        body = {"model": "fake", "input": "x", "stream": True, **fields}
        streaming = asyncio.create_task(client.post(RESPONSES, json=body))
        async with asyncio.timeout(5):
            while not server.admission.open_requests or forms_with_items() > before:  # noqa: ASYNC110 (memory sets no event)
                await asyncio.sleep(0.01)
        streaming.cancel()
        await asyncio.gather(streaming, return_exceptions=True)


async def test_late_refusal_has_the_outcome_of_its_status(tmp_path: Path) -> None:
    async with storing(tmp_path, FakeOptions(max_model_len=64)) as (_, client):
        with capture_logs() as logs:
            made = await start(client, input="x" * 100)
            await events_of(client, made["id"])
        (line,) = [line for line in logs if line["event"] == "background_finished"]
        assert (line["outcome"], line["reason"]) == ("invalid", "context_length_exceeded")


async def test_fault_of_the_server_fails_the_response(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fault(_: Generation, __: Sink) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(Generation, "run", fault)
    async with storing(tmp_path, FakeOptions()) as (_, client):
        last = (await events_of(client, (await start(client))["id"]))[-1]
        assert last["type"] == "response.failed"
        assert last["response"]["error"]["message"] == "The server had an error while generating."


async def test_background_needs_a_stored_response(client: httpx.AsyncClient) -> None:
    body = {"model": "fake", "input": "x", "background": True}
    assert (await client.post(RESPONSES, json=body)).status_code == 503
    assert_error(await client.post(RESPONSES, json={**body, "store": False}), 400, "store")
