"""Codex, installed from npm, runs a task against `tokka serve` with the scripted engine, without the internet.

It has 300 MB, so it is in no lock file.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.clients import npm
from tests.clients.conftest import StartServer

VERSION = "0.171.0"
RUN_S = 90

pytestmark = [pytest.mark.node, pytest.mark.timeout(npm.INSTALL_S + RUN_S)]


@pytest.fixture(scope="module")
def codex(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install Codex and return its program."""
    folder = tmp_path_factory.mktemp("codex")
    npm.install(f"@openai/codex@{VERSION}", folder)
    return folder / "node_modules/.bin/codex"


def test_codex_ends_a_task_with_a_tool_call(codex: Path, start_server: StartServer, tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    (home / ".codex").mkdir(parents=True)
    work.mkdir()
    with start_server("--engine-arg", "tool_calls=true", "--engine-arg", "max_model_len=131072") as server:
        provider = f'base_url = "{server.url}/v1"\nname = "local"\nwire_api = "responses"\nenv_key = "LOCAL_KEY"\n'
        config = f'model = "{server.model}"\nmodel_provider = "local"\n[model_providers.local]\n{provider}'
        (home / ".codex" / "config.toml").write_text(config)
        # An unreachable proxy: Codex may ask only the server.
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
        env = {"PATH": os.environ["PATH"], "HOME": str(home), "LOCAL_KEY": "none", "NO_PROXY": "127.0.0.1", **proxies}
        command = [str(codex), "exec", "--skip-git-repo-check", "List the files"]
        done = subprocess.run(
            command,
            cwd=work,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_S,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    # A shell command with scripted arguments, then the scripted text.
    assert "exec" in done.stderr
    assert done.stdout.strip() == server.answer
