"""A drain, by signal or by request, completes every in-flight and queued request, on the real engine too."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.faults.streams import Stream, streaming
from tests.program import Program, eventually, running
from tests.wire import metric

STREAMS = [{"prompt": f"stream {place}", "max_tokens": 64, "ignore_eos": True} for place in range(50)]


ADMIN_KEY = "admin-key-0123456789"
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}


@pytest.fixture
def administered() -> Iterator[Program]:
    """Start the embedded model on a server that can be drained over HTTP."""
    with running("--admin-key", ADMIN_KEY) as program:
        yield program


def by_signal(program: Program) -> None:
    program.process.send_signal(signal.SIGTERM)


def by_request(program: Program) -> None:
    with program.client() as client:
        answer = client.post("/admin/drain", headers=ADMIN)
    assert answer.status_code == 200
    assert answer.json()["status"] == "draining"


@pytest.mark.engine
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("server", "drain"), [("fresh", by_signal), ("administered", by_request)])
def test_fifty_of_fifty_streams_complete_while_the_new_are_refused(
    server: str, drain: Callable[[Program], None], request: pytest.FixtureRequest
) -> None:
    fresh: Program = request.getfixturevalue(server)
    with fresh.client() as client, streaming(fresh, STREAMS, ADMIN_KEY) as streams:
        assert client.get("/readyz").status_code == 200
        drain(fresh)
        eventually(lambda: client.get("/readyz").status_code == 503, within_s=1)
        # The server still accepts new connections and says why it refuses requests.
        body = {"model": fresh.model, "prompt": "new"}
        refused = httpx.post(f"{fresh.url}/v1/completions", json=body, headers=ADMIN)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert client.get("/livez").status_code == 200
        assert any(not stream.ended_s for stream in streams), "nothing was left to drain"
    assert fresh.process.wait(30) == 0
    assert [stream.terminals() for stream in streams] == [["length"]] * 50
    assert all(stream.is_closed and stream.broken is None for stream in streams)


def test_drain_serves_queued_requests() -> None:
    options = ("--engine", "fake", "--engine-arg", "max_running=1", "--engine-arg", "token_delay_s=0.05")
    with running(*options) as program, program.client() as client:
        bodies = [{"prompt": f"queued {place}", "max_tokens": 10, "ignore_eos": True} for place in range(4)]
        others = [Stream({"model": program.model, **body}) for body in bodies[1:]]
        waiting = [threading.Thread(target=other.read, args=(program.url,)) for other in others]
        with streaming(program, bodies[:1]) as first:
            for thread in waiting:
                thread.start()
            eventually(lambda: metric(client, "tokka_requests_waiting") == 3, within_s=2)
            by_signal(program)
            for thread in waiting:
                thread.join(20)
        assert program.process.wait(20) == 0
        assert [stream.terminals() for stream in [*first, *others]] == [["length"]] * 4


def test_sigterm_does_not_shorten_a_requested_drain() -> None:
    # Kubernetes runs the preStop hook and then sends SIGTERM. Only a second signal ends the server immediately.
    with running("--engine", "fake", "--engine-arg", "token_delay_s=0.02", "--admin-key", ADMIN_KEY) as program:
        with streaming(program, [{"prompt": "x", "max_tokens": 60, "ignore_eos": True}], ADMIN_KEY) as streams:
            by_request(program)
            by_signal(program)
        assert program.process.wait(20) == 0
    assert streams[0].terminals() == ["length"]


def test_draining_while_the_engine_loads_ends_at_once() -> None:
    options = ("--engine-arg", "start_delay_s=3600", "--admin-key", ADMIN_KEY)
    with running("--engine", "fake", *options, wait=False) as program:
        by_request(program)
        assert program.process.wait(10) == 0


@pytest.mark.parametrize(
    ("options", "headers", "status"),
    [
        (("--api-key", "user-key-0123456789"), {}, 401),
        (("--api-key", "user-key-0123456789"), {"authorization": "Bearer user-key-0123456789"}, 403),
        (("--metrics-key", "metrics-key-0123456789"), {"authorization": "Bearer metrics-key-0123456789"}, 403),
        (("--admin-key", ADMIN_KEY), ADMIN, 200),
        ((), {}, 403),
        (("--no-auth",), {}, 403),
        (("--host", "0.0.0.0", "--no-auth"), {}, 403),
    ],
)
def test_only_an_administrator_may_drain(options: tuple[str, ...], headers: dict[str, str], status: int) -> None:
    with running("--engine", "fake", *options) as program:
        url = program.url.replace("0.0.0.0", "127.0.0.1")
        answer = httpx.post(f"{url}/admin/drain", headers=headers)
        assert answer.status_code == status
        if status == 200:
            assert program.process.wait(20) == 0
        else:
            assert answer.json()["error"]["code"] in ("invalid_api_key", "permission_denied")
            assert httpx.get(f"{url}/readyz").status_code == 200
