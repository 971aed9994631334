"""Claude Code, installed from npm, runs tasks against `tokka serve` with the scripted engine, without the internet.

Claude Code is not free software, so it is neither a dependency nor in a lock file.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients import npm
from tests.program import Program, running

VERSION = "2.1.197"
RUN_S = 100
MODEL = "scripted"

pytestmark = [pytest.mark.node, pytest.mark.timeout(npm.INSTALL_S + RUN_S)]


@pytest.fixture(scope="module")
def claude(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install Claude Code and return its program."""
    folder = tmp_path_factory.mktemp("claude")
    npm.install(f"@anthropic-ai/claude-code@{VERSION}", folder)
    # The script of the package puts the program of this platform into its place.
    npm.run(["node", "node_modules/@anthropic-ai/claude-code/install.cjs"], folder)
    return folder / "node_modules/.bin/claude"


def run(claude: Path, program: Program, folder: Path, *options: str) -> dict[str, Any]:
    """Run a task in an empty folder and return the report."""
    home = folder / "home"
    home.mkdir()
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "NO_PROXY": "127.0.0.1",
        "ANTHROPIC_BASE_URL": program.url,
        "ANTHROPIC_AUTH_TOKEN": "none",
        "ANTHROPIC_MODEL": MODEL,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
    }
    command = [str(claude), "-p", "Say hello", "--output-format", "json", *options]
    process: dict[str, Any] = {"cwd": folder, "env": env, "stdin": subprocess.DEVNULL, "timeout": RUN_S}
    done = subprocess.run(command, capture_output=True, text=True, check=False, **process)
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def serve(context: int) -> list[str]:
    options = (f"max_model_len={context}", "tool_calls=true", "thoughts=true")
    words = [word for option in options for word in ("--engine-arg", option)]
    return ["--engine", "fake", "--served-model-name", MODEL, *words]


def test_claude_code_runs_a_task_with_a_tool_call(claude: Path, tmp_path: Path) -> None:
    with running(*serve(200_000)) as program:
        report = run(claude, program, tmp_path, "--tools", "Bash", "--allowedTools", "Bash")
        outcomes = [line["outcome"] for line in program.log if line.get("path") == "/v1/messages"]
    assert (report["is_error"], report["num_turns"], report["permission_denials"]) == (False, 2, [])
    assert "scripted engine" in report["result"]
    assert outcomes == ["tool_calls", "stop"]


def test_claude_code_reads_the_size_of_a_long_prompt(claude: Path, tmp_path: Path) -> None:
    with running(*serve(4000)) as program:
        report = run(claude, program, tmp_path, "--tools", "Bash")
    assert report["is_error"]
    assert "(limit 3999)" in report["result"]
