"""Stored responses: read, list, continue, remove; each tenant its own; faults of the database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.bodies import RESPONSES, assert_error
from tests.contract.conftest import serving
from tokka.accounts.responses import Kept
from tokka.app import Server
from tokka.engine.fake import FakeOptions
from tokka.errors import StateUnavailable
from tokka.store.errors import Unavailable

FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
ALICE, BOB = {"authorization": "Bearer alice-key"}, {"authorization": "Bearer bob-key"}


@asynccontextmanager
async def storing(
    folder: Path, max_model_len: int = 4096, **settings: Any
) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    keys = ["alice-key", "bob-key"]
    options = FakeOptions(tool_calls=True, max_model_len=max_model_len)
    async with serving(options, state_dir=folder, api_key=keys, **settings) as server:
        await server.accounts.open()
        transport = httpx.ASGITransport(server.app)
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://tokka", headers=ALICE) as client:
                yield server, client
        finally:
            await server.accounts.close()


@pytest.fixture
async def stored(tmp_path: Path) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    async with storing(tmp_path) as both:
        yield both


@pytest.fixture
def client(stored: tuple[Server, httpx.AsyncClient]) -> httpx.AsyncClient:
    return stored[1]


async def create(client: httpx.AsyncClient, given: Any = "Hei", **fields: Any) -> dict[str, Any]:
    answer = await client.post(RESPONSES, json={"model": "fake", "input": given, **fields})
    assert answer.status_code == 200, answer.text
    if not fields.get("stream"):
        made: dict[str, Any] = answer.json()
        return made
    *_, last, _, _ = answer.text.split("\n\n")
    whole: dict[str, Any] = json.loads(last.partition("data: ")[2])["response"]
    return whole


@pytest.mark.parametrize("stream", [True, False])
async def test_response_is_read_as_it_was_sent(client: httpx.AsyncClient, stream: bool) -> None:
    made = await create(client, stream=stream, metadata={"a": "b"}, instructions="Be brief.")
    assert made["store"] is True
    assert (await client.get(f"{RESPONSES}/{made['id']}")).json() == made


async def test_response_survives_a_restart(tmp_path: Path) -> None:
    async with storing(tmp_path) as (_, client):
        made = await create(client)
    async with storing(tmp_path) as (_, client):
        assert (await client.get(f"{RESPONSES}/{made['id']}")).json() == made


async def test_response_is_not_stored_if_the_client_declines(client: httpx.AsyncClient) -> None:
    made = await create(client, store=False)
    assert made["store"] is False
    assert (await client.get(f"{RESPONSES}/{made['id']}")).status_code == 404


async def test_conversation_goes_on_from_a_stored_response(client: httpx.AsyncClient) -> None:
    first = await create(client, "Weather?", tools=[FUNCTION], instructions="Call f.")
    (call,) = first["output"]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "Sunny"}
    second = await create(client, [result], tools=[FUNCTION], previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    whole = [{"role": "user", "content": "Weather?"}, call, result]
    counted = await client.post(
        f"{RESPONSES}/input_tokens", json={"model": "fake", "input": whole, "tools": [FUNCTION]}
    )
    assert second["usage"]["input_tokens"] == counted.json()["input_tokens"]
    third = await create(client, "And tomorrow?", previous_response_id=second["id"])
    assert third["usage"]["input_tokens"] > second["usage"]["input_tokens"]


async def test_input_items_are_listed_in_pages(client: httpx.AsyncClient) -> None:
    items = [{"role": "user", "content": f"{number}"} for number in range(5)]
    made = await create(client, items)
    path = f"{RESPONSES}/{made['id']}/input_items"
    texts = []
    page = (await client.get(path, params={"limit": 2, "include[]": "x"})).json()
    while True:
        texts += [item["content"][0]["text"] for item in page["data"]]
        assert [page["data"][0]["id"], page["data"][-1]["id"]] == [page["first_id"], page["last_id"]]
        if not page["has_more"]:
            break
        page = (await client.get(path, params={"limit": 2, "after": page["last_id"]})).json()
    assert texts == ["4", "3", "2", "1", "0"]
    upwards = (await client.get(path, params={"order": "asc"})).json()["data"]
    assert [item["content"][0]["text"] for item in upwards] == ["0", "1", "2", "3", "4"]
    assert (await client.get(path, params={"limit": 0})).status_code == 400


async def test_removed_response_is_gone(client: httpx.AsyncClient) -> None:
    made = await create(client)
    path = f"{RESPONSES}/{made['id']}"
    assert (await client.delete(path)).json() == {"id": made["id"], "object": "response", "deleted": True}
    for answer in (await client.get(path), await client.delete(path), await client.get(f"{path}/input_items")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "response_not_found")
    answer = await client.post(RESPONSES, json={"model": "fake", "input": "x", "previous_response_id": made["id"]})
    assert_error(answer, 400, "previous_response_id", "previous_response_not_found")


async def test_response_of_another_tenant_is_not_found(client: httpx.AsyncClient) -> None:
    made = await create(client)
    path = f"{RESPONSES}/{made['id']}"
    assert (await client.get(path, headers=BOB)).status_code == 404
    assert (await client.get(f"{path}/input_items", headers=BOB)).status_code == 404
    assert (await client.delete(path, headers=BOB)).status_code == 404
    body = {"model": "fake", "input": "x", "previous_response_id": made["id"]}
    assert (await client.post(RESPONSES, json=body, headers=BOB)).json()["error"][
        "code"
    ] == "previous_response_not_found"
    reference = [{"type": "item_reference", "id": made["output"][0]["id"]}]
    assert (await client.post(RESPONSES, json={**body, "input": reference}, headers=BOB)).status_code == 400
    assert (await client.get(path)).status_code == 200


async def test_item_reference_stands_for_the_stored_item(client: httpx.AsyncClient) -> None:
    made = await create(client, "Weather?", tools=[FUNCTION])
    (call,) = made["output"]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "Sunny"}
    user = {"role": "user", "content": "Weather?"}
    referring = await create(client, [user, {"type": "item_reference", "id": call["id"]}, result])
    direct = await create(client, [user, call, result])
    assert referring["usage"] == direct["usage"]


@pytest.mark.parametrize("bad", ["resp_1", "x" * 300, "%00", "resp_" + "g" * 32])
async def test_malformed_id_is_not_found(client: httpx.AsyncClient, bad: str) -> None:
    assert (await client.get(f"{RESPONSES}/{bad}")).status_code == 404


async def test_tenant_keeps_its_newest_responses(tmp_path: Path) -> None:
    async with storing(tmp_path, response_storage="8KiB") as (_, client):
        made = [await create(client, "Hei" * number) for number in range(1, 40)]
        found = [(await client.get(f"{RESPONSES}/{response['id']}")).status_code for response in made]
        assert found[-1] == 200
        assert found[0] == 404


async def test_storage_counts_bytes_before_compression(tmp_path: Path) -> None:
    async with storing(tmp_path, 1 << 20, response_storage="1MiB") as (_, client):
        made = [await create(client, " " * 600_000) for _ in range(3)]
        found = [(await client.get(f"{RESPONSES}/{response['id']}")).status_code for response in made]
        assert found == [404, 404, 200]


async def test_conversation_beyond_the_body_limit_is_refused(tmp_path: Path) -> None:
    async with storing(tmp_path, 1 << 20, max_body_size="100KB") as (_, client):
        first = await create(client, " " * 60_000)
        body = {"model": "fake", "input": " " * 60_000, "previous_response_id": first["id"]}
        for path in (RESPONSES, f"{RESPONSES}/compact", f"{RESPONSES}/input_tokens"):
            answer = await client.post(path, json=body)
            assert_error(answer, 400, "input")
            assert "at most 102,400 are allowed. Begin a new one." in answer.json()["error"]["message"]
        second = await create(client, " " * 30_000, previous_response_id=first["id"])
        assert second["status"] == "completed"
        reference = {"type": "item_reference", "id": first["output"][0]["id"]}
        filler = {"role": "user", "content": " " * 101_000}
        answer = await client.post(RESPONSES, json={"model": "fake", "input": [filler, *[reference] * 10]})
        assert_error(answer, 400, "input")
        assert "Begin a new one." in answer.json()["error"]["message"]


async def test_old_responses_are_removed(tmp_path: Path) -> None:
    async with storing(tmp_path, response_ttl=1e-9) as (server, client):
        made = await create(client)
        await server.accounts.ask(lambda ledger: ledger.prune_responses(-2, 1 << 30))
        assert (await client.get(f"{RESPONSES}/{made['id']}")).status_code == 404


def failing(*_: Any) -> None:
    raise Unavailable("told to")


async def test_response_says_that_it_could_not_be_stored(
    stored: tuple[Server, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = stored
    monkeypatch.setattr("tokka.store.responses.save", failing)
    made = await create(client)
    assert (made["store"], made["status"]) == (False, "completed")
    assert not server.accounts.is_up
    assert (await create(client))["store"] is False


@pytest.mark.parametrize("stream", [True, False])
async def test_client_that_insists_gets_an_error(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr("tokka.store.responses.save", failing)
    answer = await client.post(RESPONSES, json={"model": "fake", "input": "Hei", "store": True, "stream": stream})
    if stream:
        *_, error, failed, _, _ = answer.text.split("\n\n")
        assert "state_unavailable" in error
        assert json.loads(failed.partition("data: ")[2])["response"]["store"] is False
    else:
        assert answer.status_code == 503
    again = await client.post(RESPONSES, json={"model": "fake", "input": "Hei", "store": True})
    assert (again.status_code, again.json()["error"]["param"]) == (503, "store")


async def test_stalled_database_delays_responses_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes, stalls, resumes = 0, asyncio.Event(), asyncio.Event()

    async def stalled(question: object) -> None:
        nonlocal writes
        writes += 1
        stalls.set()
        await resumes.wait()
        server.accounts.is_up = False
        raise StateUnavailable("told to")

    async with storing(tmp_path) as (server, _):
        monkeypatch.setattr(server.accounts, "ask", stalled)
        kept = Kept({"id": "resp_1", "status": "completed", "output": []}, [])
        saving = [asyncio.create_task(server.responses.save("alice", kept)) for _ in range(200)]
        await stalls.wait()
        resumes.set()
        ends = await asyncio.gather(*saving, return_exceptions=True)
        assert all(isinstance(end, StateUnavailable) for end in ends)
        with pytest.raises(StateUnavailable):
            await server.responses.save("alice", kept)
        assert writes == 1


async def test_many_responses_are_stored_at_once(client: httpx.AsyncClient) -> None:
    made = await asyncio.gather(*(create(client, f"{number}") for number in range(100)))
    for response in made[::10]:
        assert (await client.get(f"{RESPONSES}/{response['id']}")).json() == response
