"""The embedded embedding model beside the chat model, on the real engines: vectors, deaths, and a start on demand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.minilm import minilm
from tests.program import Program, eventually, running, runs

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

MODEL = "all-MiniLM-L6-v2"
TEXTS = [
    "Helsinki is the capital of Finland.",
    "Hyvää päivää, maailma! 你好",
    "A " * 200,
    "x",
    "The cat sits [SEP] on the mat.",
]
# A third more than the model takes.
LONG = "word " * 340


@pytest.fixture(scope="module")
def both() -> Iterator[Program]:
    with running("--embedding-load", "start", "--max-quick-deaths", "50", "--stall-timeout", "5") as program:
        wait_for_load(program)
        yield program


@pytest.fixture
def client(both: Program) -> Iterator[httpx.Client]:
    with both.client() as client:
        yield client


def loads(program: Program) -> int:
    """Return how often the embedding model has become ready."""
    return sum((line.get("model"), line.get("state")) == (MODEL, "ready") for line in program.log)


def wait_for_load(program: Program, number: int = 1) -> None:
    """Wait by the log: requests would slow the start down."""
    eventually(lambda: loads(program) >= number, within_s=200)


def embed(client: httpx.Client, given: Any, **fields: Any) -> list[list[float]]:
    answer = client.post("/v1/embeddings", json={"model": MODEL, "input": given, **fields})
    assert answer.status_code == 200, answer.text
    return [one["embedding"] for one in answer.json()["data"]]


def chat(client: httpx.Client, model: str) -> httpx.Response:
    messages = [{"role": "user", "content": "What is the capital of Finland?"}]
    return client.post("/v1/chat/completions", json={"model": model, "messages": messages, "max_tokens": 8})


def cores(program: Program) -> list[psutil.Process]:
    """Return the engine processes. Which engine starts first is undefined, so their order says nothing."""
    return [child for child in program.children() if "EngineCore" in child.name() and runs(child)]


def core_of(program: Program, model: str | None) -> psutil.Process:
    """Return the engine process of a model by the log line of its readiness. None is the chat model."""
    ready = [line for line in program.log if (line.get("phase"), line.get("model")) == ("ready", model)]
    (core,) = [process for process in cores(program) if process.pid in ready[-1]["pids"]]
    return core


def death_of(program: Program, model: str | None) -> dict[str, Any]:
    """Return the log line of the next death of a model's engine. None is the chat model."""
    while (died := program.wait_for("engine_died")).get("model") != model:
        pass
    return died


def reference(texts: list[str]) -> list[list[float]]:
    """Return the vectors as sentence-transformers computes them: the mean of the tokens' vectors, normalised."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(minilm()), AutoModel.from_pretrained(minilm()).eval()
    vectors = []
    for text in texts:
        given = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
        with torch.no_grad():
            mean = model(**given).last_hidden_state[0].mean(0)
        vectors.append(torch.nn.functional.normalize(mean, dim=0).tolist())
    return vectors


def test_vectors_equal_the_reference(client: httpx.Client) -> None:
    vectors, expected = embed(client, TEXTS), reference(TEXTS)
    largest = max(
        abs(a - b) for one, other in zip(vectors, expected, strict=True) for a, b in zip(one, other, strict=True)
    )
    assert largest < 1e-5


def test_cut_text_keeps_the_tokens_around_it(client: httpx.Client) -> None:
    refused = client.post("/v1/embeddings", json={"model": MODEL, "input": ["x", LONG]})
    assert refused.json()["error"]["param"] == "input[1]"
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    (vector,), (expected,) = embed(client, LONG, truncate_prompt_tokens=-1), reference([LONG])
    assert max(abs(a - b) for a, b in zip(vector, expected, strict=True)) < 1e-5


def test_many_inputs_equal_single_ones(client: httpx.Client) -> None:
    texts = [f"Sentence number {number}." for number in range(150)]
    many = embed(client, texts)
    (single,) = embed(client, texts[149])
    assert many[149] == pytest.approx(single, abs=1e-5)


def test_shorter_vectors_and_foreign_ids_are_refused(client: httpx.Client) -> None:
    for fields, param in (({"dimensions": 64}, "dimensions"), ({"input": [[101, 99999]]}, "input[0]")):
        answer = client.post("/v1/embeddings", json={"model": MODEL, "input": "x", **fields})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_rerank_finds_the_answer(client: httpx.Client) -> None:
    documents = ["Bread is made of flour.", "Helsinki is Finland's largest city and capital.", "The sea is deep."]
    body = {"model": MODEL, "query": "What is the capital of Finland?", "documents": documents, "top_n": 1}
    (best,) = client.post("/v1/rerank", json=body).json()["results"]
    assert best["index"] == 1
    assert best["relevance_score"] > 0.5


def test_each_model_refuses_the_others_task(client: httpx.Client, both: Program) -> None:
    assert f"Send the model `{MODEL}`" in client.post("/v1/embeddings", json={"model": both.model, "input": "x"}).text
    refused = chat(client, MODEL)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported_task")
    listed = {one["id"]: one["tasks"] for one in client.get("/v1/models").json()["data"]}
    assert listed == {both.model: ["generate"], MODEL: ["embed"]}
    tokens = client.post("/tokenize", json={"model": MODEL, "prompt": "Hello"}).json()["tokens"]
    assert tokens[0] == 101


def test_vllm_metrics_cover_the_chat_model(client: httpx.Client, both: Program) -> None:
    chat(client, both.model)
    text = client.get("/metrics").text
    assert f'model_name="{both.model}"' in text
    assert f'tokka_model_ready{{model="{MODEL}"}} 1.0' in text


def test_death_of_the_embedding_engine_leaves_chat_alone(client: httpx.Client, both: Program) -> None:
    chat_core, embedding_core, before = core_of(both, None), core_of(both, MODEL), loads(both)
    answers: list[httpx.Response] = []

    def ask() -> None:
        messages = [{"role": "user", "content": "Tell a long story."}]
        body = {"model": both.model, "messages": messages, "max_tokens": 60, "ignore_eos": True}
        with both.client() as other:
            answers.append(other.post("/v1/chat/completions", json=body))

    asking = threading.Thread(target=ask)
    asking.start()
    embedding_core.kill()
    assert death_of(both, MODEL)["reason"] == "died"
    asking.join()
    assert answers[0].json()["usage"]["completion_tokens"] == 60
    wait_for_load(both, before + 1)
    assert embed(client, "x")
    assert core_of(both, None) == chat_core


def test_frozen_embedding_engine_is_replaced(client: httpx.Client, both: Program) -> None:
    chat_core, embedding_core, before = core_of(both, None), core_of(both, MODEL), loads(both)
    embedding_core.suspend()
    answer = client.post("/v1/embeddings", json={"model": MODEL, "input": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_error")
    died = death_of(both, MODEL)
    assert died["reason"] == "stalled"
    assert f"{embedding_core.pid}" in died["detail"]
    assert chat(client, both.model).status_code == 200
    wait_for_load(both, before + 1)
    assert embed(client, "x")
    assert core_of(both, None) == chat_core


def test_death_of_the_chat_engine_leaves_embeddings_alone(client: httpx.Client, both: Program) -> None:
    embedding_core = core_of(both, MODEL)
    core_of(both, None).kill()
    assert death_of(both, None)["reason"] == "died"
    assert embed(client, "x")
    eventually(lambda: chat(client, both.model).status_code == 200, within_s=120)
    assert embed(client, "x")
    assert core_of(both, MODEL) == embedding_core


def test_first_request_loads_the_embedded_model() -> None:
    with running() as program, program.client() as client:
        assert len(cores(program)) == 1
        answer = client.post("/v1/embeddings", json={"model": MODEL, "input": "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_starting")
        assert answer.headers["retry-after"] == "20"
        wait_for_load(program)
        assert embed(client, "x")
        assert len(cores(program)) == 2
        assert chat(client, program.model).status_code == 200
        children = program.children()
        assert program.stop() == 0
        assert not any(runs(child) for child in children)


def test_a_pooling_model_is_served_alone() -> None:
    with running(str(minilm()), "--served-model-name", "embedder") as program, program.client() as client:
        answer = client.post("/v1/embeddings", json={"model": "embedder", "input": TEXTS[0]}).json()
        assert answer["data"][0]["embedding"] == pytest.approx(reference(TEXTS[:1])[0], abs=1e-5)
        refused = client.post("/v1/completions", json={"model": "embedder", "prompt": "x"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported_task")
        assert client.get("/readyz").status_code == 200
        program.core().kill()
        program.wait_for("engine_died")
        eventually(
            lambda: client.post("/v1/embeddings", json={"model": "embedder", "input": "x"}).status_code == 200,
            within_s=120,
        )
        assert program.stop() == 0
