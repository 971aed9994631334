"""The real engine dies or freezes under load: clients get an error, probes report it, and the engine restarts."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.faults.streams import endless, streaming
from tests.faults.targets import ENDED_WITHIN_S, UNREADY_WITHIN_S
from tests.program import READY_TIMEOUT_S, Program, eventually, running, runs
from tests.wire import metric

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    """Start a server for this module only, because its tests kill the engine."""
    # Each test kills the engine soon after its start. A separate test covers giving up.
    with running("--max-quick-deaths", "100", "--stall-timeout", "8") as program:
        yield program


def ask(client: httpx.Client, program: Program, prompt: str = "The capital of Finland is") -> httpx.Response:
    return client.post("/v1/completions", json={"model": program.model, "prompt": prompt, "max_tokens": 4})


def assert_dies_and_recovers(program: Program, mark: str, victim: psutil.Process, number: int, reason: str) -> None:
    """Send a signal to an engine process with 20 streams in flight; check the reaction against the targets."""
    with program.client() as client:
        restarts = metric(client, "tokka_engine_restarts_total", reason=reason)
        with streaming(program, endless(20, mark, max_tokens=800)) as streams:
            hit_s = time.monotonic()
            victim.send_signal(number)
            unready_s = eventually(lambda: client.get("/readyz").status_code == 503, within_s=30)
            noticed_s = time.monotonic()
            assert client.get("/livez").status_code == 200
            refused = ask(client, program)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "model_starting"
            assert 1 <= int(refused.headers["retry-after"]) <= 120
            eventually(lambda: ask(client, program).status_code == 200, within_s=READY_TIMEOUT_S)
        if number == signal.SIGKILL:
            assert unready_s < UNREADY_WITHIN_S
            assert max(stream.ended_s for stream in streams) - hit_s < ENDED_WITHIN_S
        assert max(stream.ended_s for stream in streams) - noticed_s < ENDED_WITHIN_S
        assert [stream.terminals() for stream in streams] == [["engine_error"]] * 20
        assert all(stream.is_closed for stream in streams)
        assert metric(client, "tokka_engine_restarts_total", reason=reason) == restarts + 1
        assert client.get("/readyz").status_code == 200
    assert not victim.is_running()


def test_killed_engine_ends_its_streams_with_an_error_and_restarts(program: Program) -> None:
    before = {child.pid for child in program.children()}
    assert_dies_and_recovers(program, "killed", program.core(), signal.SIGKILL, "died")
    assert len(program.children()) == len(before)


def test_a_plain_request_of_a_killed_engine_gets_a_json_error(program: Program) -> None:
    with program.client() as client, streaming(program, endless(1, "beside")):
        plain: list[httpx.Response] = []

        def wait_for_answer() -> None:
            with program.client() as own:
                body = {"model": program.model, "prompt": "plain", "max_tokens": 7000, "ignore_eos": True}
                plain.append(own.post("/v1/completions", json=body))

        waiting = threading.Thread(target=wait_for_answer)
        waiting.start()
        eventually(lambda: metric(client, "tokka_requests_running") == 2, within_s=10)
        program.core().kill()
        waiting.join(ENDED_WITHIN_S)
        (answer,) = plain
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "engine_error"
        assert answer.headers["x-should-retry"] == "true"
        eventually(lambda: ask(client, program).status_code == 200, within_s=READY_TIMEOUT_S)


def test_a_frozen_engine_under_load_is_killed_and_rebuilt(program: Program) -> None:
    assert_dies_and_recovers(program, "frozen", program.core(), signal.SIGSTOP, "stalled")


def test_a_frozen_idle_engine_is_noticed_without_any_request(program: Program) -> None:
    with program.client() as client:
        eventually(lambda: ask(client, program).status_code == 200, within_s=READY_TIMEOUT_S)
        program.core().suspend()
        eventually(lambda: client.get("/readyz").status_code == 503, within_s=15)
        eventually(lambda: ask(client, program).status_code == 200, within_s=READY_TIMEOUT_S)
        assert metric(client, "tokka_engine_restarts_total", reason="unresponsive") == 1


def test_quick_deaths_leak_nothing_and_end_the_server_with_code_3() -> None:
    # A separate server: after the deaths in other tests, the next engine restart might wait for a minute.
    with running("--max-quick-deaths", "4") as program, program.client() as client:
        server = psutil.Process(program.process.pid)

        def die() -> None:
            program.core().kill()
            eventually(lambda: client.get("/readyz").status_code == 503, within_s=UNREADY_WITHIN_S)
            eventually(lambda: ask(client, program).status_code == 200, within_s=READY_TIMEOUT_S)

        # The first restart fills caches that stay.
        die()
        fds, threads, rss = server.num_fds(), server.num_threads(), server.memory_info().rss
        for _ in range(2):
            die()
        # Connections of the test's own client come and go.
        assert server.num_fds() <= fds + 3
        assert server.num_threads() <= threads + 3
        assert server.memory_info().rss - rss < 64 << 20

        program.core().kill()
        assert program.process.wait(30) == 3
        (line,) = program.stderr().splitlines()
        assert line.startswith("tokka: the engine died 4x in a row")


def test_a_stop_during_the_rebuild_leaves_nothing_behind(fresh: Program) -> None:
    with fresh.client() as client:
        fresh.core().kill()
        eventually(lambda: client.get("/readyz").json()["phase"] == "loading weights", within_s=10)
        eventually(lambda: any("VLLM" in child.name() for child in fresh.children()), within_s=30)
        children = fresh.children()
        assert fresh.stop() == 0
    assert not any(runs(child) for child in children)
    assert fresh.stderr() == ""
