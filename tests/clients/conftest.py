"""The real program with its scripted engine, and the examples run against it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.program import running

CLIENTS = Path(__file__).parents[2] / "clients"
MODEL = "scripted"
ANSWER = "Hyvää päivää 🦌. This text is scripted, so tests know it."
RUN_S = 60


@dataclass(frozen=True)
class FakeServer:
    """A running server whose every answer is `answer`, a token a byte and one to end."""

    url: str
    model: str = MODEL
    answer: str = ANSWER

    @property
    def answer_tokens(self) -> int:
        return len(self.answer.encode()) + 1


StartServer = Callable[..., AbstractContextManager[FakeServer]]
RunExample = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def start_server() -> StartServer:
    """A context manager that runs `tokka serve` on a free port and in the end checks that it stops cleanly."""

    @contextlib.contextmanager
    def start(*options: str, wait_ready: bool = True) -> Iterator[FakeServer]:
        script = ["--engine", "fake", "--served-model-name", MODEL, "--engine-arg", f"answer={ANSWER}"]
        with running(*script, *options, wait=wait_ready) as program:
            assert httpx.get(f"{program.url}/readyz", timeout=10).status_code == 200 or not wait_ready
            yield FakeServer(program.url)
            assert program.stop() == 0, program.stderr()

    return start


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> Iterator[FakeServer]:
    with start_server() as server:
        yield server


@pytest.fixture(scope="session")
def run_example() -> RunExample:
    """Run an example as a user would: a command, the address in the environment."""

    def run(
        command: list[str], url: str, *, key: str | None = None, cwd: Path = CLIENTS
    ) -> subprocess.CompletedProcess[str]:
        # Nothing else may configure the client behind the test's back.
        env = {name: value for name, value in os.environ.items() if not name.startswith(("TOKKA_", "OPENAI_"))}
        env |= {"TOKKA_URL": url, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        if key is not None:
            env["TOKKA_API_KEY"] = key
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=RUN_S, check=False)

    return run
