"""Fixtures of the whole suite: shared servers, a tiny model made here, and a database server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings

from tests.program import LONGEST_TURNS, TENANTS, TURN_BOUND_S, LongestTurn, Program, running, running_together
from tests.store.databases import Postgres, postgres_server

# Their asserts explain themselves like those of a test module.
pytest.register_assert_rewrite(
    *(f"tests.{name}" for name in ("contract.bodies", "dispatch.bench", "accounts.rings", "engine.grammars.samples"))
)


# The fixtures of this file that start a program.
_PROGRAMS = frozenset({"smollm2", "spares", "fresh", "two_of_tenants", "fake", "bloom_folder", "postgres"})
# The markers of tests whose code runs in other processes, or does not bear the measurement of coverage.
_APART = frozenset({"program", "engine", "node", "browser", "clients", "bytecodes"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start a program, and the ones that run apart from the measurement of coverage."""
    for item in items:
        assert isinstance(item, pytest.Function)
        helpers = [getattr(value, "__globals__", {}) for value in vars(item.module).values()]
        # Who knows the path of the program starts it, in the test's own module or in one that it imports from.
        if any("TOKKA" in names for names in helpers) or _PROGRAMS.intersection(item.fixturenames):
            item.add_marker("program")
        if any(mark.name in _APART for mark in item.iter_markers()):
            item.add_marker("apart")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report the longest turn of all servers' event loops, and each turn that exceeded its bound."""
    if not LONGEST_TURNS:
        return
    longest = max(LONGEST_TURNS, key=lambda turn: turn.seconds)
    terminalreporter.write_line(
        f"longest turn of an event loop: {longest.seconds:.3f} s of CPU (bound {TURN_BOUND_S} s) in "
        f"{len(LONGEST_TURNS)} servers, of `tokka serve {longest.command}`"
    )
    for turn in _too_long():
        terminalreporter.write_line(
            f"TOO LONG: {turn.seconds:.3f} s, bound {TURN_BOUND_S} s, `tokka serve {turn.command}`", red=True
        )


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.OK and _too_long():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _too_long() -> list[LongestTurn]:
    return [turn for turn in LONGEST_TURNS if turn.seconds > TURN_BOUND_S]


TENANT_KEYS = tuple(word for key in TENANTS for word in ("--api-key", key))

# A shared machine pauses now and then, so the time of one example says nothing about the code.
settings.register_profile("tokka", deadline=None)
settings.load_profile("tokka")


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the user's own settings from the environment."""
    for name in list(os.environ):
        if name.upper().startswith("TOKKA_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def smollm2() -> Iterator[Program]:
    """The embedded model on the real engine, shared by every test that needs it."""
    with running() as program:
        yield program


@pytest.fixture(scope="session")
def spares() -> Iterator[Iterator[Program]]:
    """Servers like `smollm2`, each for one test, started two at a time."""
    with ExitStack() as stack:

        def started() -> Iterator[Program]:
            while True:
                yield from stack.enter_context(running_together((), ()))

        yield started()


@pytest.fixture
def fresh(spares: Iterator[Program]) -> Iterator[Program]:
    """The embedded model on a separate server, which the test may break and end."""
    program = next(spares)
    yield program
    if program.process.poll() is None:
        program.stop()


@pytest.fixture(scope="session")
def two_of_tenants() -> Iterator[list[Program]]:
    # On a slow machine, the last of many requests waits for minutes.
    apart = ("--max-num-seqs", "4", "--queue-timeout", "600", "--metrics-open")
    long_steps = ("--engine-arg", "max_num_batched_tokens=65536")
    sharing = ("--share-prefix-cache", "--stall-timeout", "3", *long_steps, "--metrics-open")
    with running_together((*TENANT_KEYS, *apart), (*TENANT_KEYS, *sharing)) as programs:
        yield programs


@pytest.fixture(scope="session")
def tenants(two_of_tenants: list[Program]) -> Program:
    """A server for the two tenants of TENANTS, on a real engine that runs four sequences at once."""
    return two_of_tenants[0]


@pytest.fixture(scope="session")
def sharing(two_of_tenants: list[Program]) -> Program:
    """A server for the same tenants, with a shared prefix cache, long steps and a stall timeout of 3 s."""
    return two_of_tenants[1]


@pytest.fixture(scope="session")
def fake() -> Iterator[Program]:
    """The real program with the scripted engine."""
    with running("--engine", "fake") as program:
        yield program


@pytest.fixture(scope="session")
def bloom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BLOOM, small enough for a CPU: Poro-34B's architecture, a base model without a chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny-bloom"
    # A separate process keeps torch out of the test process.
    script = Path(__file__).parent / "models" / "make_bloom.py"
    subprocess.run([sys.executable, str(script), str(folder)], check=True, timeout=180, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL for all tests that need one. Each test creates its own database."""
    with postgres_server() as server:
        yield server
