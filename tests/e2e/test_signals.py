"""Signals in the first seconds, as process 1 of a container, and from a terminal that closes."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.slow import question, slow_engine
from tests.patches import patched
from tests.program import TOKKA, eventually, running

pytestmark = pytest.mark.timeout(120)

# Pauses the program during an import until a signal arrives. Only the entry point can handle that signal.
HOLD = "import signal, sys; sys.stderr.write('held\\n'); sys.stderr.flush(); signal.pause()"


def unshared(*command: str) -> list[str]:
    probe = ["unshare", "--pid", "--fork", "true"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("no PID namespace can be made here")
    return ["unshare", "--pid", "--fork", "--kill-child", *command]


@pytest.mark.parametrize(
    ("module", "command", "code"),
    [
        ("typer", "serve", 0),
        ("tokka.cli.serve", "serve", 0),
        ("typer", "bench", 128 + signal.SIGTERM),
    ],
)
def test_first_seconds_of_process_1_lose_no_sigterm(tmp_path: Path, module: str, command: str, code: int) -> None:
    env = {**os.environ, **patched(tmp_path, {module: HOLD}), "TOKKA_STATE_DIR": str(tmp_path / "state")}
    options = ["--engine", "fake", "--port", "0"] if command == "serve" else []
    with subprocess.Popen(
        unshared(str(TOKKA), command, *options), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "held\n"
        (program,) = psutil.Process(process.pid).children()
        program.send_signal(signal.SIGTERM)
        assert process.wait(30) == code
        assert process.stderr.read() == ""


def test_sighup_drains_and_repeats_do_no_harm() -> None:
    with running(*slow_engine(token_delay_s=0.01)) as program, program.client() as client:
        answers: list[httpx.Response] = []
        started = threading.Barrier(2)

        def ask() -> None:
            with (
                httpx.Client(base_url=program.url, timeout=60) as own,
                own.stream("POST", "/v1/chat/completions", json=question(program, stream=True)) as answer,
            ):
                started.wait()
                answer.read()
                answers.append(answer)

        stream = threading.Thread(target=ask)
        stream.start()
        started.wait()
        program.process.send_signal(signal.SIGHUP)
        program.wait_for("draining")
        program.process.send_signal(signal.SIGHUP)
        assert client.get("/readyz").status_code == 503
        stream.join()
        assert program.process.wait(20) == 0
        assert answers[0].text.endswith("data: [DONE]\n\n")


def test_nohup_keeps_sighup_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with running("--engine", "fake") as program, program.client() as client:
            program.process.send_signal(signal.SIGHUP)
            # The signal is delivered before the next system call of the process.
            eventually(lambda: client.get("/livez").status_code == 200, within_s=10)
            assert client.get("/readyz").status_code == 200
            assert not any(line.get("event") == "draining" for line in program.log)
    finally:
        signal.signal(signal.SIGHUP, before)
