"""Streams that wait for a model that is not ready: the header x-tokka-wait, ends without a model, and bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.contract.conftest import served
from tokka.admission.memory import MemoryBudget
from tokka.app import Server
from tokka.core import ANONYMOUS, RequestRecord
from tokka.engine.base import ReportPhase
from tokka.engine.fake import FakeEngine, FakeOptions
from tokka.engine_facts import ModelInfo
from tokka.errors import ServerOverloaded

BODY: dict[str, Any] = {"model": "fake", "prompt": "Hi", "max_tokens": 4, "stream": True}


class Waiting(FakeEngine):
    """An engine that becomes ready when the test says so."""

    may_start: asyncio.Event

    async def start(self, report: ReportPhase) -> ModelInfo:
        await self.may_start.wait()
        return await super().start(report)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    Waiting.may_start = asyncio.Event()
    async with served(FakeOptions(), Waiting) as server:
        yield server


def client_of(server: Server) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://tokka")


async def held(server: Server) -> None:
    """Return when a stream waits."""
    async with asyncio.timeout(5):
        while not server.dispatcher.held_memory.held:  # noqa: ASYNC110 - a count has no event
            await asyncio.sleep(0.001)


async def test_a_stream_waits_until_the_model_is_ready(server: Server) -> None:
    async with client_of(server) as client:
        answer = asyncio.create_task(client.post("/v1/completions", json=BODY, headers={"x-tokka-wait": "30"}))
        await held(server)
        Waiting.may_start.set()
        text = (await answer).text
    assert text.endswith("data: [DONE]\n\n")
    assert '"finish_reason":"length"' in text
    assert not server.dispatcher.held_memory.held


async def test_a_stream_that_waited_in_vain_ends_with_an_error(server: Server) -> None:
    async with client_of(server) as client:
        answer = await client.post("/v1/completions", json=BODY, headers={"x-tokka-wait": "0.05"})
    assert answer.status_code == 200
    assert '"code":"model_starting"' in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("headers", "stream"), [({}, True), ({"x-tokka-wait": "0"}, True), ({"x-tokka-wait": "9"}, False)]
)
async def test_other_requests_do_not_wait(server: Server, headers: dict[str, str], stream: bool) -> None:
    async with client_of(server) as client:
        answer = await client.post("/v1/completions", json={**BODY, "stream": stream}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_starting")


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "3601"])
async def test_a_wait_must_be_seconds_up_to_an_hour(server: Server, value: str) -> None:
    async with client_of(server) as client:
        answer = await client.post("/v1/completions", json=BODY, headers={"x-tokka-wait": value})
    assert answer.status_code == 400
    assert "x-tokka-wait" in answer.json()["error"]["message"]


async def test_a_drain_ends_the_wait(server: Server) -> None:
    async with client_of(server) as client:
        answer = asyncio.create_task(client.post("/v1/completions", json=BODY, headers={"x-tokka-wait": "30"}))
        await held(server)
        server.drain()
        text = (await answer).text
    assert '"code":"draining"' in text


async def test_waits_are_bounded_by_their_memory(server: Server) -> None:
    record, budget = RequestRecord("r", 0.0, key=ANONYMOUS), MemoryBudget(1 << 20, "waiting requests")
    server.dispatcher.held_memory = budget
    hold = server.dispatcher.hold("fake", record, 100_000, 9.0)
    assert hold is not None
    assert budget.held > 200_000
    with pytest.raises(ServerOverloaded, match="no memory left for waiting requests"):
        # Half of the memory is for other tenants.
        server.dispatcher.hold("fake", record, 100_000, 9.0)
    hold.release()
    assert budget.held == 0


async def test_a_ready_model_needs_no_wait(server: Server) -> None:
    Waiting.may_start.set()
    async with asyncio.timeout(5):
        async for progress in server.replicas.changes():
            if progress.state == "ready":
                break
    record = RequestRecord("r", 0.0, key=ANONYMOUS)
    assert server.dispatcher.hold("fake", record, 100, 9.0) is None
