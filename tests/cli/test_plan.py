"""`tokka plan`: its output and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.cli.command import tokka
from tokka.cli import app


def plan(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments])


def test_poro_34b_on_a_node_of_lumi() -> None:
    done = tokka("plan", "Poro-34B", "--gpu", "mi250x", "--count", "8")
    assert done.returncode == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert "  weights        63.7 GiB, bfloat16" in lines
    assert "  KV cache       1.48 MiB per token" in lines
    words = {line[:2].strip(): line for line in lines if line[:2].strip().isdigit()}
    assert words["1"].endswith("does not fit")
    assert words["2"].endswith("fits, the least")
    assert words["4"].endswith("recommended")
    assert all("not valid" in words[size] for size in ("3", "5", "6"))
    assert lines[-1] == "tokka serve Poro-34B --tensor-parallel-size 4 --data-parallel-size 2"


def test_json_has_the_same_in_bytes() -> None:
    answer = json.loads(plan("LumiOpen/Poro-34B", "--gpu", "MI250X", "--count", "8", "--json").stdout)
    assert answer["kv_bytes_per_token"] == 1_548_288
    assert answer["least"] == 2
    assert answer["recommended"]["tensor_parallel_size"] == 4
    assert [size["tensor_parallel_size"] for size in answer["sizes"] if size["invalid"]] == [3, 5, 6, 7]


def test_options_of_the_plan_are_options_of_the_command() -> None:
    done = plan(
        "Llama-3.3-70B-Instruct",
        *("--memory", "80", "--count", "8", "--quantization", "fp8"),
        *("--max-model-len", "8192", "--kv-cache-dtype", "fp8", "--dtype", "float16"),
    )
    command = done.stdout.splitlines()[-1]
    assert command.startswith("tokka serve Llama-3.3-70B-Instruct --tensor-parallel-size 2 --data-parallel-size 4")
    assert command.endswith("--dtype float16 --quantization fp8 --engine-arg kv_cache_dtype=fp8 --max-model-len 8192")


def test_nothing_fits_exits_with_1_and_the_numbers() -> None:
    done = plan("Llama-3.1-405B-Instruct", "--gpu", "mi250x", "--count", "8")
    assert done.exit_code == 1
    assert "Does not fit" in done.stdout


def test_a_context_that_fits_is_named() -> None:
    assert "--max-model-len" in plan("Llama-3.3-70B-Instruct", "--gpu", "h100", "--count", "2").stdout


@pytest.mark.parametrize(
    ("model", "arguments", "note"),
    [
        ("Poro-34B", ["--gpu", "mi250x", "--count", "8"], "cannot chat"),
        ("Poro-34B-chat", ["--gpu", "v100-32", "--count", "8"], "--dtype float16"),
        ("Llama-3.1-8B-Instruct", ["--gpu", "mi250x", "--quantization", "fp8"], "has no fp8"),
        ("gpt-oss-20b", ["--gpu", "h100"], "sliding window"),
    ],
)
def test_plan_prints_notes(model: str, arguments: list[str], note: str) -> None:
    assert note in plan(model, *arguments).stdout


def test_a_folder_with_a_config_alone_is_enough(tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9}
    config |= {"num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    answer = json.loads(plan(str(tmp_path), "--gpu", "l4", "--json").stdout)
    assert answer["parameters"] == 134_515_008


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["Poro-34B"], "--gpu NAME"),
        (["Poro-34B", "--gpu", "h100", "--memory", "80"], "--gpu NAME"),
        (["Poro-34B", "--gpu", "tpu"], "--gpu tpu is unknown"),
        (["Poro-34B", "--gpu", "h100", "--quantization", "q2"], "--quantization q2"),
        (["./nothing", "--gpu", "h100"], "does not exist"),
    ],
)
def test_wrong_use_is_one_line_and_exits_with_2(arguments: list[str], reason: str) -> None:
    done = plan(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("tokka: ")
    assert reason in line


@pytest.mark.parametrize(("content", "reason"), [("{", "not JSON"), ("[]", "JSON object"), ("{}", "does not say")])
def test_a_damaged_config_is_named(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "config.json").write_text(content)
    done = plan(str(tmp_path), "--gpu", "h100")
    assert done.exit_code == 2
    assert reason in done.stderr


def test_plan_suggests_a_download_when_the_hub_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = tokka("plan", "somebody/something", "--gpu", "h100")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "download the model and give its folder" in line
