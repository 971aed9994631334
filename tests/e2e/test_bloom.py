"""A base model of Poro-34B's architecture: text yes, chat no, and the same tokens however many ranks share it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.program import Program, running

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

PROMPTS = ["Helsinki is the capital", "Poro on", "A base model continues"]


@pytest.fixture(scope="module")
def bloom(bloom_folder: Path) -> Iterator[Program]:
    with running(str(bloom_folder)) as program:
        yield program


@pytest.fixture(scope="module")
def greedy(bloom: Program) -> list[list[int]]:
    return _greedy(bloom)


def _greedy(program: Program) -> list[list[int]]:
    body = {"model": program.model, "prompt": PROMPTS, "max_tokens": 24, "temperature": 0, "return_token_ids": True}
    with program.client() as client:
        answer: dict[str, Any] = client.post("/v1/completions", json=body).raise_for_status().json()
    return [choice["token_ids"] for choice in answer["choices"]]


def test_base_model_continues_text(bloom: Program, greedy: list[list[int]]) -> None:
    assert bloom.model == "tiny-bloom"
    assert [len(tokens) for tokens in greedy] == [24, 24, 24]


def test_base_model_refuses_chat_and_says_what_to_pass(bloom: Program) -> None:
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


def test_two_ranks_give_the_tokens_of_one_and_a_template_makes_it_chat(
    bloom_folder: Path, greedy: list[list[int]], tmp_path: Path
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:")
    with running(str(bloom_folder), "--tensor-parallel-size", "2", "--chat-template", str(template)) as program:
        assert _greedy(program) == greedy
        with program.client() as client:
            body = {"model": program.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200
            counted = client.post("/tokenize", json={"messages": body["messages"]}).json()
            assert answer.json()["usage"]["prompt_tokens"] == counted["count"]
        children = program.children()
        assert program.stop() == 0
    assert [child for child in children if child.is_running()] == []
