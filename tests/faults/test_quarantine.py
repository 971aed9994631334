"""A request that kills the engine is sent again by every default client: it may not end everybody's twice more."""

from __future__ import annotations

import httpx
import pytest
from openai import BadRequestError, OpenAI

from tests.faults.streams import streaming
from tests.program import Program, eventually, running
from tests.wire import metric

FAKE = ("--engine", "fake", "--engine-arg", "die_on=POISON", "--engine-arg", "token_delay_s=0.01")


def ask(program: Program, prompt: str) -> httpx.Response:
    with program.client() as client:
        return client.post("/v1/completions", json={"model": program.model, "prompt": prompt, "max_tokens": 3})


def ready(program: Program) -> None:
    with program.client() as client:
        eventually(lambda: client.get("/readyz").status_code == 200, within_s=40)


def test_a_request_that_ran_in_two_deaths_is_refused_for_a_while_and_others_are_served() -> None:
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


def test_the_default_client_with_its_retries_kills_the_engine_twice_at_most() -> None:
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


def test_one_who_ran_beside_it_once_is_no_suspect() -> None:
    with running(*FAKE) as program:
        with streaming(program, [{"prompt": "beside", "max_tokens": 1000, "ignore_eos": True}]) as streams:
            assert ask(program, "POISON").status_code == 500
        assert streams[0].terminals() == ["engine_error"]
        ready(program)
        assert ask(program, "beside").status_code == 200


@pytest.mark.engine
@pytest.mark.timeout(240)
def test_a_request_that_was_running_when_the_real_engine_was_killed_twice_is_refused(fresh: Program) -> None:
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
