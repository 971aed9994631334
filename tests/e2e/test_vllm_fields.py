"""vLLM's request fields on the real engine: prompt logprobs, listed tokens, prompt truncation, structured outputs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import Any

import httpx
import pytest

from tests.program import Program
from tests.wire import post

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MODEL = "SmolLM2-135M-Instruct"
CITY = {"type": "object", "properties": {"city": {"enum": ["Oulu", "Turku"]}}, "required": ["city"]}


@pytest.fixture(scope="module")
def client(smollm2: Program) -> Iterator[httpx.Client]:
    with smollm2.client() as client:
        yield client


def completion(client: httpx.Client, prompt: Any = "Helsinki is the capital of", **fields: Any) -> Any:
    body = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 4, **fields}
    return post(client, TEXT, body)


def chat(client: httpx.Client, **fields: Any) -> Any:
    messages = [{"role": "user", "content": "Say <f>"}]
    return post(client, CHAT, {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 30, **fields})


def test_prompt_logprobs_equal_the_logprobs_of_an_echo(client: httpx.Client) -> None:
    (echoed,) = completion(client, echo=True, logprobs=2)["choices"]
    (scored,) = completion(client, prompt_logprobs=2, return_token_ids=True)["choices"]
    ids, entries = scored["prompt_token_ids"], scored["prompt_logprobs"]
    assert entries[0] is None
    own = [entry[str(token)] for token, entry in zip(ids[1:], entries[1:], strict=True)]
    wanted = echoed["logprobs"]["token_logprobs"][1 : len(ids)]
    assert [one["logprob"] for one in own] == pytest.approx(wanted, abs=1e-4)
    assert [one["decoded_token"] for one in own] == echoed["logprobs"]["tokens"][1 : len(ids)]
    for entry in entries[1:]:
        ranked = sorted(entry.values(), key=lambda one: one["rank"])
        assert [one["rank"] for one in ranked][:2] == [1, 2]
        assert [one["logprob"] for one in ranked] == sorted((one["logprob"] for one in ranked), reverse=True)


def test_listed_tokens_leave_other_requests_their_likeliest_ones(client: httpx.Client) -> None:
    """Run requests with and without listed tokens in the same engine steps: each gets the same logprobs as alone."""
    listed: dict[str, Any] = {"logprobs": 1, "logprob_token_ids": [11, 7, 500], "return_tokens_as_token_ids": True}
    asked: list[dict[str, Any]] = [
        {"logprobs": 5},
        listed,
        {"logprobs": 0},
        {**listed, "logprob_token_ids": [3]},
        {"logprobs": 2},
        {},
    ]
    alone = [completion(client, max_tokens=24, **fields)["choices"][0]["logprobs"] for fields in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        jobs = [pool.submit(completion, client, max_tokens=24, **fields) for fields in asked]
        together = [job.result()["choices"][0]["logprobs"] for job in jobs]
    for fields, one, other in zip(asked, alone, together, strict=True):
        if one is None:
            assert other is None
            continue
        # Another batch may round differently. From then on another token may be the likeliest.
        same = list(takewhile(lambda pair: pair[0] == pair[1], zip(one["tokens"], other["tokens"], strict=True)))
        assert len(same) >= 4
        for mine, theirs in zip(one["top_logprobs"][: len(same)], other["top_logprobs"], strict=False):
            assert len(mine) == len(theirs)
            assert "logprob_token_ids" not in fields or mine.keys() == theirs.keys()
            assert max(mine.values()) == pytest.approx(max(theirs.values()), abs=0.5)
            assert min(mine.values()) == pytest.approx(min(theirs.values()), abs=0.5)
    for tops in alone[1]["top_logprobs"]:
        assert {"token_id:11", "token_id:7", "token_id:500"} <= tops.keys()
        assert all(-100 < score < 0 for score in tops.values())


def test_chat_s_prompt_is_scored(client: httpx.Client) -> None:
    answer = chat(client, prompt_logprobs=0, return_token_ids=True, max_tokens=1)
    assert len(answer["prompt_logprobs"]) == len(answer["prompt_token_ids"])
    assert [len(entry) for entry in answer["prompt_logprobs"][1:]] == [1] * (len(answer["prompt_token_ids"]) - 1)


def test_prompt_is_cut_at_its_right_side(client: httpx.Client) -> None:
    whole = post(client, "/tokenize", {"prompt": "one two three four five"})["tokens"]
    answer = completion(
        client, "one two three four five", truncate_prompt_tokens=2, truncation_side="right", return_token_ids=True
    )
    assert answer["choices"][0]["prompt_token_ids"] == whole[:2]


def test_prompt_of_any_length_is_truncated_to_the_context(client: httpx.Client) -> None:
    length = client.get("/v1/models").json()["data"][0]["max_model_len"]
    answer = completion(client, "one two three " * length, truncate_prompt_tokens=-1)
    assert answer["usage"]["prompt_tokens"] == length - 4
    assert answer["usage"]["completion_tokens"] <= 4


def test_completion_keeps_a_response_format(client: httpx.Client) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    (choice,) = completion(client, response_format=form, max_tokens=30)["choices"]
    assert json.loads(choice["text"])["city"] in ("Oulu", "Turku")


@pytest.mark.parametrize("place", ["response_format", "structured_outputs"])
def test_structural_tag_is_kept(client: httpx.Client, place: str) -> None:
    # The bias below forces the text to begin with a trigger.
    triggers = [chr(ord("A") + number) for number in range(16)]
    structures = [{"begin": letter, "schema": CITY, "end": ";"} for letter in triggers]
    form = {"type": "structural_tag", "structures": structures, "triggers": triggers}
    fields = {place: form if place == "response_format" else {"structural_tag": json.dumps(form)}}
    bias = {str(post(client, "/tokenize", {"prompt": "A"})["tokens"][0]): 100}
    (choice,) = chat(client, logit_bias=bias, **fields)["choices"]
    assert re.match(r'^A\{"city": "(Oulu|Turku)"\};', choice["message"]["content"]), choice


def test_json_beside_tools_holds_for_an_answer_without_calls(client: httpx.Client) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    # The bias forbids the first token of a tool call.
    bias = {str(post(client, "/tokenize", {"prompt": "<tool_call>"})["tokens"][0]): -100}
    (choice,) = chat(client, tools=tools, structured_outputs={"json": CITY}, logit_bias=bias)["choices"]
    assert choice["finish_reason"] == "stop"
    assert json.loads(choice["message"]["content"])["city"] in ("Oulu", "Turku")
