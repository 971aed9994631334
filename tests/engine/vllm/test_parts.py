"""Parts of the vLLM adapter that need no vLLM: sampling parameters, the machine, the engine's output, weights."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tokka.core import Sampling
from tokka.engine.host import available_cores, available_memory_bytes
from tokka.engine.vllm.params import _check_types, _fields, is_greedy
from tokka.engine.vllm.start.engine_log import EngineLog
from tokka.engine.vllm.start.environment import prepare_environment
from tokka.errors import ConfigurationError, EngineError, StartupError
from tokka.planner.model_folder import read_model_folder


def fields(sampling: Sampling, **defaults: Any) -> dict[str, Any]:
    return _fields(sampling, 10, echo=False, defaults=defaults)


def test_omitted_fields_come_from_the_model_defaults() -> None:
    assert fields(Sampling(), temperature=0.6, top_p=0.9)["temperature"] == 0.6
    assert fields(Sampling(temperature=1.5), temperature=0.6)["temperature"] == 1.5
    assert fields(Sampling())["temperature"] == 1.0


def test_spaces_between_special_tokens_reach_the_engine() -> None:
    assert fields(Sampling())["spaces_between_special_tokens"] is True
    assert fields(Sampling(spaces_between_special_tokens=False))["spaces_between_special_tokens"] is False


def test_prompt_logprobs_are_as_many_as_echo_or_field_asks_for() -> None:
    def asked(sampling: Sampling, *, echo: bool) -> Any:
        return _fields(sampling, 10, echo=echo, defaults={})["prompt_logprobs"]

    assert asked(Sampling(logprobs=5), echo=False) is None
    assert asked(Sampling(logprobs=5, prompt_logprobs=3), echo=False) == 3
    assert asked(Sampling(logprobs=5, prompt_logprobs=3), echo=True) == 5
    assert asked(Sampling(prompt_logprobs=0), echo=True) == 0


def test_zero_top_p_means_greedy() -> None:
    assert is_greedy(Sampling(top_p=0.0), {})
    assert fields(Sampling(top_p=0.0, n=4))["n"] == 1


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63)])
def test_every_seed_is_one_the_engine_takes(seed: int) -> None:
    assert 0 <= fields(Sampling(seed=seed))["seed"] <= 2**63 - 1 - 1024


def test_every_field_of_a_request_passes_the_last_gate() -> None:
    full = Sampling(
        seed=1,
        logit_bias={1: 2.0},
        logprobs=3,
        stop=("a",),
        stop_token_ids=(1,),
        bad_words=("b",),
        allowed_token_ids=(2,),
    )
    _check_types(fields(full))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 1.5),
        ("min_tokens", 1.0),
        ("n", True),
        ("seed", "7"),
        ("seed", 2**70),
        ("logit_bias", {1: "2"}),
        ("stop_token_ids", [1.5]),
        ("temperature", 1),
        ("max_tokens", 10**30),
        ("skip_special_tokens", 1),
    ],
)
def test_a_wrong_type_never_reaches_the_engine(name: str, value: object) -> None:
    with pytest.raises(EngineError):
        _check_types({**fields(Sampling()), name: value})


def test_environment_uses_all_cores_and_keeps_the_operators_values() -> None:
    environ = {"OMP_NUM_THREADS": "1"}
    prepare_environment(environ, cpu=True, eager=True, ranks=1, offline=True, verbose=False)
    assert environ["OMP_NUM_THREADS"] == "1"
    assert environ["HF_HUB_OFFLINE"] == "1"
    assert environ["TORCHDYNAMO_DISABLE"] == "1"
    fresh: dict[str, str] = {}
    prepare_environment(fresh, cpu=True, eager=False, ranks=1, offline=False, verbose=True)
    assert "TORCHDYNAMO_DISABLE" not in fresh
    assert fresh["OMP_NUM_THREADS"] == str(len(available_cores()))
    assert "HF_HUB_OFFLINE" not in fresh


def test_gpu_build_gets_nothing_of_the_cpus_but_a_fresh_process() -> None:
    environ: dict[str, str] = {}
    prepare_environment(environ, cpu=False, eager=False, ranks=4, offline=False, verbose=True)
    assert environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert (
        not {"OMP_NUM_THREADS", "LD_PRELOAD", "VLLM_ENABLE_V1_MULTIPROCESSING", "TORCHDYNAMO_DISABLE"} & environ.keys()
    )


@pytest.mark.parametrize(
    ("given", "plugins"),
    [(None, "tokka"), ("", "tokka"), ("lora_resolver", "lora_resolver,tokka"), ("tokka,other", "tokka,other")],
)
def test_engine_processes_load_our_plugin_beside_others(given: str | None, plugins: str) -> None:
    environ = {} if given is None else {"VLLM_PLUGINS": given}
    prepare_environment(environ, cpu=False, eager=False, ranks=1, offline=True, verbose=True)
    assert environ["VLLM_PLUGINS"] == plugins


def test_ranks_get_shares_of_the_cores() -> None:
    environ: dict[str, str] = {}
    prepare_environment(environ, cpu=True, eager=True, ranks=2, offline=True, verbose=True)
    shares = environ["VLLM_CPU_OMP_THREADS_BIND"].split("|")
    assert len(shares) == 2
    assert {int(core) for share in shares for core in share.split(",")} <= set(available_cores())


def test_compiled_code_outlives_the_engines_private_tmpdir(tmp_path: Path) -> None:
    environ = {"TMPDIR": str(tmp_path)}
    prepare_environment(environ, cpu=False, eager=False, ranks=1, offline=True, verbose=True)
    assert Path(environ["TORCHINDUCTOR_CACHE_DIR"]).parent == Path(tempfile.gettempdir())


def test_memory_is_some() -> None:
    assert 1 << 20 < available_memory_bytes() < 1 << 50


def test_engine_output_keeps_last_error_and_exits(tmp_path: Path) -> None:
    with EngineLog(tmp_path) as output, open(output.path, "w") as pipe:
        pipe.write("INFO all is well\n(EngineCore pid=7) ValueError: the shard has no tensor 'x'\n")
        pipe.write("Worker proc VllmWorker-1 died unexpectedly (exit code: -9), shutting down executor.\n")
        pipe.write("RuntimeError: Engine core initialization failed. See root cause above.\n")
        pipe.flush()
    assert output.last_error() == "the shard has no tensor 'x'"
    assert output.worker_exits() == {"VllmWorker-1": -9}


def _folder(tmp_path: Path, header: dict[str, Any], data: bytes) -> Path:
    encoded = json.dumps(header).encode()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return tmp_path


HEADER = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def test_whole_weights_are_measured(tmp_path: Path) -> None:
    folder = _folder(tmp_path, HEADER, b"12345678")
    assert read_model_folder(folder).weight_bytes == (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("data", [b"1234567", b"123456789", b""])
def test_weights_of_another_length_are_damaged(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(StartupError, match="damaged"):
        read_model_folder(_folder(tmp_path, HEADER, data))


@pytest.mark.parametrize("raw", [b"", b"123", b"\xff" * 64, (10).to_bytes(8, "little") + b"not json!!"])
def test_weights_without_a_header_are_damaged(tmp_path: Path, raw: bytes) -> None:
    folder = _folder(tmp_path, HEADER, b"12345678")
    (folder / "model.safetensors").write_bytes(raw)
    with pytest.raises(StartupError, match="damaged"):
        read_model_folder(folder)


def test_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not a folder"):
        read_model_folder(_folder(tmp_path, HEADER, b"12345678") / "config.json")
