"""What the shipped deployment files promise, tried with the program itself."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import httpx

from tests.program import failing, running

UNIT = (Path(__file__).parents[2] / "deploy" / "systemd" / "tokka.service").read_text()
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
    assert (code, len(lines)) == (2, 1)
    (tmp_path / "api-key").write_text(f"{KEY}\n")
    with running("--engine", "fake", *options, env={**env, "TOKKA_API_KEY_FILE": ""}) as program:
        # A variable in the administrator's file does not take the key away.
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
