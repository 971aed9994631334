"""Quarantine in the whole app: requests that kill the engine, their tenants, and other tenants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import httpx
import pytest
from structlog.testing import capture_logs

import tokka.admission.quarantine
import tokka.admission.suspects
import tokka.dispatch.dispatcher
import tokka.engine.supervision.supervisor
from tests.contract.conftest import serving
from tests.program import TENANTS
from tests.supervised import until_ready
from tests.wire import chunks_of
from tokka.app import Server
from tokka.dispatch.dispatcher import Dispatcher
from tokka.engine.fake import FakeOptions
from tokka.engine_facts import EngineStats

FIRST, SECOND = TENANTS
ENDLESS = {"max_tokens": 4000, "ignore_eos": True}


class Apart:
    """A server with two tenants. Its engine dies of every prompt with POISON in it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://tokka")

    async def ask(self, tenant: str, prompt: str, **fields: Any) -> httpx.Response:
        """Send a request, then wait until the engine is ready again."""
        body = {"model": "fake", "prompt": prompt, "max_tokens": 3, **fields}
        headers = {"authorization": f"Bearer {tenant}"}
        answer = await self._client.post("/v1/completions", json=body, headers=headers)
        await until_ready(self.server.replicas)
        return answer

    async def statuses(self, *asked: tuple[str, str]) -> list[int]:
        return [(await self.ask(tenant, prompt)).status_code for tenant, prompt in asked]

    @property
    def deaths(self) -> int:
        return self.server.replicas.number - 1

    async def running(self) -> None:
        """Wait until the engine works on a request."""
        async with asyncio.timeout(5):
            while not self.server.replicas.stats().running:  # noqa: ASYNC110 - the engine has no event for it
                await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokka.engine.supervision.supervisor, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr("tokka.engine.supervision.restart._FIRST_DELAY_S", 0.01)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make trials short, without a pause before them."""
    for module in (tokka.admission.quarantine, tokka.admission.suspects):
        monkeypatch.setattr(module, "PAUSE_S", 0.0)
    for module in (tokka.admission.quarantine, tokka.admission.suspects, tokka.dispatch.dispatcher):
        monkeypatch.setattr(module, "TRIAL_S", 0.3)


@asynccontextmanager
async def apart(token_delay_s: float = 0.0, **settings: Any) -> AsyncIterator[Apart]:
    options = FakeOptions(die_on="POISON", token_delay_s=token_delay_s)
    async with serving(options, **{"api_key": TENANTS, **settings}) as server:
        running = asyncio.create_task(server.admission.run(EngineStats))
        yield Apart(server)
        running.cancel()


async def test_poison_of_one_tenant_is_held_for_it_alone() -> None:
    async with apart() as server:
        assert await server.statuses(*[(FIRST, "POISON")] * 3) == [500, 500, 400]
        # An equal request of another tenant.
        assert await server.statuses(*[(SECOND, "POISON")] * 3) == [500, 500, 400]
        assert await server.statuses((FIRST, "hello"), (SECOND, "hello")) == [200, 200]
        assert server.deaths == 4


async def test_tenant_of_variants_is_held_and_others_are_served() -> None:
    async with apart() as server:
        for number in range(12):
            answer = await server.ask(FIRST, f"POISON {number}")
            assert answer.status_code == (500 if number < 3 else 503)
            assert await server.statuses((SECOND, "hello")) == [200]
        assert answer.json()["error"]["code"] == "tenant_held"
        assert "they are held back" in answer.json()["error"]["message"]
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert await server.statuses((FIRST, "hello")) == [503]
        assert server.deaths == 3


async def test_tenant_is_held_though_nobody_else_has_asked() -> None:
    async with apart() as server:
        statuses = await server.statuses(*((FIRST, f"POISON {number}") for number in range(8)))
        assert statuses == [500] * 3 + [503] * 5
        assert await server.statuses((SECOND, "hello")) == [200]


async def test_bystander_with_endless_streams_is_served() -> None:
    async with apart(token_delay_s=0.005) as server:
        statuses = []
        for number in range(8):
            beside = asyncio.create_task(server.ask(SECOND, f"beside {number}", **ENDLESS))
            await server.running()
            statuses.append((await server.ask(FIRST, f"POISON {number}")).status_code)
            if statuses[-1] == 503:
                beside.cancel()
            await asyncio.gather(beside, return_exceptions=True)
            if number >= 2:
                assert await server.statuses((SECOND, "hello")) == [200]
        # One of the four is the first tenant's trial.
        assert statuses.count(500) == 4
        assert statuses[-1] == 503
        assert server.deaths == 4


@pytest.mark.usefixtures("eager")
async def test_death_in_a_trial_clears_the_bystander() -> None:
    async with apart(token_delay_s=0.005, quarantine_time=600) as server:
        for number in range(3):
            beside = asyncio.create_task(server.ask(SECOND, f"beside {number}", **ENDLESS))
            await server.running()
            assert await server.statuses((FIRST, f"POISON {number}")) == [500]
            await beside
        # The first tenant is tried at once, and it alone is blamed.
        assert await server.statuses((FIRST, "POISON 4")) == [500]
        assert await server.statuses((SECOND, "hello")) == [200]
        assert server.deaths == 4


@pytest.mark.usefixtures("eager")
async def test_trial_ends_when_its_client_leaves() -> None:
    async with apart(token_delay_s=0.005) as server:
        for number in range(3):
            beside = asyncio.create_task(server.ask(SECOND, f"beside {number}", **ENDLESS))
            await server.running()
            assert await server.statuses((FIRST, f"POISON {number}")) == [500]
            await beside
        left = asyncio.create_task(server.ask(SECOND, "left", **ENDLESS))
        await server.running()
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        # Only one trial runs at a time, and this is the next one.
        assert await server.statuses((FIRST, "POISON 3")) == [500]


async def test_only_tenant_is_not_held_and_the_engine_given_up() -> None:
    tenants: list[list[str]] = [[], [FIRST]]
    for keys in tenants:
        async with apart(max_quick_deaths=100, api_key=keys) as server:
            statuses = await server.statuses(*((FIRST, f"POISON {number}") for number in range(6)))
            assert statuses == [500] * 6


async def suspect(server: Apart, prompt: str, deaths: int = 2, **fields: Any) -> None:
    """Let the engine die `deaths` times while the first tenant's request runs."""
    for _ in range(deaths):
        asked = asyncio.create_task(server.ask(FIRST, prompt, **fields))
        await server.running()
        engine: Any = server.server.replicas.engine()
        engine._death = "killed"
        engine._ended.set()
        assert (await asked).status_code == 500


@pytest.mark.usefixtures("eager")
async def test_trial_holds_others_up_for_its_time_only() -> None:
    async with apart(token_delay_s=0.005) as server:
        await suspect(server, "slow", **ENDLESS)
        began_s = asyncio.get_running_loop().time()
        tried = asyncio.create_task(server.ask(FIRST, "slow", **ENDLESS))
        await server.running()
        assert await server.statuses((SECOND, "hello")) == [200]
        assert asyncio.get_running_loop().time() - began_s >= 0.3
        answer = await tried
        assert (answer.status_code, answer.headers["x-should-retry"]) == (400, "false")
        assert "was tried for 0.3 s" in answer.json()["error"]["message"]
        assert server.server.admission.open_requests == 0


@pytest.mark.usefixtures("eager")
async def test_held_request_is_refused_while_others_run() -> None:
    async with apart(token_delay_s=0.005) as server:
        await suspect(server, "slow", **ENDLESS)
        beside = asyncio.create_task(server.ask(SECOND, "beside", **ENDLESS))
        await server.running()
        assert (await server.ask(FIRST, "slow", **ENDLESS)).status_code == 400
        assert server.deaths == 2
        beside.cancel()
        await asyncio.gather(beside, return_exceptions=True)


async def test_held_request_is_refused_before_it_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    async with apart() as server:
        assert await server.statuses(*[(FIRST, "POISON")] * 2) == [500, 500]

        async def fail(*_: object) -> NoReturn:
            raise AssertionError("rendered")

        monkeypatch.setattr(Dispatcher, "_render", fail)
        assert await server.statuses((FIRST, "POISON")) == [400]


@pytest.mark.usefixtures("eager")
async def test_no_trial_begins_when_others_came_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    async with apart(token_delay_s=0.005) as server:
        await suspect(server, "slow", **ENDLESS)
        render = Dispatcher._render
        beside: list[asyncio.Task[httpx.Response]] = []

        async def render_late(self: Dispatcher, *args: Any) -> Any:
            rendered = await render(self, *args)
            if not beside:
                beside.append(asyncio.create_task(server.ask(SECOND, "beside", **ENDLESS)))
                await server.running()
            return rendered

        monkeypatch.setattr(Dispatcher, "_render", render_late)
        answer = await server.ask(FIRST, "slow", **ENDLESS)
        assert answer.status_code == 400
        assert "is refused" in answer.json()["error"]["message"]
        beside[0].cancel()
        await asyncio.gather(*beside, return_exceptions=True)


@pytest.mark.usefixtures("eager")
async def test_held_request_that_completes_alone_is_cleared() -> None:
    fields = {"max_tokens": 10}
    async with apart(token_delay_s=0.005) as server:
        await suspect(server, "innocent", **fields)
        assert (await server.ask(FIRST, "innocent", **fields)).status_code == 200
        other = asyncio.create_task(server.ask(SECOND, "beside", **ENDLESS))
        await server.running()
        assert (await server.ask(FIRST, "innocent", **fields)).status_code == 200
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)


async def test_request_that_completes_is_no_suspect() -> None:
    async with apart(token_delay_s=0.005) as server:
        for _ in range(2):
            await suspect(server, "innocent", deaths=1, max_tokens=10)
            assert (await server.ask(FIRST, "innocent", max_tokens=10)).status_code == 200


@pytest.mark.usefixtures("eager")
async def test_held_tenant_without_a_token_is_ended() -> None:
    async with apart(token_delay_s=60) as server:
        await server.statuses(*((FIRST, f"POISON {number}") for number in range(3)))
        with capture_logs() as lines:
            answer = await server.ask(FIRST, "slow")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "tenant_held")
        assert "had no token" in answer.json()["error"]["message"]
        (access,) = (line for line in lines if line["event"] == "request_finished")
        assert (access["outcome"], access["reason"]) == ("rejected", "tenant_held")
        # The trial has proved nothing, so the tenant is still held.
        assert await server.statuses((FIRST, "POISON 3")) == [500]
        assert await server.statuses((FIRST, "hello")) == [503]


@pytest.mark.usefixtures("eager")
async def test_held_tenant_that_completes_alone_is_let_go() -> None:
    async with apart(token_delay_s=0.005) as server:
        await server.statuses(*((FIRST, f"POISON {number}") for number in range(3)))
        assert await server.statuses((FIRST, "hello")) == [200]
        other = asyncio.create_task(server.ask(SECOND, "beside", **ENDLESS))
        await server.running()
        assert await server.statuses((FIRST, "hello")) == [200]
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)


@pytest.mark.usefixtures("eager")
async def test_held_tenant_that_survives_goes_on_beside_others() -> None:
    async with apart(token_delay_s=0.005) as server:
        await server.statuses(*((FIRST, f"POISON {number}") for number in range(3)))
        tried = asyncio.create_task(server.ask(FIRST, "long", max_tokens=200, ignore_eos=True))
        await server.running()
        # This request waits for the end of the trial, not of the long request.
        assert await server.statuses((SECOND, "hello")) == [200]
        assert not tried.done()
        assert await server.statuses((FIRST, "hello")) == [200]
        assert (await tried).status_code == 200


@pytest.mark.usefixtures("eager")
async def test_trial_in_a_stream_ends_with_an_error_event() -> None:
    async with apart(token_delay_s=0.005) as server:
        await suspect(server, "slow", **ENDLESS)
        answer = await server.ask(FIRST, "slow", stream=True, **ENDLESS)
        assert answer.status_code == 200
        assert "was tried for" in chunks_of(answer.text)[-1]["error"]["message"]
        assert answer.text.endswith("data: [DONE]\n\n")
