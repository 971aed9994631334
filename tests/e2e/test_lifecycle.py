"""The life of a server: probes and phases during the start, drain, signals, and no process left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import httpx
import pytest

from tests.e2e.slow import question, slow_engine
from tests.program import Program, eventually, running, runs
from tests.wire import endings, events, text_of

pytestmark = pytest.mark.timeout(300)


def test_socket_answers_while_the_model_loads() -> None:
    with running(*slow_engine(start_delay_s=3600), wait=False) as program, program.client() as client:
        assert client.get("/livez").status_code == 200
        for path in ("/readyz", "/health", "/startupz"):
            answer = client.get(path)
            assert answer.status_code == 503
            assert answer.json()["phase"] == "loading weights"
            assert answer.json()["elapsed_s"] >= 0
        refused = client.post("/v1/chat/completions", json=question(program))
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "model_starting"
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert client.get("/v1/models").json()["data"][0]["id"] == "fake"
        assert program.stop() == 0


def test_phases_are_streamed_until_ready() -> None:
    with running(*slow_engine(start_delay_s=0.3), wait=False) as program, program.client() as client:
        answer = client.get("/startupz", headers={"accept": "text/event-stream"})
        phases = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
        assert phases[-1]["state"] == "ready"
        assert client.get("/startupz").status_code == 200


def test_startup_stream_repeats_a_long_phase() -> None:
    server = running(*slow_engine(start_delay_s=600), "--keep-alive-interval", "0.2", wait=False)
    with server as program, program.client() as client:
        with client.stream("GET", "/startupz", headers={"accept": "text/event-stream"}) as answer:
            # Proxies must neither buffer the stream nor time it out, so the server repeats the phase.
            assert answer.headers["x-accel-buffering"] == "no"
            lines = (line for line in answer.iter_lines() if line.startswith("data: "))
            first, second = (json.loads(next(lines)[6:]) for _ in range(2))
        assert first["phase"] == second["phase"] == "loading weights"
        assert second["elapsed_s"] > first["elapsed_s"]


def test_sigterm_completes_streams_and_refuses_new_requests() -> None:
    with running(*slow_engine(token_delay_s=0.02)) as program, program.client() as client:
        answers: list[httpx.Response] = []
        started = threading.Barrier(11)

        def ask() -> None:
            with httpx.Client(base_url=program.url, timeout=60) as own:
                body = question(program, stream=True, stream_options={"include_usage": True})
                with own.stream("POST", "/v1/chat/completions", json=body) as answer:
                    started.wait()
                    answer.read()
                    answers.append(answer)

        streams = [threading.Thread(target=ask) for _ in range(10)]
        for stream in streams:
            stream.start()
        started.wait()
        program.process.send_signal(signal.SIGTERM)
        program.wait_for("draining")
        assert client.get("/readyz").status_code == 503
        assert client.get("/livez").status_code == 200
        assert 'tokka_engine_state{state="draining"} 1.0' in client.get("/metrics").text
        refused = client.post("/v1/chat/completions", json=question(program))
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        assert "retry-after" in refused.headers
        for stream in streams:
            stream.join()
        assert program.process.wait(20) == 0
        assert len(answers) == 10
        for answer in answers:
            chunks = events(answer)
            assert endings(chunks) == [(0, "stop", None)]
            assert chunks[-1]["usage"]["completion_tokens"] > 100
            assert text_of(chunks).endswith("model.")


def test_drain_ends_at_its_timeout_and_the_stream_says_so() -> None:
    options = [*slow_engine(token_delay_s=0.05), "--drain-timeout", "0.5"]
    with running(*options) as program, program.client() as client:
        body = question(program, stream=True, ignore_eos=True)
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            pieces = answer.iter_bytes()
            next(pieces)
            program.process.send_signal(signal.SIGTERM)
            rest = b"".join(pieces)
        assert b'"error"' in rest
        assert rest.endswith(b"data: [DONE]\n\n")
        assert program.process.wait(20) == 0


def test_second_signal_ends_at_once() -> None:
    with running(*slow_engine(token_delay_s=0.05)) as program, program.client() as client:
        body = question(program, stream=True, ignore_eos=True)
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            pieces = answer.iter_bytes()
            next(pieces)
            program.process.send_signal(signal.SIGTERM)
            program.wait_for("draining")
            program.process.send_signal(signal.SIGTERM)
            assert program.process.wait(2) == 1
            with pytest.raises(httpx.HTTPError):
                list(pieces)


@pytest.mark.engine
def test_engine_needs_no_compiler_and_ends_with_its_server(tmp_path: Path) -> None:
    # The PATH holds only lscpu, which vLLM runs to count the cores.
    (tmp_path / "lscpu").symlink_to(str(shutil.which("lscpu")))
    with running(env={"PATH": str(tmp_path)}) as program:
        children = program.children()
        assert any("VLLM" in child.name() or "VLLM" in " ".join(child.cmdline()) for child in children)
        program.process.kill()
        program.process.wait(10)
        eventually(lambda: not any(runs(child) for child in children), within_s=5)


@pytest.mark.engine
def test_ctrl_c_lets_the_engine_finish_in_flight_requests(fresh: Program) -> None:
    with fresh.client() as client:
        body = {"model": fresh.model, "prompt": "Once", "max_tokens": 150, "ignore_eos": True, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as answer:
            pieces = answer.iter_text()
            first = next(pieces)
            # A terminal sends SIGINT to every process of the group, including the engine's.
            os.killpg(fresh.process.pid, signal.SIGINT)
            fresh.wait_for("draining")
            rest = first + "".join(pieces)
        assert '"finish_reason":"length"' in rest
        assert '"error"' not in rest
        assert fresh.process.wait(20) == 0


@pytest.mark.engine
def test_stop_during_imports_stops_before_the_model_is_loaded() -> None:
    with running(wait=False) as program:
        while program.wait_for("engine_phase")["phase"] != "loading weights":
            pass
        assert program.stop() == 0
        assert program.stderr() == ""
        assert not any(line.get("phase") == "warming up" for line in program.log)


@pytest.mark.engine
def test_stop_while_loading_leaves_nothing_behind() -> None:
    with running(wait=False) as program:
        eventually(lambda: bool(program.children()), within_s=60)
        children = program.children()
        assert program.stop() == 0
        assert not any(runs(child) for child in children)
        assert program.stderr() == ""


def test_server_cap_bounds_requests_with_and_without_a_limit() -> None:
    with running("--engine", "fake", "--max-completion-tokens", "5") as program, program.client() as client:
        completion = client.post("/v1/completions", json={"model": "fake", "prompt": "x"})
        assert completion.json()["usage"]["completion_tokens"] == 5
        chat = client.post("/v1/chat/completions", json=question(program))
        assert chat.json()["usage"]["completion_tokens"] == 5
        refused = client.post("/v1/chat/completions", json=question(program, max_tokens=6))
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "max_tokens"
