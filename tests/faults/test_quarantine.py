"""Quarantine: default clients resend a request that killed the engine, and after two deaths the server refuses it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI

from tests.faults.streams import streaming
from tests.program import READY_TIMEOUT_S, TENANTS, Program, eventually, running
from tests.wire import metric

FAKE = ("--engine", "fake", "--engine-arg", "die_on=POISON", "--engine-arg", "token_delay_s=0.01")


APART = (*FAKE, "--metrics-open", *(word for key in TENANTS for word in ("--api-key", key)))
FIRST, SECOND = TENANTS


def ask(program: Program, prompt: str, key: str = "none") -> httpx.Response:
    body = {"model": program.model, "prompt": prompt, "max_tokens": 3}
    with program.client() as client:
        return client.post("/v1/completions", json=body, headers={"authorization": f"Bearer {key}"})


def ready(program: Program) -> None:
    with program.client() as client:
        eventually(lambda: client.get("/readyz").status_code == 200, within_s=READY_TIMEOUT_S)


def test_request_is_refused_when_it_ran_in_two_engine_deaths() -> None:
    with running(*FAKE) as program:
        for _ in range(2):
            assert ask(program, "POISON").status_code == 500
            ready(program)
        refused = ask(program, "POISON")
        assert refused.status_code == 400
        assert refused.headers["x-should-retry"] == "false"
        assert "refused for another" in refused.json()["error"]["message"]
        assert ask(program, "hello").status_code == 200
        with program.client() as client:
            assert metric(client, "tokka_engine_restarts_total") == 2
            assert metric(client, "tokka_requests_total", outcome="invalid") == 1


def test_poison_of_one_tenant_is_no_others() -> None:
    with running(*APART) as program:
        for key in TENANTS:
            for _ in range(2):
                assert ask(program, "POISON", key).status_code == 500
                ready(program)
            assert ask(program, "POISON", key).status_code == 400
        assert [ask(program, "hello", key).status_code for key in TENANTS] == [200, 200]


def test_variants_of_poison_hold_their_tenant_alone() -> None:
    with running(*APART) as program:
        statuses = []
        for number in range(10):
            answer = ask(program, f"POISON {number}", FIRST)
            statuses.append(answer.status_code)
            ready(program)
            assert ask(program, "hello", SECOND).status_code == 200
        assert statuses == [500] * 3 + [503] * 7
        assert answer.json()["error"]["code"] == "tenant_held"
        with program.client() as client:
            assert metric(client, "tokka_engine_restarts_total") == 3
            assert metric(client, "tokka_rejections_total", reason="tenant_held") == 7


def test_variants_of_poison_end_a_server_of_one_tenant() -> None:
    with running(*FAKE, "--max-quick-deaths", "4") as program:
        for number in range(3):
            assert ask(program, f"POISON {number}").status_code == 500
            ready(program)
            assert ask(program, "hello").status_code == 200
        assert ask(program, "POISON 3").status_code == 500
        assert program.process.wait(30) == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
    ],
    ids=["required", "named"],
)
@pytest.mark.engine
@pytest.mark.timeout(600)
def test_request_that_must_call_is_recognised(fresh: Program, fields: dict[str, Any]) -> None:
    # Long enough for a kill in the middle of the tool call.
    parameters = {"type": "object", "properties": {"x": {"type": "string", "minLength": 1000}}, "required": ["x"]}
    body = {
        "model": fresh.model,
        "messages": [{"role": "user", "content": "poison"}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}],
        "stream": True,
        **fields,
    }
    for _ in range(2):
        with fresh.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
            pieces = answer.iter_text()
            next(pieces)
            fresh.core().kill()
            assert "engine_error" in "".join(pieces)
        ready(fresh)
    with fresh.client() as client:
        assert client.post("/v1/chat/completions", json=body).status_code == 400


def test_retrying_client_kills_the_engine_at_most_twice() -> None:
    with running(*FAKE) as program, program.client() as client:
        openai = OpenAI(base_url=f"{program.url}/v1", api_key="none")
        with pytest.raises(BadRequestError, match="was running each time"):
            openai.with_options(max_retries=10).completions.create(model=program.model, prompt="POISON", max_tokens=3)
        assert metric(client, "tokka_engine_restarts_total") == 2


def test_the_quarantine_ends_with_its_time() -> None:
    with running(*FAKE, "--quarantine-time", "4", "--max-quick-deaths", "9") as program:
        for _ in range(2):
            assert ask(program, "POISON").status_code == 500
            ready(program)
        assert ask(program, "POISON").status_code == 400
        eventually(lambda: ask(program, "POISON").status_code == 500, within_s=10)


def test_request_is_served_when_it_ran_in_one_engine_death() -> None:
    with running(*FAKE) as program:
        with streaming(program, [{"prompt": "beside", "max_tokens": 1000, "ignore_eos": True}]) as streams:
            assert ask(program, "POISON").status_code == 500
        assert streams[0].terminals() == ["engine_error"]
        ready(program)
        assert ask(program, "beside").status_code == 200


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_request_is_refused_when_it_ran_in_two_kills_of_the_engine(fresh: Program) -> None:
    poison = {"prompt": "poison", "max_tokens": 7000, "ignore_eos": True}
    for _ in range(2):
        with streaming(fresh, [poison]) as streams:
            fresh.core().kill()
        assert streams[0].terminals() == ["engine_error"]
        ready(fresh)
    with streaming(fresh, [poison]) as streams:
        pass
    assert streams[0].status == 400
    assert streams[0].headers["x-should-retry"] == "false"
    assert ask(fresh, "The capital of Finland is").status_code == 200
