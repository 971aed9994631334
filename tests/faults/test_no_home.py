"""A user without a home folder, as in containers: `--user 54321` and no HOME."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.patches import patched
from tests.program import TOKKA, failing, running

NO_HOME = """
import os, pwd
def _unknown(*_):
    raise KeyError("uid not found")
pwd.getpwuid = _unknown
for name in ("HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
"""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return patched(tmp_path / "patches", {}, first=NO_HOME)


def folders(tmp_path: Path) -> tuple[str, ...]:
    return ("--state-dir", str(tmp_path / "state"), "--cache-dir", str(tmp_path / "cache"))


def test_server_with_folders_needs_no_home(tmp_path: Path, env: dict[str, str]) -> None:
    with running("--engine", "fake", *folders(tmp_path), env=env) as program, program.client() as client:
        assert client.get("/readyz").status_code == 200


def test_server_without_home_and_state_dir_keeps_nothing(env: dict[str, str]) -> None:
    with running("--engine", "fake", env={**env, "TOKKA_STATE_DIR": ""}) as program:
        (told,) = [line for line in program.log if line.get("event") == "no_state_database"]
        assert "--state-dir" in told["reason"]


def test_engine_without_home_and_cache_dir_names_the_option(env: dict[str, str]) -> None:
    code, lines = failing("--port", "0", env=env)
    assert (code, len(lines)) == (2, 1)
    assert "needs a home folder" in lines[0]
    assert "--cache-dir" in lines[0]


def test_keys_of_a_state_dir_need_no_home(tmp_path: Path, env: dict[str, str]) -> None:
    command = [str(TOKKA), "keys", "create", "--name", "a", "--state-dir", str(tmp_path / "state")]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.engine
@pytest.mark.timeout(240)
def test_engine_with_folders_needs_no_home(bloom_folder: Path, tmp_path: Path, env: dict[str, str]) -> None:
    with running(str(bloom_folder), *folders(tmp_path), env=env) as program:
        # The server does not create a folder called `~`.
        assert not Path("~").exists()
        assert program.stop() == 0
