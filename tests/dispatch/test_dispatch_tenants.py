"""The engine gets each request's tenant, and a salt that separates the tenants' cached prompts."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import replace

from tests.dispatch.bench import Bench, allowance, bench, complete, request
from tokka.core import Event, GenerateRequest, Key, RequestRecord


class Recorder:
    """A script of an engine that records its requests."""

    def __init__(self) -> None:
        self.seen: list[GenerateRequest] = []

    def __call__(self, given: GenerateRequest) -> AsyncGenerator[Event, None]:
        self.seen.append(given)
        return complete(given)


async def run(b: Bench, tenant: str, salt: str | None = None) -> None:
    key = Key(f"key of {tenant}", tenant, frozenset({"inference"}))
    record = RequestRecord("r", time.monotonic(), key=key)
    generation = await b.dispatcher.open(replace(request(), cache_salt=salt), record, allowance())
    await generation.aclose()


async def salts(*asked: tuple[str, str | None], shared: bool = False) -> list[str | None]:
    """Return the salts that the engine got for these tenants and their clients' own salts."""
    engine = Recorder()
    async with bench(engine, shares_prefix_cache=lambda: shared) as b:
        for tenant, salt in asked:
            await run(b, tenant, salt)
    return [given.cache_salt for given in engine.seen]


async def test_engine_gets_the_tenant_of_a_request() -> None:
    engine = Recorder()
    async with bench(engine) as b:
        await run(b, "a")
        await run(b, "b")
    assert [given.tenant for given in engine.seen] == ["a", "b"]


async def test_salt_divides_the_prompt_cache_between_tenants() -> None:
    first, again, other = await salts(("a", None), ("a", None), ("b", None))
    assert first is not None
    assert first == again
    assert first != other


async def test_clients_salt_divides_its_tenants_cache_only() -> None:
    plain, own, own_again, of_another, named_as_a_tenant = await salts(
        ("a", None), ("a", "s"), ("a", "s"), ("b", "s"), ("b", "a")
    )
    assert own == own_again
    assert len({plain, own, of_another, named_as_a_tenant}) == 4


async def test_salt_cannot_be_guessed_from_the_tenant() -> None:
    assert await salts(("a", "s")) != await salts(("a", "s"))


async def test_salt_is_the_clients_own_when_tenants_share() -> None:
    assert await salts(("a", None), ("a", "s"), ("b", "s"), shared=True) == [None, "s", "s"]
