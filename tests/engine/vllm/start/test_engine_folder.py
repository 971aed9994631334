"""An engine's temporary files are in its own folder, which is removed with it. The folders of others stay."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.vllm.start.owners import killed_owners
from tokka.engine.vllm.start import engine_folder
from tokka.engine.vllm.start.engine_folder import EngineFolder, remove_leftovers
from tokka.errors import ConfigurationError


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder with a path short enough for sockets. pytest's paths are too long."""
    path = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def made_in(base: Path) -> EngineFolder:
    return EngineFolder({"VLLM_RPC_BASE_PATH": str(base)})


def test_folder_is_private_and_goes_with_its_contents(base: Path) -> None:
    with made_in(base) as folder:
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        (folder.path / "file").write_text("x")
        os.mkfifo(folder.path / "pipe")
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(folder.path / "socket"))
    assert list(base.iterdir()) == []


def test_programs_use_the_folder_while_it_is_open(base: Path) -> None:
    environ = {"VLLM_RPC_BASE_PATH": str(base), "OTHER": "x"}
    with EngineFolder(environ) as folder:
        assert environ == {"VLLM_RPC_BASE_PATH": str(folder.path), "TMPDIR": str(folder.path), "OTHER": "x"}
    assert environ == {"VLLM_RPC_BASE_PATH": str(base), "OTHER": "x"}


def test_folder_of_a_killed_server_is_removed(base: Path) -> None:
    left = killed_owners(base)
    (left / "socket").write_text("x")
    with made_in(base) as folder:
        assert list(base.iterdir()) == [folder.path]


def test_folder_of_a_running_server_stays(base: Path) -> None:
    with made_in(base) as one, made_in(base) as other:
        remove_leftovers(base)
        assert set(base.iterdir()) == {one.path, other.path}


def test_folders_of_others_stay(base: Path) -> None:
    left = killed_owners(base)
    plain, half_made, elsewhere = (base / f"tokka-{name * 8}" for name in "abc")
    plain.mkdir()
    half_made.mkdir()
    (left / "owner").rename(half_made / "owner.new")
    (base / "target").mkdir()
    (base / "target" / "owner").write_bytes((half_made / "owner.new").read_bytes())
    elsewhere.symlink_to(base / "target")
    there = set(base.rglob("*"))
    remove_leftovers(base)
    assert set(base.rglob("*")) == there


def test_folder_of_another_user_stays(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = killed_owners(base)
    monkeypatch.setattr(os, "geteuid", lambda: left.stat().st_uid + 1)
    remove_leftovers(base)
    assert left.is_dir()


def test_folder_of_another_machine_stays(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = killed_owners(base)
    monkeypatch.setattr(engine_folder, "_boot_id", lambda: b"another boot")
    remove_leftovers(base)
    assert left.is_dir()


def test_folder_without_locks_is_never_taken_for_a_leftover(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError("no locks available")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", no_locks)
        folder = made_in(base)
    remove_leftovers(base)
    assert folder.path.is_dir()
    with folder:
        pass
    assert not folder.path.exists()


def longest(base: Path) -> Path:
    """Return a base with the longest allowed path."""
    room = engine_folder._LONGEST_PATH_BYTES - len("/tokka-12345678") - len(os.fsencode(base)) - 1
    path = base / ("x" * room)
    path.mkdir()
    return path


def test_socket_fits_into_the_longest_path(base: Path) -> None:
    deep = longest(base)
    with made_in(deep) as folder, socket.socket(socket.AF_UNIX) as bound:
        assert folder.path.parent == deep
        bound.bind(str(folder.path / str(uuid.uuid4())))


def test_path_too_long_for_sockets_is_left(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = longest(base).with_name("y" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with EngineFolder({"VLLM_RPC_BASE_PATH": str(deep)}) as folder:
        assert folder.path.parent == Path("/tmp")


def test_no_writable_folder_is_an_error_with_a_remedy(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> str:
        raise OSError("no space left")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(ConfigurationError, match="set TMPDIR to a writable folder"):
        made_in(base)
