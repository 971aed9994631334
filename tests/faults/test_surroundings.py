"""The environment of the program: its locale, and variables that are not settings."""

from __future__ import annotations

from pathlib import Path

from tests.program import running

FAKE = ("--engine", "fake")
# With these, Python reads text files as ASCII unless the code names an encoding.
ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}


def test_config_file_is_utf_8_in_any_locale(tmp_path: Path) -> None:
    config = tmp_path / "tokka.yaml"
    config.write_text("served_model_name: Pöytä\n", encoding="utf-8")
    with running(*FAKE, "--config", str(config), env=ASCII) as program, program.client() as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == "Pöytä"


def test_unknown_variables_are_warned_of_with_the_likely_one() -> None:
    env = {"TOKKA_MAX_WAITNG": "7", "TOKKA_PORT_8000_TCP": "tcp://10.0.0.1:8000", "tokka_max_waiting": "7"}
    with running(*FAKE, env=env) as program:
        (told,) = [line for line in program.log if line.get("event") == "unknown_variables"]
        assert told["variables"] == ["TOKKA_MAX_WAITNG", "TOKKA_PORT_8000_TCP"]
        assert "TOKKA_MAX_WAITING" in told["remedy"]
        # A variable with a mistyped name may hold a secret.
        assert "10.0.0.1" not in str(program.log)


def test_known_variables_are_not_warned_of() -> None:
    env = {"TOKKA_CONFIG": "", "TOKKA_API_KEY": "a-key-of-this-test-0123", "TOKKA_MAX_WAITING": "7"}
    with running(*FAKE, env=env) as program:
        assert not any(line.get("event") == "unknown_variables" for line in program.log)
