"""The catalogue of served models: names, tasks, and engines that live and die apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.admission.controllers import controller
from tests.dispatch.bench import ANSWERS, allowance, record
from tests.events import events_of
from tests.supervised import supervisor_of, until, until_ready
from tokka.admission.quarantine import Quarantine
from tokka.core import ANONYMOUS, Embedding, GenerateRequest, Key, Sampling, TextPrompt
from tokka.dispatch import catalogue as module
from tokka.dispatch.catalogue import Catalogue, ServedModel
from tokka.dispatch.dispatcher import Dispatcher
from tokka.engine.base import Engine
from tokka.engine.fake import FakeEngine, FakeOptions
from tokka.engine.supervision.restart import RestartPolicy
from tokka.errors import ConfigurationError, EngineDied, ModelNotFound, ModelStarting, StartupError, UnsupportedTask


def model(*names: str, create: Callable[[], Engine] | None = None, **changes: Any) -> ServedModel:
    fields = {name: changes.pop(name) for name in ("expected_tasks",) if name in changes}
    supervisor = supervisor_of(create or (lambda: FakeEngine(FakeOptions())), **changes)
    return ServedModel(names, supervisor, controller(8), Quarantine(600), **fields)


def scripted(tasks: str, **options: Any) -> Callable[[], Engine]:
    return lambda: FakeEngine(FakeOptions(tasks=tasks, **options))


@dataclass
class Two:
    chat: ServedModel
    embedder: ServedModel
    catalogue: Catalogue
    dispatcher: Dispatcher

    async def embed(self, *texts: str, name: str = "embedder") -> list[Embedding]:
        prompts = tuple(map(TextPrompt, texts))
        request = GenerateRequest("id", name, prompts, Sampling(max_tokens=0), task="embed", prompt_param="input")
        generation = await self.dispatcher.open(request, record(), allowance())
        try:
            return [event for event in await events_of(generation) if isinstance(event, Embedding)]
        finally:
            await generation.aclose()

    async def chat_events(self, name: str = "chat") -> list[Any]:
        generation = await self.dispatcher.open(
            GenerateRequest("id", name, (TextPrompt("x"),), Sampling(max_tokens=4)), record(), allowance()
        )
        try:
            return await events_of(generation)
        finally:
            await generation.aclose()


@asynccontextmanager
async def two(on_demand: bool = False, **options: Any) -> AsyncIterator[Two]:
    chat = model("chat", create=scripted("generate"))
    embedder = model(
        "embedder",
        create=scripted("embed", **options),
        expected_tasks=frozenset({"embed"}),
        starts_on_demand=on_demand,
    )
    catalogue = Catalogue([chat, embedder])
    running = [asyncio.create_task(chat.replicas.run()), asyncio.create_task(catalogue.run_beside())]
    try:
        await until_ready(chat.replicas)
        if not on_demand:
            await until_ready(embedder.replicas)
        yield Two(chat, embedder, catalogue, Dispatcher(catalogue, ANSWERS))
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await catalogue.close()


def test_a_model_is_found_by_each_of_its_names() -> None:
    first, second = model("a", "b"), model("c")
    catalogue = Catalogue([first, second])
    assert [catalogue.find(name, ANONYMOUS) for name in ("a", "b", "c", None)] == [first, first, second, first]
    assert catalogue.names(ANONYMOUS) == ("a", "b", "c")


def test_a_key_finds_only_its_models() -> None:
    first, second = model("a"), model("c")
    catalogue = Catalogue([first, second])
    key = Key("k", "t", frozenset({"inference"}), models=frozenset({"c"}))
    assert (catalogue.names(key), catalogue.find(None, key)) == (("c",), second)
    with pytest.raises(ModelNotFound, match="Served to you: c"):
        catalogue.find("a", key)


def test_two_models_cannot_share_a_name() -> None:
    with pytest.raises(ConfigurationError, match="two models are served as a"):
        Catalogue([model("a"), model("b", "a")])


async def test_a_request_goes_to_the_engine_of_its_model() -> None:
    async with two() as server:
        vectors = await server.embed("Hei", "Moi")
        assert [vector.prompt_index for vector in vectors] == [0, 1]
        assert (server.embedder.replicas.stats().steps, server.chat.replicas.stats().steps) == (1, 0)
        assert len(await server.chat_events()) > 2


async def test_model_refuses_a_task_that_it_cannot_do() -> None:
    async with two() as server:
        with pytest.raises(UnsupportedTask) as refused:
            await server.embed("Hei", name="chat")
        assert refused.value.param == "model"
        assert refused.value.message == (
            "The model `chat` cannot embed; it can generate text. Send the model `embedder`."
        )
        with pytest.raises(UnsupportedTask, match=r"it can embed\. Send the model `chat`"):
            await server.chat_events("embedder")


async def test_model_has_a_state_for_users() -> None:
    async with two(on_demand=True) as server:
        assert (server.chat.state, server.embedder.state) == ("ready", "asleep")
        server.catalogue.start_draining()
        assert (server.chat.state, server.embedder.state) == ("draining", "draining")
    # A model that starts with the server is about to do so.
    assert model("chat").state == "starting"


async def test_changes_come_from_every_model() -> None:
    sleeping, starting = model("sleeping", starts_on_demand=True), model("starting")
    catalogue = Catalogue([sleeping, starting], probes_all=True)
    seen: list[str] = []
    async with asyncio.timeout(5), aclosing(catalogue.changes()) as changes:
        running = None
        async for progress in changes:
            seen.append(progress.state)
            # The watched models are not ready yet.
            running = running or asyncio.create_task(starting.replicas.run())
            if progress.state == "ready":
                break
    assert (seen[0], seen[-1]) == ("stopped", "ready")
    assert running is not None
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await catalogue.close()


async def test_first_request_starts_a_model_on_demand() -> None:
    async with two(on_demand=True) as server:
        assert server.embedder.replicas.progress().state == "stopped"
        # A request that the model cannot serve does not start it.
        with pytest.raises(UnsupportedTask):
            await server.chat_events("embedder")
        assert server.embedder.replicas.number == 0
        with pytest.raises(ModelStarting) as starting:
            await server.embed("Hei")
        assert starting.value.retry_after_s == 20
        await until_ready(server.embedder.replicas)
        assert len(await server.embed("Hei")) == 1


async def test_death_of_one_engine_leaves_the_other_alone() -> None:
    async with two(die_on="boom") as server:
        with pytest.raises(EngineDied):
            await server.embed("boom")
        assert len(await server.chat_events()) > 2
        await until(server.embedder.replicas, lambda now: now.state == "starting")
        await until_ready(server.embedder.replicas)
        assert len(await server.embed("Hei")) == 1
        assert (server.chat.replicas.number, server.embedder.replicas.number) == (1, 2)
        # The death counts for its own model only.
        assert len(await server.chat_events()) > 2


class Broken(FakeEngine):
    async def start(self, report: Any) -> Any:
        raise StartupError("no such file")


async def test_model_that_cannot_start_with_the_server_ends_it() -> None:
    catalogue = Catalogue([model("chat"), model("embedder", create=lambda: Broken(FakeOptions()))])
    with pytest.raises(StartupError, match="no such file"):
        await catalogue.run_beside()


async def test_given_up_model_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GIVEN_UP_S", 0.01)
    made: list[FakeEngine] = []

    def create() -> FakeEngine:
        made.append(FakeEngine(FakeOptions()))
        return made[-1]

    embedder = model("embedder", create=create, policy=RestartPolicy(1))
    catalogue = Catalogue([model("chat"), embedder])
    running = asyncio.create_task(catalogue.run_beside())
    try:
        await until_ready(embedder.replicas)
        made[0]._death = "killed"
        await until(embedder.replicas, lambda now: now.state == "failed")
        await until_ready(embedder.replicas)
        assert len(made) == 2
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await catalogue.close()


async def test_vectors_of_many_inputs_count_as_few_choices() -> None:
    async with two(prefill_delay_s=0.01) as server:
        asked = server.embed(*(f"text {number}" for number in range(200)))
        task = asyncio.create_task(asked)
        while not server.embedder.admission.policy.batch.choices:  # noqa: ASYNC110 (admission sets no event)
            await asyncio.sleep(0)
        assert server.embedder.admission.policy.batch.choices == 64
        assert sorted(vector.prompt_index for vector in await task) == list(range(200))
