"""Isolation: completions and the cache show nothing of other clients, and slow grammars do not block other tenants."""

from __future__ import annotations

import secrets
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any

import httpx
import pytest

from tests.engine.grammars.samples import slow
from tests.faults.marked import marked
from tests.faults.streams import streaming
from tests.program import TENANTS, Program

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]


FIRST, SECOND = TENANTS


def test_64_concurrent_streams_show_their_own_marker_and_no_other(smollm2: Program) -> None:
    markers = [secrets.token_hex(4) for _ in range(64)]
    bodies: list[dict[str, Any]] = [
        {"prompt": marked(marker), "max_tokens": 24, "temperature": 0, "ignore_eos": True} for marker in markers
    ]
    with streaming(smollm2, bodies) as streams:
        pass
    # Repeat with every prefix in the cache.
    with streaming(smollm2, bodies) as again:
        pass
    for stream, own in zip([*streams, *again], markers * 2, strict=True):
        assert stream.terminals() == ["length"]
        foreign = [marker for marker in markers if marker != own and marker in stream.content]
        assert foreign == []
    shown = sum(own in stream.content for stream, own in zip(streams, markers, strict=True))
    # The test sees a leak only if the model repeats markers at all.
    assert shown >= 56


def cached(program: Program, tenant: str, prompt: str, **fields: Any) -> int:
    """Return how many tokens of the prompt were in the prefix cache."""
    answer = httpx.post(
        f"{program.url}/v1/completions",
        json={"model": program.model, "prompt": prompt, "max_tokens": 1, **fields},
        headers={"authorization": f"Bearer {tenant}"},
        timeout=60,
    ).raise_for_status()
    tokens: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tokens


def test_cached_prompt_serves_only_its_own_tenant(tenants: Program) -> None:
    prompt = marked("tenant")
    assert cached(tenants, FIRST, prompt) == 0
    assert cached(tenants, FIRST, prompt) > 0
    assert cached(tenants, SECOND, prompt) == 0


def test_a_clients_own_salt_divides_its_cache_and_opens_no_others(tenants: Program) -> None:
    prompt = marked("salt")
    assert cached(tenants, FIRST, prompt, cache_salt="a") == 0
    assert cached(tenants, FIRST, prompt, cache_salt="a") > 0
    assert cached(tenants, FIRST, prompt, cache_salt="b") == 0
    assert cached(tenants, SECOND, prompt, cache_salt="a") == 0


def test_sharing_can_be_asked_for(sharing: Program) -> None:
    prompt = marked("shared")
    assert cached(sharing, FIRST, prompt) == 0
    assert cached(sharing, SECOND, prompt) > 0


def constrained(program: Program, tenant: str, **constraint: str) -> httpx.Response:
    return httpx.post(
        f"{program.url}/v1/completions",
        json={"model": program.model, "prompt": "x", "max_tokens": 2, "structured_outputs": constraint},
        headers={"authorization": f"Bearer {tenant}"},
        timeout=60,
    )


def test_flood_of_slow_grammars_leaves_other_tenants_served(tenants: Program) -> None:
    with ThreadPoolExecutor(40) as pool:
        flood = [pool.submit(constrained, tenants, FIRST, grammar=slow(number).text) for number in range(40)]
        # From here on the compiler is busy.
        wait(flood, return_when=FIRST_COMPLETED)
        answers = [constrained(tenants, SECOND, regex=f"[a-z]{{{number}}}") for number in range(1, 5)]
        assert not all(one.done() for one in flood)
    assert [answer.status_code for answer in answers] == [200] * 4
    refused = [one.result() for one in flood]
    assert {answer.status_code for answer in refused} == {400, 503}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused if answer.status_code == 503)
