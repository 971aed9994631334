"""The command and the environment of a worker for a model of the fleet file."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.engine.contract import ask, collect
from tests.fleet.gateways import gateway
from tests.fleet.programs import WorkerProgram
from tokka.fleet.address import Address
from tokka.fleet.command import worker_command, worker_environment
from tokka.fleet.file import read_fleet_file
from tokka.fleet.spec import ModelSpec
from tokka.settings import EMBEDDED_MODEL, load_settings


def spec(model: str = "/models/poro", settings: Mapping[str, Any] | None = None) -> ModelSpec:
    return ModelSpec(name="a,b", aliases=("c",), model=model, settings=settings or {}, revision="r")


def command(of: ModelSpec) -> list[str]:
    return worker_command(of, Address("::1", 7400), Path("/run/token"), "w-7")


def test_command_names_model_gateway_and_id() -> None:
    assert command(spec())[4:] == [
        *("worker", "--model=/models/poro", "--served-model-name=a,b"),
        *("--join=[::1]:7400", "--join-token-file=/run/token", "--worker-id=w-7"),
    ]


def test_embedded_model_is_served_without_a_name() -> None:
    assert not [word for word in command(spec(EMBEDDED_MODEL)) if word.startswith("--model")]


def test_settings_are_not_in_the_process_list() -> None:
    one = spec(settings={"engine_arg": ["hf_token=secret"]})
    assert "secret" not in " ".join(command(one))
    assert worker_environment(one, 60.0)["TOKKA_ENGINE_ARG"] == "hf_token=secret"


def test_settings_of_the_gateway_do_not_reach_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOKKA_PORT", "TOKKA_CONFIG", "tokka_log_level", "TOKKA_MAX_MODEL_LEN"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", "/models")
    environment = worker_environment(spec(settings={"max_model_len": 64}), 60.0)
    assert {name: value for name, value in environment.items() if name.upper().startswith("TOKKA_")} == {
        "TOKKA_MAX_MODEL_LEN": "64",
        # A rolling update must give requests the time that the gateway gives them.
        "TOKKA_DRAIN_TIMEOUT": "60.0",
    }
    assert environment["HF_HOME"] == "/models"


SETTINGS = """\
    settings:
      engine: fake
      engine_arg: [token_delay_s=0.5, 'answer={"a": 1, "b": "x y"}']
      enforce_eager: false
      raw_chat: true
      tensor_parallel_size: auto
      max_model_len: 4096
      kv_cache_memory: 1073741824
      chat_template: /models/chat.jinja
      drain_timeout: 1.0e-3
      log_level: debug
      quantization: "null"
"""


def test_worker_reads_the_settings_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fleet.yaml").write_text(f"models:\n  a:\n{SETTINGS}")
    (one,) = read_fleet_file(tmp_path / "fleet.yaml").models
    for name, value in worker_environment(one, 60.0).items():
        monkeypatch.setenv(name, value)
    settings = load_settings({})
    assert settings.model_fields_set == one.settings.keys()
    assert settings.model_dump(mode="json", include=set(one.settings)) == one.settings
    assert (settings.drain_timeout, settings.enforce_eager, settings.quantization) == (0.001, False, "null")


def start(of: ModelSpec, join: Address, token_file: Path, folder: Path) -> WorkerProgram:
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - `end` closes it
    words, environment = worker_command(of, join, token_file, "w-7"), worker_environment(of, 60.0)
    process = subprocess.Popen(words, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True)
    return WorkerProgram(process, errors)


async def test_command_starts_a_worker_that_names_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKKA_OF_THE_GATEWAY", "1")
    # Modules of the working directory must not replace the worker's.
    (tmp_path / "yaml.py").write_text("raise SystemExit(9)")
    settings = {"engine": "fake", "engine_arg": ["answer=one, two"], "log_format": "json"}
    one = ModelSpec(name="poro, small", aliases=("p",), model="/models/poro", settings=settings, revision="r")
    async with gateway(tmp_path / "state") as opened:
        program = start(one, opened.address, opened.token_file, tmp_path)
        try:
            worker = await opened.ready()
            assert (worker.hello.model, worker.hello.worker) == ("poro, small", "w-7")
            assert "one, two" in (await collect(worker.engine, ask())).text(0)
            program.process.terminate()
            assert await program.wait() == 0
            events = [event["event"] for event in program.events()]
        finally:
            program.end()
    assert "ready" in events
    assert "unknown_variables" not in events
