"""Requests and responses of vLLM's clients, through the whole application."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.contract.bodies import CHAT, COMPLETIONS, GOOD, TOKENIZE
from tests.wire import chunks_of

# Unset fields as clients send them: vLLM's default, or null.
UNSET: dict[str, Any] = {
    "use_beam_search": False,
    "length_penalty": 1.0,
    "spaces_between_special_tokens": True,
    "prompt_logprobs": None,
    "return_tokens_as_token_ids": False,
    "truncation_side": None,
    "logprob_token_ids": None,
    "kv_transfer_params": None,
    "vllm_xargs": None,
    "request_id": None,
    "session_id": None,
    "stop": [],
    "stop_token_ids": [],
    "bad_words": [],
    "min_tokens": 0,
    "priority": 0,
}
OF_CHATS = {"tool_choice": "none", "parallel_tool_calls": True, "top_logprobs": 0, "include_reasoning": True}


async def asked(client: httpx.AsyncClient, path: str, **fields: Any) -> Any:
    answer = await client.post(path, json={**GOOD[path], **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("path", "own"), [(CHAT, {"add_special_tokens": False, **OF_CHATS}), (COMPLETIONS, {"add_special_tokens": True})]
)
async def test_unset_fields_of_vllm_change_no_answer(client: httpx.AsyncClient, path: str, own: dict[str, Any]) -> None:
    plain = await asked(client, path)
    same = await asked(client, path, **UNSET, **own)
    for answer in (plain, same):
        answer.pop("id")
        answer.pop("created")
    assert same == plain


async def test_used_field_without_support_is_refused_by_name(client: httpx.AsyncClient) -> None:
    answer = await client.post(CHAT, json={**GOOD[CHAT], "use_beam_search": True})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "use_beam_search"
    assert "Beam search is not supported" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_prompt_logprobs_score_the_whole_prompt(client: httpx.AsyncClient, path: str) -> None:
    answer = await asked(client, path, prompt_logprobs=3, n=2, return_token_ids=True)
    for place in [answer] if path == CHAT else answer["choices"]:
        ids, scores = place["prompt_token_ids"], place["prompt_logprobs"]
        assert scores[0] is None
        assert [len(entry) for entry in scores[1:]] == [3] * (len(ids) - 1)
        assert [str(token) in entry for token, entry in zip(ids[1:], scores[1:], strict=True)] == [True] * (
            len(ids) - 1
        )


async def test_logprobs_can_name_tokens_by_their_ids(client: httpx.AsyncClient) -> None:
    answer = await asked(client, COMPLETIONS, logprobs=0, return_tokens_as_token_ids=True, return_token_ids=True)
    (choice,) = answer["choices"]
    assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in choice["token_ids"]]


@pytest.mark.parametrize(("path", "prefix"), [(CHAT, "chatcmpl-"), (COMPLETIONS, "cmpl-")])
async def test_two_requests_may_have_the_same_request_id(client: httpx.AsyncClient, path: str, prefix: str) -> None:
    fields = {"request_id": "my-1", "max_tokens": 20}
    answers = await asyncio.gather(*(asked(client, path, n=n, **fields) for n in (1, 2)))
    assert [answer["id"] for answer in answers] == [f"{prefix}my-1"] * 2
    assert [len(answer["choices"]) for answer in answers] == [1, 2]


async def test_prompt_is_cut_at_either_side(client: httpx.AsyncClient) -> None:
    fields = {"truncate_prompt_tokens": 2, "return_token_ids": True}
    sides = [(await asked(client, COMPLETIONS, truncation_side=side, **fields)) for side in ("left", "right", None)]
    assert [bytes(side["choices"][0]["prompt_token_ids"]) for side in sides] == [b"ei", b"He", b"ei"]


async def test_prompt_of_any_length_is_truncated_to_the_context(client: httpx.AsyncClient) -> None:
    answer = await asked(client, COMPLETIONS, prompt="x" * 50_000, truncate_prompt_tokens=-1)
    assert answer["usage"]["prompt_tokens"] == 4096 - GOOD[COMPLETIONS]["max_tokens"]


async def test_documents_and_objects_for_the_template_are_taken(client: httpx.AsyncClient) -> None:
    await asked(client, CHAT, documents=[{"title": "a", "text": "b"}], chat_template_kwargs={"x": {"y": [1]}})


async def test_listed_tokens_are_reported_instead_of_the_likeliest(client: httpx.AsyncClient) -> None:
    fields = {"logprobs": True, "top_logprobs": 1, "logprob_token_ids": [5, 9, 70], "return_tokens_as_token_ids": True}
    (choice,) = (await asked(client, CHAT, **fields))["choices"]
    for token in choice["logprobs"]["content"]:
        assert [top["token"] for top in token["top_logprobs"]] == ["token_id:5", "token_id:9", "token_id:70"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"logprob_token_ids": [5]}),
        (COMPLETIONS, {"logprob_token_ids": [5]}),
        (CHAT, {"logprobs": True, "logprob_token_ids": [5000]}),
        (CHAT, {"logprobs": True, "logprob_token_ids": list(range(21))}),
    ],
)
async def test_listed_tokens_that_cannot_be_reported_are_refused(
    client: httpx.AsyncClient, path: str, fields: dict[str, Any]
) -> None:
    answer = await client.post(path, json={**GOOD[path], **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "logprob_token_ids"


async def test_empty_prompt_has_no_tokens(client: httpx.AsyncClient) -> None:
    counted = await asked(client, TOKENIZE, prompt="")
    assert (counted["tokens"], counted["count"]) == ([], 0)


async def test_streamed_completion_begins_with_its_prompt_s_token_ids(client: httpx.AsyncClient) -> None:
    body = {**GOOD[COMPLETIONS], "stream": True, "return_token_ids": True}
    first, *others = chunks_of((await client.post(COMPLETIONS, json=body)).text)
    assert first["choices"][0]["prompt_token_ids"] == [72, 101, 105]
    assert [choice for chunk in others for choice in chunk["choices"] if choice["prompt_token_ids"] is not None] == []


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_plain_answer_has_the_keys_that_clients_read(client: httpx.AsyncClient, path: str) -> None:
    answer = await asked(client, path)
    (choice,) = answer["choices"]
    place = answer if path == CHAT else choice
    assert (place["prompt_token_ids"], place["prompt_logprobs"], choice["token_ids"]) == (None, None, None)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_every_chunk_has_token_ids_when_they_are_asked_for(client: httpx.AsyncClient, path: str) -> None:
    body = {**GOOD[path], "stream": True, "return_token_ids": True}
    chunks = chunks_of((await client.post(path, json=body)).text)
    ids = [token for chunk in chunks for choice in chunk["choices"] for token in choice["token_ids"]]
    plain = await asked(client, path, return_token_ids=True)
    assert ids == plain["choices"][0]["token_ids"]
