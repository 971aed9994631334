"""Fixtures: `tokka serve` with the scripted engine, and a runner of the examples."""

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
    """A running server that always answers with `answer`: one token per byte, and an end token."""

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
    """Return a context manager that runs `tokka serve` on a free port and checks at the end that it stops cleanly."""

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
    """Return a function that runs an example as a user does: a command, with the address in the environment."""

    def run(
        command: list[str], url: str, *, key: str | None = None, cwd: Path = CLIENTS
    ) -> subprocess.CompletedProcess[str]:
        # Variables of the developer's own environment must not configure the client.
        env = {name: value for name, value in os.environ.items() if not name.startswith(("TOKKA_", "OPENAI_"))}
        env |= {"TOKKA_URL": url, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        if key is not None:
            env["TOKKA_API_KEY"] = key
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=RUN_S, check=False)

    return run
