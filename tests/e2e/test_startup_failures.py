"""Every failed start prints one line with the cause and the remedy, and sets an exit code."""

from __future__ import annotations

import json
import shutil
import socket
import uuid
from pathlib import Path

import pytest

from tests.marked_processes import processes_with
from tests.program import failing, running

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]


def line_of(*arguments: str, code: int, env: dict[str, str] | None = None) -> str:
    """Run a failing start; return its one line on stderr. Check the exit code and that no process is left."""
    marker = {"TOKKA_TEST_RUN": uuid.uuid4().hex}
    exit_code, lines = failing("--port", "0", *arguments, env={**(env or {}), **marker})
    assert processes_with(marker) == [], "left behind"
    assert exit_code == code, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith("tokka: ")
    return lines[0]


@pytest.fixture
def model(bloom_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bloom_folder, tmp_path / "model"))


def test_missing_folder(tmp_path: Path) -> None:
    # Not exit code 2 for wrong usage: the folder's file system may be mounted late.
    assert "does not exist" in line_of(str(tmp_path / "nothing"), code=3)


def test_folder_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "README.md").touch()
    assert "config.json" in line_of(str(tmp_path), code=2)


def test_hub_model_that_cannot_be_had() -> None:
    line = line_of("no-such-org/no-such-model", code=3, env={"HF_HUB_OFFLINE": "1"})
    assert "no-such-org/no-such-model" in line


def test_unknown_parser_error_lists_the_available_parsers() -> None:
    line = line_of("--engine", "fake", "--tool-call-parser", "nope", code=2)
    assert line.startswith("tokka: --tool-call-parser nope: ")
    assert "hermes" in line
    line = line_of("--reasoning-parser", "nope", code=2)
    assert line.startswith("tokka: --reasoning-parser nope: ")
    assert "deepseek_r1" in line


def test_corrupt_config(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": ')
    line = line_of(str(model), code=3)
    assert "config.json" in line
    assert "not JSON" in line


def test_config_of_no_known_model(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "no-such-architecture"}')
    assert "no-such-architecture" in line_of(str(model), code=3)


def test_truncated_weights_are_named_with_their_bytes(model: Path) -> None:
    weights = model / "model.safetensors"
    whole = weights.stat().st_size
    with weights.open("r+b") as file:
        file.truncate(whole - 1000)
    line = line_of(str(model), code=3)
    assert "model.safetensors" in line
    assert str(whole) in line
    assert str(whole - 1000) in line


def test_missing_shard_is_named(model: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors" in line_of(str(model), code=3)


def test_weights_that_are_not_the_models(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "hidden_size": 128}))
    line_of(str(model), code=3)


def test_missing_tokenizer(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()
    assert "tokenizer" in line_of(str(model), code=3)


def test_not_enough_memory_names_the_numbers(model: Path) -> None:
    line = line_of(str(model), "--max-model-len", "2000000000", code=3)
    assert "not enough memory" in line
    assert "GiB are free" in line


def test_port_in_use_names_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, lines = failing("--engine", "fake", "--port", port)
    # Exit code 1: the other program may free the port later.
    assert code == 1
    assert len(lines) == 1
    assert f"127.0.0.1:{port}" in lines[0]
    assert "--port" in lines[0]


def test_address_of_another_machine() -> None:
    line = line_of("--engine", "fake", "--host", "192.0.2.1", "--no-auth", code=1)
    assert "192.0.2.1" in line
    assert "--host" in line


def test_host_that_nobody_knows() -> None:
    line = line_of("--engine", "fake", "--host", "no-such-host.invalid", "--no-auth", code=1)
    assert "no-such-host.invalid" in line


def test_unix_socket_of_a_server_that_lives(tmp_path: Path) -> None:
    path = str(tmp_path / "tokka.sock")
    with running("--engine", "fake", "--uds", path):
        line = line_of("--engine", "fake", "--uds", path, code=1)
    assert path in line
    assert "--uds" in line


def test_unix_socket_in_a_missing_folder(tmp_path: Path) -> None:
    assert "none/tokka.sock" in line_of("--engine", "fake", "--uds", str(tmp_path / "none" / "tokka.sock"), code=1)


def test_missing_config_file(tmp_path: Path) -> None:
    assert "none.yaml" in line_of("--engine", "fake", "--config", str(tmp_path / "none.yaml"), code=1)


def test_config_file_with_an_unknown_option(tmp_path: Path) -> None:
    config = tmp_path / "tokka.yaml"
    config.write_text("prot: 8000\n")
    line = line_of("--engine", "fake", "--config", str(config), code=2)
    assert str(config) in line
    assert "prot" in line


def test_impossible_split_names_the_valid_ones(model: Path) -> None:
    line = line_of(str(model), "--tensor-parallel-size", "3", code=2)
    assert "1, 2, 4" in line


def test_unknown_engine_argument(model: Path) -> None:
    assert "no_such_thing" in line_of(str(model), "--engine-arg", "no_such_thing=1", code=2)


def test_missing_chat_template(model: Path, tmp_path: Path) -> None:
    assert "none.jinja" in line_of(str(model), "--chat-template", str(tmp_path / "none.jinja"), code=1)


def test_broken_chat_template_names_the_line(model: Path, tmp_path: Path) -> None:
    template = tmp_path / "broken.jinja"
    template.write_text("{{ messages }}\n{% for m in messages %}")
    line = line_of(str(model), "--chat-template", str(template), code=3)
    assert "chat template" in line
    assert "line 2" in line


def test_exposed_without_a_key_is_refused() -> None:
    assert "--no-auth" in line_of("--engine", "fake", "--host", "0.0.0.0", code=2)


def test_wrong_option_in_the_environment_is_named() -> None:
    assert "TOKKA_MAX_WAITING" in line_of("--engine", "fake", code=2, env={"TOKKA_MAX_WAITING": "many"})


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    _, lines = failing(str(tmp_path / "nothing"), "--port", "0", "--log-level", "debug")
    assert any("Traceback" in line for line in lines)
