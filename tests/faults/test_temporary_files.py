"""A server removes all temporary files: of its engines, and of a server that was killed earlier."""

from __future__ import annotations

import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.vllm.start.owners import killed_owners
from tests.program import eventually, running

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a TMPDIR with a path short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def test_servers_temporary_files_are_private_and_removed(folder: Path) -> None:
    left = killed_owners(folder)
    with running(env={"TMPDIR": str(folder)}) as program:
        (first,) = folder.iterdir()
        assert first != left
        assert stat.S_IMODE(first.stat().st_mode) == 0o700
        # vLLM's sockets are in this folder, so the test would see one left behind.
        assert any(path.is_socket() for path in first.iterdir())
        program.core().kill()
        program.wait_for("ready")
        (second,) = folder.iterdir()
        assert second != first
        assert program.stop() == 0
    eventually(lambda: list(folder.iterdir()) == [], within_s=5)
