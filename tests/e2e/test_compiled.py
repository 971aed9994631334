"""Compiled execution on the real engine: one start compiles into --cache-dir, and the next start loads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.program import Program, running
from tests.wire import scores
from tokka.engine.vllm.start.sealed_folder import damage_of, has_unsealed_files

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]


def _scores(program: Program) -> list[float]:
    with program.client() as client:
        return scores(client, program.model, ["Helsinki is the capital", "Poro on"])


def _execution(program: Program) -> tuple[str, str]:
    (line,) = [line for line in program.log if line.get("event") == "execution_chosen"]
    return line["execution"], line["reason"]


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_second_start_loads_the_compiled_code_of_the_first(bloom_folder: Path, tmp_path: Path) -> None:
    model = [str(bloom_folder), "--cache-dir", str(tmp_path)]
    with running(*model, "--optimize", "throughput") as program:
        assert _execution(program)[0] == "compiled"
        compiled = _scores(program)
        assert program.stop() == 0
    made = _files(tmp_path)
    assert any(path.suffix == ".so" for path in made)
    # The manifest covers all files, including the files that the first requests compiled.
    (code,) = tmp_path.glob("compiled/*/torch_compile_cache")
    assert damage_of(code) is None
    assert not has_unsealed_files(code)

    # Without --optimize. The variable makes vLLM fail instead of compiling again.
    with running(*model, env={"VLLM_FORCE_AOT_LOAD": "1"}) as program:
        assert _execution(program) == ("compiled", "compiled at an earlier start")
        assert _scores(program) == pytest.approx(compiled, abs=0.02)
        assert program.stop() == 0
    assert _files(tmp_path) == made
