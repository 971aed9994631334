"""/v1/embeddings, /v1/rerank and /v1/score on the scripted engine: forms, accounts, and refusals."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.bodies import assert_error, post
from tests.contract.conftest import serving
from tokka.app import Server
from tokka.engine.fake import FakeOptions

EMBEDDINGS, RERANK, SCORE = "/v1/embeddings", "/v1/rerank", "/v1/score"
TEXTS = ["Helsinki is the capital of Finland.", "Turku is a city in Finland.", "Bread is made of flour."]


async def embed(client: httpx.AsyncClient, given: Any, **fields: Any) -> dict[str, Any]:
    answer = await client.post(EMBEDDINGS, json={"model": "fake", "input": given, **fields})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def vectors(body: dict[str, Any]) -> list[Any]:
    return [one["embedding"] for one in body["data"]]


async def test_a_text_becomes_a_vector(client: httpx.AsyncClient) -> None:
    body = await embed(client, "Hei")
    (one,) = body["data"]
    assert (body["object"], body["model"], one["object"], one["index"]) == ("list", "fake", "embedding", 0)
    assert math.hypot(*one["embedding"]) == pytest.approx(1, abs=1e-6)
    assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


async def test_base64_holds_the_same_numbers(client: httpx.AsyncClient) -> None:
    plain, packed = vectors(await embed(client, TEXTS)), await embed(client, TEXTS, encoding_format="base64")
    read = [list(struct.unpack(f"<{len(plain[0])}f", base64.b64decode(text))) for text in vectors(packed)]
    assert read == plain


async def test_vectors_come_in_the_order_of_the_inputs(client: httpx.AsyncClient) -> None:
    texts = [f"text {number}" for number in range(150)]
    body = await embed(client, texts)
    assert [one["index"] for one in body["data"]] == list(range(150))
    (last,) = vectors(await embed(client, texts[149]))
    assert vectors(body)[149] == last


async def test_token_ids_equal_their_text(client: httpx.AsyncClient) -> None:
    (text,) = vectors(await embed(client, "Hei"))
    assert vectors(await embed(client, [72, 101, 105])) == [text]
    assert vectors(await embed(client, [[72, 101, 105], [72, 101, 105]])) == [text, text]


async def test_dimensions_shorten_a_vector(client: httpx.AsyncClient) -> None:
    (vector,) = vectors(await embed(client, "Hei", dimensions=8))
    assert len(vector) == 8
    assert math.hypot(*vector) == pytest.approx(1, abs=1e-6)
    answer = await client.post(EMBEDDINGS, json={"model": "fake", "input": "Hei", "dimensions": 64})
    assert_error(answer, 400, "dimensions")


async def test_foreign_token_ids_are_refused_with_the_remedy(client: httpx.AsyncClient) -> None:
    answer = await client.post(EMBEDDINGS, json={"model": "fake", "input": [[72], [9906, 1917]]})
    assert_error(answer, 400, "input[1]")
    assert "check_embedding_ctx_length=False" in answer.text


async def test_long_inputs_are_refused_or_cut(client: httpx.AsyncClient) -> None:
    long = ["x", "y" * 5000]
    answer = await client.post(EMBEDDINGS, json={"model": "fake", "input": long})
    assert_error(answer, 400, "input[1]", "context_length_exceeded")
    assert "4096 tokens" in answer.text
    cut = await embed(client, long, truncate_prompt_tokens=-1)
    assert cut["usage"]["prompt_tokens"] == 4097
    assert vectors(cut)[1] == vectors(await embed(client, "y" * 4096))[0]
    assert (await embed(client, "abcdef", truncate_prompt_tokens=2))["data"] == (await embed(client, "ab"))["data"]
    left = await embed(client, "abcdef", truncate_prompt_tokens=2, truncation_side="left")
    assert left["data"] == (await embed(client, "ef"))["data"]


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ("", "input"),
        ([], "input"),
        (["a", ""], "input[1]"),
        (None, "input"),
        ([1, -1], "input[1]"),
        ([["a"]], "input[0][0]"),
        (["a", [1]], "input[1]"),
        ([[]], "input[0]"),
        ([True], "input[0]"),
        ({"text": "a"}, "input"),
        (["a"] * 2049, "input"),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_bad_input_is_refused_by_its_place(client: httpx.AsyncClient, value: Any, param: str) -> None:
    assert_error(await client.post(EMBEDDINGS, json={"model": "fake", "input": value}), 400, param)


@pytest.mark.parametrize(
    ("field", "value"),
    [("encoding_format", "int8"), ("dimensions", 0), ("timeout", 0), ("truncate_prompt_tokens", -2), ("stream", True)],
)
async def test_bad_fields_are_refused(client: httpx.AsyncClient, field: str, value: Any) -> None:
    answer = await client.post(EMBEDDINGS, json={"model": "fake", "input": "a", field: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


async def test_most_inputs_are_accepted(client: httpx.AsyncClient) -> None:
    assert len((await embed(client, ["a"] * 2048, encoding_format="base64"))["data"]) == 2048


async def test_bodies_of_many_texts_may_be_larger() -> None:
    body = {"model": "fake", "input": ["x" * 3000] * 1000, "encoding_format": "base64"}
    for limit, status in ((None, 200), ("2MiB", 413)):
        async with serving(max_body_size=limit) as server:
            transport = httpx.ASGITransport(server.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://tokka") as client:
                assert (await client.post(EMBEDDINGS, json=body)).status_code == status
                chat = {"model": "fake", "prompt": "x" * (3 << 20)}
                assert (await client.post("/v1/completions", json=chat)).status_code == 413


async def test_request_counts_as_a_generation_does(server: Server, client: httpx.AsyncClient) -> None:
    await embed(client, ["Hei", "Moi"])
    server.metrics.look()
    text = server.metrics.render().decode()
    labels = 'endpoint="/v1/embeddings",model="fake"'
    assert f'tokka_requests_total{{{labels},outcome="stop"}} 1.0' in text
    assert 'tokka_tokens_total{kind="prompt",model="fake",tenant="anonymous"} 6.0' in text
    assert f"tokka_queue_seconds_count{{{labels}}} 1.0" in text
    assert "completion" not in text.partition("tokka_tokens_total{")[2].partition("# HELP")[0]


async def test_model_that_only_generates_refuses() -> None:
    async with serving(FakeOptions(tasks="generate")) as server:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://tokka") as client:
            answer = await client.post(EMBEDDINGS, json={"model": "fake", "input": "Hei"})
    assert_error(answer, 400, "model", "unsupported_task")
    assert "cannot embed; it can generate text. No served model can do this." in answer.text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
async def test_model_that_only_embeds_refuses_text(path: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hei"}]},
        "/v1/completions": {"prompt": "Hei"},
        "/v1/responses": {"input": "Hei"},
        "/v1/messages": {"messages": [{"role": "user", "content": "Hei"}], "max_tokens": 3},
    }
    body = bodies[path]
    async with serving(FakeOptions(tasks="embed")) as server:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://tokka") as client:
            answer = await client.post(path, json={"model": "fake", **body})
            assert answer.status_code == 400
            assert "cannot generate text; it can embed" in answer.text
            assert (await client.get("/v1/models")).json()["data"][0]["tasks"] == ["embed"]
            resource = (await client.get("/model/fake")).json()
    assert resource["capabilities"] == ["openai-embeddings"]
    assert resource["_links"]["openai-embeddings"] == {"href": "/openai/v1/embeddings", "method": "POST"}


async def test_deadline_gives_no_vectors() -> None:
    async with serving(FakeOptions(prefill_delay_s=5)) as server:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://tokka") as client:
            answer = await client.post(EMBEDDINGS, json={"model": "fake", "input": "Hei", "timeout": 0.05})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "request_timeout")


async def test_aittas_path_is_the_same(client: httpx.AsyncClient) -> None:
    answer = await client.post("/openai/v1/embeddings", json={"model": "fake", "input": "Hei"})
    assert answer.json()["data"] == (await embed(client, "Hei"))["data"]


@pytest.mark.parametrize("path", [RERANK, "/rerank", "/v2/rerank"])
async def test_rerank_puts_the_nearest_document_first(client: httpx.AsyncClient, path: str) -> None:
    body = {"model": "fake", "query": TEXTS[0], "documents": [TEXTS[2], {"text": TEXTS[0]}, TEXTS[1]]}
    answer = (await client.post(path, json=body)).json()
    ranked = answer["results"]
    assert [one["index"] for one in ranked] == [1, 2, 0]
    assert [one["document"]["text"] for one in ranked] == [TEXTS[0], TEXTS[1], TEXTS[2]]
    assert ranked[0]["relevance_score"] == pytest.approx(1, abs=1e-6)
    scores = [one["relevance_score"] for one in ranked]
    assert scores == sorted(scores, reverse=True)
    assert answer["usage"]["prompt_tokens"] == answer["meta"]["tokens"]["input_tokens"]
    assert answer["id"].startswith("rerank-")


async def test_rerank_returns_the_best_without_texts(client: httpx.AsyncClient) -> None:
    body = {"model": "fake", "query": TEXTS[1], "documents": TEXTS, "top_n": 2, "return_documents": False}
    ranked = (await client.post(RERANK, json=body)).json()["results"]
    assert [one["index"] for one in ranked] == [1, 0]
    assert all("document" not in one for one in ranked)


async def test_rerank_cuts_long_documents(client: httpx.AsyncClient) -> None:
    body = {"model": "fake", "query": "x", "documents": ["y" * 9000], "max_tokens_per_doc": 100}
    answer = await client.post(RERANK, json=body)
    assert answer.json()["usage"]["prompt_tokens"] == 101
    del body["max_tokens_per_doc"]
    assert (await client.post(RERANK, json=body)).json()["usage"]["prompt_tokens"] == 4097


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"query": ""}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": "a"}, "documents"),
        ({"documents": ["a", 1]}, "documents[1]"),
        ({"documents": [{"text": ""}]}, "documents[0].text"),
        ({"documents": [{"text": "a", "title": "b"}]}, "documents[0]"),
        ({"documents": ["a"] * 2049}, "documents"),
        ({"top_n": -1}, "top_n"),
        ({"rank_fields": ["text"]}, "rank_fields"),
    ],
    ids=str,
)
async def test_bad_rerank_is_refused(client: httpx.AsyncClient, changes: dict[str, Any], param: str) -> None:
    answer = await client.post(RERANK, json={"model": "fake", "query": "a", "documents": ["b"], **changes})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("names", [("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")])
async def test_score_compares_one_with_all_or_pairs(client: httpx.AsyncClient, names: tuple[str, str]) -> None:
    left, right = names
    answer = (await client.post(SCORE, json={"model": "fake", left: TEXTS[0], right: TEXTS})).json()
    one = [score["score"] for score in answer["data"]]
    assert [score["index"] for score in answer["data"]] == [0, 1, 2]
    assert one[0] == pytest.approx(1, abs=1e-6)
    assert one[0] > one[1] > one[2]
    pairs = (await client.post(SCORE, json={"model": "fake", left: TEXTS, right: TEXTS})).json()
    assert [score["score"] for score in pairs["data"]] == pytest.approx([1, 1, 1], abs=1e-6)
    assert (answer["object"], answer["data"][0]["object"]) == ("list", "score")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"text_1": "a"}, "text_2"),
        ({"text_2": "a"}, "text_1"),
        ({"text_1": "a", "queries": "b", "text_2": "c"}, "text_1"),
        ({"text_1": ["a", "b"], "text_2": ["c"]}, "text_2"),
        ({"text_1": [], "text_2": ["c"]}, "text_1"),
        ({"text_1": "a", "text_2": ["c", None]}, "text_2[1]"),
    ],
    ids=str,
)
async def test_bad_score_is_refused(client: httpx.AsyncClient, body: dict[str, Any], param: str) -> None:
    assert_error(await client.post(SCORE, json={"model": "fake", **body}), 400, param)


async def test_long_query_is_refused_by_its_name(client: httpx.AsyncClient) -> None:
    answer = await client.post(SCORE, json={"model": "fake", "text_1": "y" * 5000, "text_2": ["a"]})
    assert_error(answer, 400, "text_1", "context_length_exceeded")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["text", "a"]), inner, max_size=2),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=JSON, path=st.sampled_from([EMBEDDINGS, RERANK, SCORE]))
def test_any_value_is_served_or_refused(value: Any, path: str) -> None:
    fields = {EMBEDDINGS: ["input"], RERANK: ["documents", "query"], SCORE: ["text_1", "text_2"]}[path]

    async def send() -> None:
        async with serving() as server:
            transport = httpx.ASGITransport(server.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://tokka") as client:
                for field in fields:
                    body = {"model": "fake", **dict.fromkeys(fields, "a"), field: value}
                    answer = await client.post(path, json=body)
                    assert answer.status_code in (200, 400), answer.text
                    if answer.status_code == 400:
                        assert answer.json()["error"]["param"].split("[")[0].split(".")[0] in fields

    asyncio.run(send())


async def test_invalid_utf8_is_refused(client: httpx.AsyncClient) -> None:
    assert (await post(client, EMBEDDINGS, b'{"model":"fake","input":"\xff"}')).status_code == 400
