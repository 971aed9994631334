"""The WebSocket form of /v1/responses: conversations, errors, and the same records as over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from tests.program import TENANTS, Program, eventually, running
from tests.sockets import PATH, opened
from tests.wire import metric

FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
ADMIN = "admin-key-0123456789"
KEYS = ("--api-key", TENANTS[0], "--api-key", TENANTS[1], "--admin-key", ADMIN)
CODE = "previous_response_not_found"


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    with running("--engine", "fake", "--engine-arg", "tool_calls=true", *KEYS) as program:
        yield program


def over_http(program: Program, key: str = TENANTS[0], **fields: Any) -> httpx.Response:
    body = {"model": program.model, "input": "Hei", **fields}
    return httpx.post(f"{program.url}{PATH}", json=body, headers={"authorization": f"Bearer {key}"})


def test_events_equal_the_stream_over_http(program: Program) -> None:
    text = over_http(program, stream=True, store=False).text
    *lines, done, _ = text.split("\n\n")
    assert done == "data: [DONE]"
    streamed = [json.loads(line.partition("data: ")[2]) for line in lines]
    with opened(program) as socket:
        socket.ask()
        events = socket.events()
    assert [event["type"] for event in events] == [event["type"] for event in streamed]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["response"]["usage"] == streamed[-1]["response"]["usage"]


def test_unstored_conversation_goes_on_over_its_connection(program: Program) -> None:
    with opened(program) as socket:
        first = socket.turn("Weather?", tools=[FUNCTION])
        (call,) = first["output"]
        assert first["store"] is False
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "Sunny"}
        second = socket.turn([result], tools=[FUNCTION], previous_response_id=first["id"])
        third = socket.turn("And tomorrow?", previous_response_id=second["id"])
    items = [{"role": "user", "content": "Weather?"}, call, result]
    whole = over_http(program, input=items, tools=[FUNCTION], store=False).json()
    assert second["usage"] == whole["usage"]
    assert third["usage"]["input_tokens"] > second["usage"]["input_tokens"]


def test_unstored_response_ends_with_its_connection(program: Program) -> None:
    with opened(program) as socket:
        first = socket.turn()
    with opened(program) as socket:
        assert socket.refusal(previous_response_id=first["id"]) == (400, CODE, "previous_response_id")
        assert socket.turn()["status"] == "completed"


def test_only_the_last_unstored_response_goes_on(program: Program) -> None:
    with opened(program) as socket:
        first = socket.turn()
        second = socket.turn()
        assert socket.refusal(previous_response_id=first["id"])[1] == CODE
        assert socket.turn(previous_response_id=second["id"])["status"] == "completed"


@pytest.mark.parametrize(
    "bad",
    [
        {"given": [{"type": "function_call_output", "call_id": "call_x", "output": "x"}]},
        {"temperature": 3},
        {"model": "no-such-model"},
        {"given": "x" * 5000},
    ],
)
def test_failed_continuation_forgets_the_response(program: Program, bad: dict[str, Any]) -> None:
    with opened(program) as socket:
        first = socket.turn()
        assert socket.refusal(previous_response_id=first["id"], **bad)[0] in (400, 404)
        assert socket.refusal(previous_response_id=first["id"])[1] == CODE


def test_other_failed_request_keeps_the_response(program: Program) -> None:
    with opened(program) as socket:
        first = socket.turn()
        assert socket.refusal(temperature=3) == (400, "invalid_value", "temperature")
        assert socket.turn(previous_response_id=first["id"])["status"] == "completed"


def test_stored_response_goes_on_over_any_connection(program: Program) -> None:
    with opened(program) as socket:
        first = socket.turn(store=None)
        assert first["store"] is True
        second = over_http(program, previous_response_id=first["id"]).json()
        third = socket.turn(store=None, previous_response_id=second["id"])
    assert third["usage"]["input_tokens"] > second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
    with opened(program) as socket:
        assert socket.turn(previous_response_id=third["id"])["status"] == "completed"


def test_removed_response_does_not_go_on(program: Program) -> None:
    with opened(program) as socket:
        first = socket.turn(store=None)
        gone = httpx.delete(f"{program.url}{PATH}/{first['id']}", headers={"authorization": f"Bearer {TENANTS[0]}"})
        assert gone.status_code == 200
        assert socket.refusal(previous_response_id=first["id"])[1] == CODE


def test_response_of_another_tenant_does_not_go_on(program: Program) -> None:
    with opened(program) as socket:
        first = socket.turn(store=None)
        with opened(program, TENANTS[1]) as other:
            assert other.refusal(previous_response_id=first["id"])[1] == CODE


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("not JSON", None),
        ("[]", None),
        ('{"model": "fake", "input": "x"}', "type"),
        ('{"type": "response.cancel", "model": "scripted", "input": "x"}', "type"),
        ('{"type": "response.create", "input": "x"}', "model"),
        ('{"type": "response.create", "model": "scripted", "input": "x", "stream": false}', "stream"),
        ('{"type": "response.create", "model": "scripted", "input": "x", "background": true}', "background"),
        ('{"type": "response.create", "model": "scripted", "input": "x", "generate": false}', "generate"),
        ('{"type": "response.create", "model": "scripted", "input": "x", "stream_id": "a"}', "stream_id"),
        (b"\xff\xfe", None),
    ],
)
def test_bad_message_gets_an_error_that_names_the_field(program: Program, message: str | bytes, param: str) -> None:
    with opened(program) as socket:
        socket.connection.send(message)
        (event,) = socket.events()
        assert (event["type"], event["status"], event["error"]["param"]) == ("error", 400, param)
        assert event["error"]["message"]
        assert event["error"]["headers"]["x-request-id"].startswith("req_")
        assert socket.turn()["status"] == "completed"


def test_stream_may_say_that_it_is_one(program: Program) -> None:
    with opened(program) as socket:
        assert socket.turn(stream=True, stream_options={"include_obfuscation": True})["status"] == "completed"


def test_missing_key_is_refused_before_the_upgrade(program: Program) -> None:
    for key in (None, "wrong-key-0123456789"):
        with pytest.raises(InvalidStatus) as refused, opened(program, key):
            pass
        answer = refused.value.response
        assert (answer.status_code, json.loads(answer.body or b"")["error"]["code"]) == (401, "invalid_api_key")


def test_get_without_an_upgrade_is_not_allowed(program: Program) -> None:
    answer = httpx.get(f"{program.url}{PATH}", headers={"authorization": f"Bearer {TENANTS[0]}"})
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "WebSocket" in answer.json()["error"]["message"]


@pytest.mark.parametrize("bad", [{"Sec-WebSocket-Key": "x"}, {"Sec-WebSocket-Version": "8"}, {"Sec-WebSocket-Key": ""}])
def test_invalid_handshake_is_a_400(program: Program, bad: dict[str, str]) -> None:
    good = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13"}
    offer = {"Connection": "Upgrade", "Upgrade": "websocket", "authorization": f"Bearer {TENANTS[0]}"}
    answer = httpx.get(f"{program.url}{PATH}", headers={**offer, **good, **bad})
    assert answer.status_code == 400
    assert "handshake" in answer.json()["error"]["message"]


def test_request_is_counted_and_logged_as_over_http(program: Program) -> None:
    with httpx.Client(base_url=program.url, headers={"authorization": f"Bearer {ADMIN}"}) as admin:

        def count(outcome: str) -> float:
            return metric(admin, "tokka_requests_total", endpoint=PATH, outcome=outcome)

        before, logged = (count("stop"), count("invalid")), len(program.log)
        with opened(program, TENANTS[1]) as socket:
            usage = socket.turn()["usage"]
            socket.refusal(temperature=3)
        eventually(lambda: (count("stop"), count("invalid")) == (before[0] + 1, before[1] + 1), within_s=5)

    def posted() -> list[dict[str, Any]]:
        lines = [line for line in program.log[logged:] if line.get("event") == "request_finished"]
        return [line for line in lines if line["method"] == "POST"]

    eventually(lambda: len(posted()) == 2, within_s=5)
    done, refused = posted()
    assert (done["status"], done["outcome"], done["stream"]) == (200, "stop", True)
    assert (done["prompt_tokens"], done["completion_tokens"]) == (usage["input_tokens"], usage["output_tokens"])
    assert (refused["status"], refused["outcome"], refused["reason"]) == (400, "invalid", "invalid_value")
    assert done["request_id"] != refused["request_id"]
    eventually(lambda: [line for line in program.log if line.get("status") == 101] != [], within_s=5)
    connection = [line for line in program.log if line.get("status") == 101][-1]
    assert connection["request_id"] not in (done["request_id"], refused["request_id"])


def test_dead_engine_gives_one_last_event() -> None:
    options = ("--engine-arg", "die_on=die now", "--engine-arg", "token_delay_s=0.01")
    with running("--engine", "fake", *options) as program, opened(program, None) as socket:
        socket.ask("die now")
        events = socket.events()
        assert events[-1]["type"] in ("response.failed", "error")
        last = events[-1].get("response") or events[-1]
        assert last["error"]["code"] == "engine_error"
        eventually(lambda: httpx.get(f"{program.url}/readyz").status_code == 200, within_s=20)
        assert socket.turn()["status"] == "completed"


@pytest.mark.parametrize(
    ("origin", "options", "status"),
    [
        ("https://example.com", ("--no-auth",), 403),
        ("https://example.com", (), 403),
        ("https://example.com", ("--no-auth", "--cors-origin", "https://example.com"), 101),
        ("http://localhost:3000", ("--no-auth",), 101),
    ],
)
def test_page_of_another_site_opens_no_socket(origin: str, options: tuple[str, ...], status: int) -> None:
    with running("--engine", "fake", *options) as program:
        if status == 101:
            with opened(program, None, origin=origin) as socket:
                assert socket.turn()["status"] == "completed"
            return
        with pytest.raises(InvalidStatus) as refused, opened(program, None, origin=origin):
            pass
        assert refused.value.response.status_code == status
        assert b"--cors-origin" in (refused.value.response.body or b"")


def test_each_request_is_held_to_the_limits_of_its_key(program: Program) -> None:
    headers = {"authorization": f"Bearer {ADMIN}"}
    limits = {"name": "limited", "limits": {"rpm": 2}}
    issued = httpx.post(f"{program.url}/admin/keys", json=limits, headers=headers).json()
    with opened(program, issued["key"]) as socket:
        first = socket.turn()
        assert socket.turn(previous_response_id=first["id"])["status"] == "completed"
        socket.ask()
        (event,) = socket.events()
        assert (event["status"], event["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(event["error"]["headers"]["retry-after"]) >= 1
        httpx.delete(f"{program.url}/admin/keys/{issued['id']}", headers=headers).raise_for_status()
        assert socket.refusal()[:2] == (401, "invalid_api_key")
