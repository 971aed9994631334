"""vLLM's own counters count the users' requests, and none of the server's internal ones."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.program import READY_TIMEOUT_S, Program, eventually
from tests.wire import metric

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

# Seconds between two calls of the engine by the watchdog.
PING_S = 5.0


def counted(client: httpx.Client) -> dict[str, float]:
    """Return vLLM's counters and histograms that are not zero."""
    values = {}
    kinds = {}
    for line in client.get("/metrics").text.splitlines():
        if line.startswith("# TYPE vllm:"):
            _, _, name, kind = line.split()
            kinds[name] = kind
        elif line.startswith("vllm:") and "_created" not in line:
            series, value = line.rsplit(" ", 1)
            base = series.partition("{")[0]
            for end in ("_bucket", "_sum", "_count"):
                base = base.removesuffix(end)
            if kinds.get(base) in ("counter", "histogram") and float(value):
                values[series] = float(value)
    return values


def test_engine_metrics_count_users_requests_only(fresh: Program) -> None:
    began_s = time.monotonic()
    with fresh.client() as client:
        assert counted(client) == {}
        # Wait until the watchdog has called the idle engine at least once.
        eventually(lambda: time.monotonic() - began_s > PING_S + 1, within_s=PING_S + 2)
        assert counted(client) == {}
        body = {"model": fresh.model, "prompt": "Hei", "max_tokens": 3, "ignore_eos": True}
        assert client.post("/v1/completions", json=body).status_code == 200
        eventually(lambda: metric(client, "vllm:request_success_total") == 1, within_s=5)
        assert metric(client, "vllm:generation_tokens_total") == 3
        assert metric(client, "vllm:time_to_first_token_seconds_count") == 1

        fresh.core().kill()
        eventually(lambda: client.get("/readyz").status_code == 503, within_s=5)
        eventually(lambda: client.get("/readyz").status_code == 200, within_s=READY_TIMEOUT_S)
        # A new engine starts at zero, and the server's first requests to it are not counted either.
        assert counted(client) == {}


def test_many_may_scrape_at_once(fresh: Program) -> None:
    def scrape(_: int) -> list[int]:
        with fresh.client() as client:
            return [client.get("/metrics").status_code for _ in range(40)]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(scrape, range(8))) == [[200] * 40] * 8
