"""Fixtures of the whole suite: one real engine for all tests that need it, tiny models made here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.program import Program, running
from tests.store.databases import Postgres, postgres_server

# A shared machine pauses now and then; how long one example takes is no fact about the code.
settings.register_profile("tokka", deadline=None)
settings.load_profile("tokka")


@pytest.fixture(scope="session")
def smollm2() -> Iterator[Program]:
    """The embedded model on the real engine, shared by every test that needs it."""
    with running() as program:
        yield program


@pytest.fixture(scope="session")
def fake() -> Iterator[Program]:
    """The scripted engine behind the real program."""
    with running("--engine", "fake") as program:
        yield program


@pytest.fixture(scope="session")
def bloom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BLOOM, Poro-34B's architecture, small enough for a CPU: a base model without chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny-bloom"
    # Apart: torch stays out of the test process.
    script = Path(__file__).parent / "models" / "make_bloom.py"
    subprocess.run([sys.executable, str(script), str(folder)], check=True, timeout=180, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL for all tests that need one; each takes a database of its own."""
    with postgres_server() as server:
        yield server
