"""Why the real engine failed to start or died: a known cause takes precedence over the output of its processes."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import psutil
import pytest

from tests.models.folders import drop_tensor
from tests.patches import patched
from tests.program import Program, eventually, failing, running

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

KILLED = "was killed by signal 9 (SIGKILL)"
# EngineCore prints this while it starts, as vLLM does on GPUs for an optional backend.
STALE = """
import sys
sys.stderr.write("WARNING DeepGEMM cannot be used\\nTraceback (most recent call last):\\n")
sys.stderr.write("RuntimeError: DeepGEMM backend is not available\\n")
sys.stderr.flush()
"""


def only_line(program: Program) -> str:
    (line,) = program.stderr().splitlines()
    return line


def test_error_has_signal_and_remedy_when_a_loading_engine_is_killed() -> None:
    with running(wait=False) as program:
        eventually(lambda: any("VLLM" in child.name() for child in program.children()), within_s=120)
        program.core().kill()
        assert program.process.wait(60) == 3
        line = only_line(program)
    assert line.startswith("tokka: the engine could not load")
    assert KILLED in line
    assert "memory" in line
    assert "--max-model-len" in line
    assert "root cause above" not in line


def workers(program: Program) -> list[psutil.Process]:
    return [child for child in program.children() if "VLLM::Worker" in child.name()]


def test_log_names_the_signal_when_a_ready_worker_is_killed(bloom_folder: Path) -> None:
    with running(str(bloom_folder), "--tensor-parallel-size", "2") as program:
        workers(program)[1].kill()
        died = program.wait_for("engine_died")
        assert "VllmWorker-1 " + KILLED in died["detail"]


def test_error_names_the_signal_when_a_loading_worker_is_killed(bloom_folder: Path) -> None:
    with running(str(bloom_folder), "--tensor-parallel-size", "2", wait=False) as program:
        eventually(lambda: len(workers(program)) == 2, within_s=200)
        workers(program)[0].kill()
        assert program.process.wait(60) == 3
        line = only_line(program)
    assert "VllmWorker-" in line
    assert KILLED in line


def test_log_names_the_signal_when_a_ready_engine_is_killed(fresh: Program) -> None:
    fresh.core().kill()
    died = fresh.wait_for("engine_died")
    assert died["reason"] == "died"
    assert KILLED in died["detail"]
    assert "memory" in died["detail"]
    fresh.process.send_signal(signal.SIGTERM)


def test_error_in_hand_comes_before_stale_output(bloom_folder: Path, tmp_path: Path) -> None:
    # Tokka's code fails on the first request. EngineCore printed another error long before.
    fault = "def sampling_params(*_, **__): raise KeyError('no_such_field')"
    env = patched(tmp_path, {"tokka.engine.vllm.params": fault, "tokka.engine.vllm.missing_weights": STALE})
    code, lines = failing(str(bloom_folder), "--port", "0", env=env)
    assert code == 3
    (line,) = lines
    assert line.startswith("tokka: the engine failed its first requests: KeyError: 'no_such_field'")
    assert line.endswith("the last error in the engine's own log: DeepGEMM backend is not available")


def test_failed_load_reports_the_last_error_of_the_engine(bloom_folder: Path, tmp_path: Path) -> None:
    # vLLM itself does not report that this tensor is missing.
    folder = Path(shutil.copytree(bloom_folder, tmp_path / "model"))
    tensor = "transformer.h.0.mlp.dense_h_to_4h.weight"
    drop_tensor(folder / "model.safetensors", tensor)
    env = patched(tmp_path / "patches", {"tokka.engine.vllm.missing_weights": STALE})
    code, lines = failing(str(folder), "--port", "0", env=env)
    assert code == 3
    (line,) = lines
    assert line.startswith(f"tokka: the engine could not load {folder}: no weight file holds {tensor}; ")
    assert "DeepGEMM" not in line


@pytest.mark.parametrize("split", ["1", "auto"])
def test_gpu_build_names_the_option_when_no_gpu_is_visible(bloom_folder: Path, tmp_path: Path, split: str) -> None:
    patches = {
        "tokka.engine.vllm.start.environment": "def is_cpu_build(): return False",
        "vllm.platforms": "def resolve_current_platform_cls_qualname():"
        " return 'vllm.platforms.interface.UnspecifiedPlatform'",
    }
    env = {**patched(tmp_path, patches), "CUDA_VISIBLE_DEVICES": ""}
    code, lines = failing(str(bloom_folder), "--port", "0", "--tensor-parallel-size", split, env=env)
    assert code == 3
    (line,) = lines
    assert line.startswith("tokka: no GPU is visible to this process (CUDA_VISIBLE_DEVICES= hides GPUs); ")
    assert "--gpus all" in line
