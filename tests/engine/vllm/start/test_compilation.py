"""Eager or compiled execution: the rule, the folder, the seal, and code that is damaged or cannot be stored."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from tokka.engine.vllm import plugin
from tokka.engine.vllm.start.arguments import VllmOptions
from tokka.engine.vllm.start.compilation import Facts, Optimize, apply_execution, choose, seal_compiled
from tokka.engine.vllm.start.environment import prepare_environment
from tokka.settings import Settings

GPU = Facts(cpu=False, compiled_before=False, obstacle=None)
NEW = Facts(cpu=True, compiled_before=False, obstacle=None)
KNOWN = Facts(cpu=True, compiled_before=True, obstacle=None)
STUCK = Facts(cpu=True, compiled_before=True, obstacle="there is no C++ compiler")


@pytest.mark.parametrize(
    ("optimize", "facts", "eager"),
    [
        (None, GPU, False),
        ("throughput", GPU, False),
        ("start", GPU, True),
        (None, NEW, True),
        ("throughput", NEW, False),
        ("start", NEW, True),
        (None, KNOWN, False),
        ("throughput", KNOWN, False),
        ("start", KNOWN, True),
        (None, STUCK, True),
        ("throughput", STUCK, True),
        ("start", STUCK, True),
    ],
)
def test_rule(optimize: Optimize | None, facts: Facts, eager: bool) -> None:
    choice = choose(optimize, facts)
    assert choice.eager is eager
    assert choice.reason


def test_obstacle_is_the_reason() -> None:
    assert choose("throughput", STUCK).reason == STUCK.obstacle


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with a C++ compiler."""
    compiler = tmp_path / "bin" / "g++"
    compiler.parent.mkdir()
    compiler.touch(0o755)
    return {"PATH": str(compiler.parent)}


def settle(
    cache_dir: Path,
    environ: dict[str, str],
    optimize: Optimize | None = None,
    *,
    given: bool | None = None,
    engine_arg: list[str] | None = None,
    **more: Any,
) -> tuple[bool, Path | None]:
    settings = Settings.model_validate(
        {"cache_dir": cache_dir, "optimize": optimize, "enforce_eager": given, "engine_arg": engine_arg or []}
    )
    arguments = {"model": "m", "enforce_eager": True if given is None else given, **more}
    folder = apply_execution(VllmOptions.from_settings(settings), arguments, cpu=True, environ=environ)
    return bool(arguments["enforce_eager"]), folder


def compile_into(folder: Path | None) -> Path:
    """Act as a start that compiles: write code, here one file, and seal it."""
    assert folder is not None
    code = folder / "torch_compile_cache" / "0123" / "model"
    code.parent.mkdir(parents=True)
    code.write_bytes(b"code")
    seal_compiled(folder)
    return code


def test_start_is_eager_first_and_compiled_after_a_compiled_start(tmp_path: Path, environ: dict[str, str]) -> None:
    assert settle(tmp_path, environ) == (True, tmp_path / "vllm")
    eager, folder = settle(tmp_path, environ, "throughput")
    assert not eager
    compile_into(folder)
    assert settle(tmp_path, environ) == (False, folder)
    assert settle(tmp_path, environ, "start") == (True, tmp_path / "vllm")


def test_compiled_code_depends_on_model_and_settings_not_on_memory(tmp_path: Path, environ: dict[str, str]) -> None:
    compile_into(settle(tmp_path, environ, "throughput", kv_cache_memory_bytes=1)[1])
    assert not settle(tmp_path, environ, kv_cache_memory_bytes=2)[0]
    assert settle(tmp_path, environ, dtype="float32")[0]
    assert settle(tmp_path, environ, model="another")[0]


def test_changed_config_is_another_model(tmp_path: Path, environ: dict[str, str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    compile_into(settle(tmp_path, environ, "throughput", model=str(tmp_path))[1])
    assert not settle(tmp_path, environ, model=str(tmp_path))[0]
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2}')
    assert settle(tmp_path, environ, model=str(tmp_path))[0]


def test_damaged_code_is_set_aside_and_the_start_is_eager(tmp_path: Path, environ: dict[str, str]) -> None:
    _, folder = settle(tmp_path, environ, "throughput")
    code = compile_into(folder)
    code.write_bytes(b"cod")
    assert settle(tmp_path, environ)[0]
    assert not code.exists()
    # With `throughput`, the code is compiled again in the same place.
    assert settle(tmp_path, environ, "throughput") == (False, folder)


def test_code_without_a_seal_is_another_servers_work(tmp_path: Path, environ: dict[str, str]) -> None:
    _, folder = settle(tmp_path, environ, "throughput")
    assert folder is not None
    code = folder / "torch_compile_cache" / "half"
    code.parent.mkdir(parents=True)
    code.write_bytes(b"co")
    assert settle(tmp_path, environ)[0]
    assert code.exists()


def test_code_that_was_replaced_during_a_start_is_sealed_again(tmp_path: Path, environ: dict[str, str]) -> None:
    _, folder = settle(tmp_path, environ, "throughput")
    compile_into(folder).write_bytes(b"newer code")
    seal_compiled(folder)
    assert not settle(tmp_path, environ)[0]


def test_code_that_has_come_since_is_sealed_too(tmp_path: Path, environ: dict[str, str]) -> None:
    _, folder = settle(tmp_path, environ, "throughput")
    helper = compile_into(folder).with_name("helper.so")
    helper.write_bytes(b"more")
    seal_compiled(folder)
    helper.write_bytes(b"mor")
    assert settle(tmp_path, environ)[0]


def test_nothing_is_compiled_without_a_compiler(tmp_path: Path) -> None:
    assert settle(tmp_path, {"PATH": str(tmp_path)}, "throughput")[0]
    assert settle(tmp_path, {"PATH": str(tmp_path), "CXX": "/usr/bin/env"}, "throughput")[0] is False


def test_nothing_is_compiled_where_it_cannot_be_kept(
    tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = os.statvfs_result((4096, 4096, 1000, 10, 10, 100, 10, 10, 0, 255))
    with monkeypatch.context() as patched:
        patched.setattr(os, "statvfs", lambda _path: full)
        assert settle(tmp_path, environ, "throughput")[0]
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    # vLLM gets no folder there, since it could not write to it.
    assert settle(tmp_path / "not" / "there", environ, "throughput") == (True, None)


def test_engine_that_started_eagerly_stays_eager_when_it_is_rebuilt(tmp_path: Path, environ: dict[str, str]) -> None:
    eager, folder = settle(tmp_path, environ)
    prepare_environment(environ, cpu=True, eager=eager, ranks=1, offline=True, verbose=True, cache_root=folder)
    other = {"PATH": environ["PATH"]}
    compile_into(settle(tmp_path, other, "throughput")[1])
    assert settle(tmp_path, environ)[0]
    assert not settle(tmp_path, other)[0]


def test_compiled_engine_is_rebuilt_from_the_same_folder(tmp_path: Path, environ: dict[str, str]) -> None:
    eager, folder = settle(tmp_path, environ, "throughput")
    prepare_environment(environ, cpu=True, eager=eager, ranks=1, offline=True, verbose=True, cache_root=folder)
    assert environ["VLLM_CACHE_ROOT"] == str(folder)
    compile_into(folder)
    assert settle(tmp_path, environ) == (False, folder)


def test_folder_the_operator_names_is_left_to_the_operator(tmp_path: Path, environ: dict[str, str]) -> None:
    compile_into(settle(tmp_path / "cache", environ, "throughput")[1])
    environ["VLLM_CACHE_ROOT"] = str(tmp_path / "own")
    assert settle(tmp_path / "cache", environ) == (True, None)
    assert settle(tmp_path / "cache", environ, "throughput") == (False, None)
    seal_compiled(None)


def test_explicit_eager_or_not_wins(tmp_path: Path) -> None:
    assert settle(tmp_path, {}, "throughput", given=True)[0]
    assert not settle(tmp_path, {}, "start", given=False)[0]
    assert not settle(tmp_path, {}, "start", engine_arg=["enforce_eager=false"], enforce_eager=False)[0]


def test_code_that_cannot_be_sealed_is_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_self: Path, _text: str, encoding: str) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "torch_compile_cache").mkdir()
    monkeypatch.setattr(Path, "write_text", full)
    seal_compiled(tmp_path)


def test_vllm_of_another_program_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[int] = []
    monkeypatch.setattr(plugin, "end_with", touched.append)
    monkeypatch.setattr(multiprocessing, "parent_process", multiprocessing.current_process)
    for plugins in (None, "", "another"):
        if plugins is None:
            monkeypatch.delenv("VLLM_PLUGINS", raising=False)
        else:
            monkeypatch.setenv("VLLM_PLUGINS", plugins)
        plugin.install()
    assert touched == []
