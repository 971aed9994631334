"""The converted embedded model on disk: a full disk, a damaged file, a kill in mid-write, and two servers at once.

The server never uses a half-written model and never overwrites a damaged one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.disks import small_disk
from tests.marked_processes import processes_with
from tests.program import Program, eventually, failing, running
from tokka.engine.vllm.start.embedded import embedded_model
from tokka.engine.vllm.start.sealed_folder import damage_of
from tokka.settings import load_settings

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

NAME = "SmolLM2-135M-Instruct-v3"


@pytest.fixture(scope="module")
def intact() -> Path:
    """Return the model that the real converter made; other tests serve the same folder."""
    folder = embedded_model(load_settings({}).cache_dir, lambda _: None, lambda: None)
    assert folder.name == NAME
    assert damage_of(folder) is None
    return folder


@pytest.fixture
def cache(intact: Path, tmp_path: Path) -> Path:
    """Return a cache folder for this test only, with a copy of the model."""
    shutil.copytree(intact, tmp_path / "models" / NAME)
    return tmp_path


def until_phase(program: Program, detail: str) -> None:
    while not program.wait_for("engine_phase").get("detail", "").startswith(detail):
        pass


def until_loading(program: Program) -> None:
    """Wait until the program has its model and the engine loads it."""
    while program.wait_for("engine_phase")["phase"] != "loading weights":
        pass


def line_of(cache: Path, **env: str) -> str:
    code, lines = failing("--port", "0", "--cache-dir", str(cache), env=env)
    assert code == 3
    assert len(lines) == 1, lines
    return lines[0]


def test_too_small_disk_is_reported_and_left_empty() -> None:
    with small_disk("20m") as disk:
        line = line_of(disk)
        assert str(disk) in line
        assert "disk is full" in line
        assert "bytes are needed" in line
        assert "--cache-dir" in line
        assert [path.name for path in (disk / "models").iterdir() if not path.name.endswith(".lock")] == []


def test_disk_that_fills_up_is_reported_and_left_empty() -> None:
    with small_disk("310m") as disk, running("--cache-dir", str(disk), wait=False) as program:
        until_phase(program, "converting")
        # Another program takes the space that the conversion counted on.
        (disk / "other").write_bytes(bytes(250 << 20))
        assert program.process.wait(120) == 3
        (line,) = program.stderr().splitlines()
        assert "disk is full" in line
        assert [path.name for path in (disk / "models").iterdir() if not path.name.endswith(".lock")] == []


def flip_a_bit(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(100_000_000)
        byte = file.read(1)
        file.seek(100_000_000)
        file.write(bytes([byte[0] ^ 1]))


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1000)


def empty_config(folder: Path) -> None:
    (folder / "config.json").write_text("")


def lose_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def lose_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def garble_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[1, 2")


DAMAGES = [flip_a_bit, truncate, empty_config, lose_tokenizer, lose_manifest, garble_manifest]


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_seen(cache: Path, damage: Callable[[Path], None]) -> None:
    folder = cache / "models" / NAME
    assert damage_of(folder) is None
    damage(folder)
    assert damage_of(folder) is not None


def test_damaged_model_is_replaced_also_when_conversion_is_killed(cache: Path) -> None:
    folder = cache / "models" / NAME
    work = folder.with_name(f".{NAME}.work")
    flip_a_bit(folder)
    mark = {"TOKKA_TEST_RUN": str(cache)}
    with running("--cache-dir", str(cache), env=mark, wait=False) as program:
        eventually(lambda: work.exists() and any(work.iterdir()), within_s=120)
        program.process.send_signal(signal.SIGKILL)
        program.process.wait(10)
    # The converter ends with its server.
    eventually(lambda: processes_with(mark) == [], within_s=10)
    (warning,) = [line for line in program.log if line["event"] == "model_set_aside"]
    assert "model.safetensors" in warning["damage"]
    (aside,) = folder.parent.glob(f"{NAME}.corrupt-*")
    assert str(aside) == warning["folder"]
    assert damage_of(aside) is not None
    # The unfinished model is not in the model's place.
    assert work.exists()
    assert not folder.exists()
    with running("--cache-dir", str(cache)) as program, program.client() as client:
        assert damage_of(folder) is None
        assert not work.exists()
        body = {"model": program.model, "prompt": "Hei", "max_tokens": 2}
        assert client.post("/v1/completions", json=body).status_code == 200
        assert program.stop() == 0


def test_second_server_can_be_stopped_when_it_waits_for_a_conversion(cache: Path) -> None:
    folder = cache / "models" / NAME
    aside = cache / "model"
    folder.rename(aside)
    lock = folder.parent / f".{NAME}.lock"
    # This process holds the lock, as a first server would.
    holder = f"""
import fcntl, sys
with open({str(lock)!r}, "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print(flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", holder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        first.stdout.readline()
        with running("--cache-dir", str(cache), wait=False) as stopped:
            until_phase(stopped, "waiting for another server")
            assert stopped.stop() == 0
        with running("--cache-dir", str(cache), wait=False) as program:
            until_phase(program, "waiting for another server")
            aside.rename(folder)
            first.communicate("")
            until_loading(program)
            assert damage_of(folder) is None
            assert not any(line.get("detail", "").startswith("converting") for line in program.log)


def test_server_needs_neither_a_writable_model_nor_temporary_space(intact: Path) -> None:
    # The temporary folder has room for one file, and that room is taken.
    with small_disk("400m") as disk, small_disk("1m,nr_inodes=2") as full:
        (full / "filler").touch()
        shutil.copytree(intact, disk / "models" / NAME)
        remount = subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True, check=False)
        if remount.returncode:
            pytest.skip("cannot remount read-only here")
        with running("--cache-dir", str(disk), env={"TMPDIR": str(full)}) as program:
            assert program.stop() == 0


def test_a_cache_dir_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in line_of(tmp_path / "file")
