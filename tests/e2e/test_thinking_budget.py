"""`thinking_token_budget` on the real engine, with a model that has reasoning markers in its vocabulary."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.program import Program, running
from tests.wire import post

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

CHAT = "/v1/chat/completions"
# Unneeded tokens of the model's vocabulary, and the reasoning markers that replace them.
MARKS = {"<empty_output>": "<think>", "<file_sep>": "</think>"}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n<think>\n"
)


@pytest.fixture(scope="module")
def client(smollm2: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    # The server `smollm2` has installed the embedded model there.
    installed = Path.home() / ".cache" / "tokka" / "models"
    (folder,) = installed.glob(f"{smollm2.model}-v*")
    model = tmp_path_factory.mktemp("thinking") / "model"
    shutil.copytree(folder, model, symlinks=True)
    for file in model.glob("*.json"):
        text = file.read_text()
        for old, new in MARKS.items():
            text = text.replace(old, new)
        file.write_text(text)
    template = model.parent / "template.jinja"
    template.write_text(TEMPLATE)
    with (
        running(str(model), "--chat-template", str(template), "--reasoning-parser", "deepseek_r1") as program,
        program.client() as client,
    ):
        yield client


def ask(client: httpx.Client, **fields: Any) -> Any:
    body = {
        "model": client.get("/v1/models").json()["data"][0]["id"],
        "messages": [{"role": "user", "content": "Tell me a long story."}],
        "temperature": 0,
        "max_completion_tokens": 40,
    }
    return post(client, CHAT, {**body, **fields})


def test_reasoning_ends_when_its_budget_is_used_up(client: httpx.Client) -> None:
    free = ask(client)
    assert free["usage"]["completion_tokens_details"]["reasoning_tokens"] == 40
    held = ask(client, thinking_token_budget=8)
    assert held["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 9
    assert held["choices"][0]["message"]["content"]
    assert ask(client, thinking_token_budget=-1)["choices"] == free["choices"]
    assert ask(client, thinking_token_budget=2**62)["choices"] == free["choices"]


def test_reasoning_is_left_out_of_the_answer(client: httpx.Client) -> None:
    shown = ask(client, thinking_token_budget=8)["choices"][0]["message"]
    hidden = ask(client, thinking_token_budget=8, include_reasoning=False)["choices"][0]["message"]
    assert "reasoning_content" in shown
    assert "reasoning_content" not in hidden
    assert hidden["content"] == shown["content"]


@pytest.mark.parametrize(
    "fields", [{"response_format": {"type": "json_object"}}, {"bad_words": ["a"]}, {"allowed_token_ids": [5]}]
)
def test_thinking_budget_is_refused_with_constrained_tokens(client: httpx.Client, fields: dict[str, Any]) -> None:
    model = client.get("/v1/models").json()["data"][0]["id"]
    messages = [{"role": "user", "content": "Hei"}]
    answer = client.post(CHAT, json={"model": model, "messages": messages, "thinking_token_budget": 3, **fields})
    assert answer.status_code == 400
    assert "thinking_token_budget" in answer.json()["error"]["message"]


def test_budget_of_messages_ends_the_reasoning(client: httpx.Client) -> None:
    model = client.get("/v1/models").json()["data"][0]["id"]
    body = {"model": model, "max_tokens": 40, "messages": [{"role": "user", "content": "Tell me a long story."}]}

    def kinds(**fields: Any) -> list[str]:
        answer = post(client, "/v1/messages", {**body, **fields, "temperature": 0})
        return [block["type"] for block in answer["content"]]

    assert kinds() == ["thinking"]
    budget = {"type": "enabled", "budget_tokens": 8}
    assert kinds(thinking=budget) == ["thinking", "text"]
    # The engine cannot enforce both, and clients send the budget always.
    schema = {"type": "json_schema", "schema": {"type": "object"}}
    assert kinds(thinking=budget, output_config={"format": schema})
