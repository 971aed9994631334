"""The shipped deployment files, tried with the program itself: the systemd unit, health checks, the LUMI job."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from tests.program import NO_SUCH_PROXY, Program, failing, running

ROOT = Path(__file__).parents[2]
UNIT = (ROOT / "deploy" / "systemd" / "tokka.service").read_text()
KEY = "the-key-of-the-unit-0123456789"


def values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)


def command(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Return the options and the environment of the unit's service, as systemd would expand them."""
    (started,) = values("ExecStart")
    _, verb, *options = shlex.split(started.replace("%d", str(folder)))
    assert verb == "serve"
    variables = [pair for line in values("Environment") for pair in shlex.split(line)]
    expanded = [re.sub("%[SC]", str(folder), pair).split("=", 1) for pair in variables]
    return options, {name: value for name, value in expanded if name.startswith("TOKKA_")}


def test_the_systemd_unit_serves_with_a_key_only(tmp_path: Path) -> None:
    options, env = command(tmp_path)
    code, lines = failing("--engine", "fake", "--port", "0", *options, env=env)
    assert (code, len(lines)) == (1, 1)
    (tmp_path / "api-key").write_text(f"{KEY}\n")
    with running("--engine", "fake", *options, env={**env, "TOKKA_API_KEY_FILE": ""}) as program:
        # An empty variable in the administrator's file does not remove the key.
        assert httpx.get(f"{program.url}/v1/models").status_code == 401
        headers = {"authorization": f"Bearer {KEY}"}
        assert httpx.get(f"{program.url}/v1/models", headers=headers).status_code == 200
    code, lines = failing("--engine", "fake", "--port", "0", *options, env={**env, "TOKKA_NO_AUTH": "true"})
    assert (code, len(lines)) == (2, 1)
    assert "leave out --no-auth" in lines[0]


def test_the_systemd_unit_asserts_its_key_file() -> None:
    (credential,) = values("LoadCredential")
    name, _, path = credential.partition(":")
    assert f"--api-key-file %d/{name}" in values("ExecStart")[0]
    assert values("AssertFileNotEmpty") == [path]


def health_checks() -> dict[str, list[str]]:
    """Return the health check commands of the image and of the compose files, by file name."""
    docker = (ROOT / "Dockerfile").read_text()
    found = re.search(r"HEALTHCHECK (?:.*\\\n)*\s*CMD (\[.*\])", docker)
    assert found
    checks = {"Dockerfile": json.loads(found[1])}
    for path in sorted((ROOT / "deploy" / "compose").glob("*.yaml")):
        kind, *command = yaml.safe_load(path.read_text())["services"]["tokka"]["healthcheck"]["test"]
        assert kind == "CMD"
        checks[path.name] = command
    return checks


@pytest.mark.parametrize(("name", "check"), health_checks().items(), ids=health_checks())
def test_health_check_goes_past_a_proxy(fake: Program, name: str, check: list[str]) -> None:
    program, *arguments = check
    assert program == "python3"
    port = str(httpx.URL(fake.url).port)
    command = [sys.executable, *(word.replace(":8000/", f":{port}/") for word in arguments)]
    env = {**os.environ, **NO_SUCH_PROXY, "TOKKA_PORT": port}
    assert subprocess.run(command, env=env, check=False, timeout=30).returncode == 0
    env["TOKKA_PORT"] = "9"
    assert subprocess.run([word.replace(f":{port}/", ":9/") for word in command], env=env, check=False).returncode


def test_systemd_unit_tries_again_unless_nothing_can_mend_it() -> None:
    assert values("Restart") == ["on-failure"]
    assert values("RestartPreventExitStatus") == ["2"]
    # systemd never gives up, however often a start fails.
    assert values("StartLimitIntervalSec") == ["0"]


# A stub of singularity. Prints the database and its state folder, then appends a line to the database.
SINGULARITY = """#!/bin/sh
cat "$SINGULARITYENV_TOKKA_STATE_DIR/tokka.db" 2>/dev/null
echo "$SINGULARITYENV_TOKKA_STATE_DIR"
echo "job $SLURM_JOB_ID" >>"$SINGULARITYENV_TOKKA_STATE_DIR/tokka.db"
exit 7
"""


def test_lumi_job_keeps_its_database_where_locks_are(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    stub = tmp_path / "bin" / "singularity"
    stub.write_text(SINGULARITY)
    stub.chmod(0o755)
    (tmp_path / "tokka.sif").touch()
    env = {
        "PATH": f"{stub.parent}:{os.environ['PATH']}",
        "USER": f"user{os.getpid()}",
        "SLURM_JOB_ACCOUNT": "project_1",
        "TOKKA_SIF": str(tmp_path / "tokka.sif"),
        "TOKKA_BASE": str(tmp_path / "scratch"),
    }
    outputs = []
    for job in ("11", "12"):
        script = ["bash", str(ROOT / "deploy" / "slurm" / "tokka-lumi.sbatch")]
        done = subprocess.run(
            script, env={**env, "SLURM_JOB_ID": job}, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 7, done.stderr
        state = f"/tmp/{env['USER']}-tokka-{job}"
        assert state in done.stdout.splitlines()
        assert not Path(state).exists()
        outputs.append(done.stdout)
    # The second job finds the database of the first one.
    assert "job 11" in outputs[1]
    assert (tmp_path / "scratch" / "state" / "tokka.db").read_text() == "job 11\njob 12\n"
    assert sorted(path.name for path in (tmp_path / "scratch").iterdir()) == ["api-key", "cache", "state"]
