"""A gateway with real models: prefix caches of two replicas, an embedding model, and the death of an engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.minilm import minilm
from tests.faults.streams import endless, streaming
from tests.fleet.gateway import Gateway, Worker, serving
from tests.program import READY_TIMEOUT_S, eventually, runs
from tokka.engine.supervision.processes import shared_memory

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

CHAT, EMBEDDING = "SmolLM2-135M-Instruct", "all-MiniLM-L6-v2"
MODELS = {
    CHAT: {"model": CHAT, "replicas": {"min": 2, "max": 2}},
    EMBEDDING: {"model": str(minilm()), "replicas": {"min": 1, "max": 1}},
}
# Characters of a first message: many blocks of the prefix cache.
LONG = 2000


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with serving(MODELS) as gateway:
        ready(gateway)
        yield gateway
        shared = [name for worker in ready(gateway) for name in shared_memory(core(worker).pid)]
        assert gateway.program.stop() == 0
        assert [name for name in shared if Path(name).exists()] == []
        assert list((gateway.state / "workers").iterdir()) == []


def ready(gateway: Gateway) -> list[Worker]:
    """Wait until all replicas are ready, and return the chat model's."""
    gateway.ready(1, EMBEDDING, READY_TIMEOUT_S)
    return gateway.ready(2, CHAT, READY_TIMEOUT_S)


def chat(client: httpx.Client, messages: list[dict[str, str]]) -> dict[str, Any]:
    body = {"model": CHAT, "messages": messages, "max_tokens": 8, "temperature": 0}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def core(worker: Worker) -> psutil.Process:
    """Return the process of a worker's engine."""
    children = psutil.Process(worker.pid).children(recursive=True)
    (found,) = [child for child in children if "EngineCore" in child.name() and runs(child)]
    return found


def test_second_turns_hit_their_prefixes(gateway: Gateway) -> None:
    ready(gateway)
    with gateway.program.client() as client:
        talks = [[{"role": "user", "content": (f"{place} and " * LONG)[:LONG]}] for place in range(4)]
        for messages in talks:
            first = chat(client, messages)
            messages.append(first["choices"][0]["message"])
            messages.append({"role": "user", "content": "Go on."})
        # In another order, so that taking turns among the replicas does not look like routing.
        for messages in (talks[1], talks[0], talks[3], talks[2]):
            usage = chat(client, messages)["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] > 0.7 * usage["prompt_tokens"]


def test_embedding_model_serves_beside_the_chat_model(gateway: Gateway) -> None:
    ready(gateway)
    with gateway.program.client() as client:
        answer = client.post("/v1/embeddings", json={"model": EMBEDDING, "input": ["a", "b"]})
        assert [len(one["embedding"]) for one in answer.json()["data"]] == [384] * 2
        assert chat(client, [{"role": "user", "content": "Hello"}])["model"] == CHAT
        wrong = client.post("/v1/embeddings", json={"model": CHAT, "input": "a"})
        assert wrong.status_code == 400
        assert EMBEDDING in wrong.json()["error"]["message"]


def test_killed_engine_ends_only_its_own_streams(gateway: Gateway) -> None:
    victim, other = ready(gateway)
    with streaming(gateway.program, endless(6, "death", max_tokens=150)) as streams:
        core(victim).kill()
    assert sorted(stream.terminals() for stream in streams) == [["engine_error"]] * 3 + [["length"]] * 3
    assert gateway.ask(CHAT).status_code == 200
    # The worker starts its engine again. The gateway starts no other worker.
    eventually(lambda: victim in gateway.ready(2, CHAT, READY_TIMEOUT_S), READY_TIMEOUT_S)
    assert other in gateway.workers(CHAT)
    assert len(gateway.events("worker_starts", model=CHAT)) == 2
