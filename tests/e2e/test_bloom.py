"""A base model with Poro-34B's architecture: it completes text, refuses chat, and scores alike on one and two ranks."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.streams import endless, streaming
from tests.faults.targets import ENDED_WITHIN_S, UNREADY_WITHIN_S
from tests.program import READY_TIMEOUT_S, Program, eventually, running_together, runs
from tests.wire import post, scores

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

PROMPTS = ["Helsinki is the capital", "Poro on", "A base model continues"]


# Tokens that no test fills before it kills the engine, however late a busy machine lets it.
CONTEXT_OF_SPLIT = 65536


def _of_length(tokens: int, folder: Path, copy: Path) -> Path:
    """Copy the model and let its configuration declare this context length, which BLOOM's positions do not bound."""
    shutil.copytree(folder, copy)
    config = copy / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "seq_length": tokens}))
    return copy


@pytest.fixture(scope="module")
def programs(bloom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Program]]:
    """Start the model on one rank, and on two ranks with a chat template; check that the second leaves no process."""
    template = tmp_path_factory.mktemp("templates") / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:")
    model = str(bloom_folder)
    long = _of_length(CONTEXT_OF_SPLIT, bloom_folder, tmp_path_factory.mktemp("split") / bloom_folder.name)
    options = ("--tensor-parallel-size", "2", "--chat-template", str(template))
    with running_together((model,), (str(long), *options)) as programs:
        yield programs
        split = programs[1]
        children = split.children()
        assert split.stop() == 0
        # Python's resource tracker may still be cleaning up.
        eventually(lambda: not any(runs(child) for child in children), within_s=5)


@pytest.fixture(scope="module")
def bloom(programs: list[Program]) -> Program:
    return programs[0]


@pytest.fixture(scope="module")
def split(programs: list[Program]) -> Program:
    return programs[1]


def _greedy(program: Program) -> list[list[int]]:
    body = {"model": program.model, "prompt": PROMPTS, "max_tokens": 24, "temperature": 0, "return_token_ids": True}
    with program.client() as client:
        answer: dict[str, Any] = client.post("/v1/completions", json=body).raise_for_status().json()
    return [choice["token_ids"] for choice in answer["choices"]]


def test_base_model_continues_text(bloom: Program) -> None:
    assert bloom.model == "tiny-bloom"
    assert [len(tokens) for tokens in _greedy(bloom)] == [24, 24, 24]


def test_base_model_refuses_chat_and_names_the_option(bloom: Program) -> None:
    body = {"model": bloom.model, "messages": [{"role": "user", "content": "Hi"}]}
    with bloom.client() as client:
        answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages"
    assert answer.json()["error"]["code"] == "no_chat_template"
    assert "--chat-template" in answer.json()["error"]["message"]


def test_context_of_a_model_without_declared_length_is_2048(bloom: Program) -> None:
    with bloom.client() as client:
        assert client.get(f"/v1/models/{bloom.model}").json()["max_model_len"] == 2048


def test_completion_without_a_limit_fills_the_context(bloom: Program) -> None:
    body = {"model": bloom.model, "prompt": [100] * 2043, "ignore_eos": True}
    with bloom.client() as client:
        assert post(client, "/v1/completions", body)["usage"]["completion_tokens"] == 5


def test_context_may_be_filled_to_the_last_token(bloom: Program) -> None:
    body = {"model": bloom.model, "prompt": [100] * 2046, "max_tokens": 2, "ignore_eos": True}
    with bloom.client() as client:
        assert post(client, "/v1/completions", body)["usage"]["total_tokens"] == 2048


def test_two_ranks_compute_the_same_scores_as_one(bloom: Program, split: Program) -> None:
    with bloom.client() as one, split.client() as two:
        assert scores(two, split.model, PROMPTS) == pytest.approx(scores(one, bloom.model, PROMPTS), abs=0.02)


def test_a_template_makes_it_chat(split: Program) -> None:
    body = {"model": split.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
    with split.client() as client:
        answer = post(client, "/v1/chat/completions", body)
        counted = post(client, "/tokenize", {"messages": body["messages"]})
    assert answer["usage"]["prompt_tokens"] == counted["count"]


def shared_memory(program: Program) -> set[Path]:
    """Return the shared memory files of the engine's processes. Other programs on the machine may have more."""
    folder = Path("/dev/shm")
    processes = [child for child in program.children() if "Worker" in child.name() or "EngineCore" in child.name()]
    mapped = {Path(found.path) for process in processes for found in process.memory_maps()}
    # Intel's OpenMP unmaps its file immediately, so the memory maps lack it.
    mapped |= {folder / f"__KMP_REGISTERED_LIB_{process.pid}_0" for process in processes}
    # Python's resource tracker removes semaphores when the server ends.
    return {path for path in mapped if path.parent == folder and path.exists() and not path.name.startswith("sem.")}


def test_a_killed_worker_of_a_split_model_is_a_death_of_the_engine(split: Program) -> None:
    with split.client() as client:
        shared = shared_memory(split)
        assert shared
        with streaming(split, endless(8, "worker", max_tokens=CONTEXT_OF_SPLIT // 2)) as streams:
            hit_s = time.monotonic()
            next(child for child in split.children() if "Worker" in child.name()).kill()
            eventually(lambda: client.get("/readyz").status_code == 503, within_s=UNREADY_WITHIN_S)
        assert max(stream.ended_s for stream in streams) - hit_s < ENDED_WITHIN_S
        assert [stream.terminals() for stream in streams] == [["engine_error"]] * 8
        eventually(lambda: client.get("/readyz").status_code == 200, within_s=READY_TIMEOUT_S)
        assert [len(tokens) for tokens in _greedy(split)] == [24, 24, 24]
        assert [path for path in shared if path.exists()] == []
