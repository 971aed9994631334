"""The environment in which vLLM's servers run a small model, with either front end."""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path

import pytest
from benchmarks.load.amx import enable_amx
from benchmarks.load.rivals import PLUGIN, binary, distribution, variables


def test_distribution_is_a_cpu_build_named_vllm_with_the_plugin() -> None:
    with distribution("1.2.3") as folder:
        (found,) = importlib.metadata.distributions(path=[str(folder)])
        assert (found.name, found.version) == ("vllm", "1.2.3+cpu")
        (plugin,) = found.entry_points.select(group="vllm.general_plugins")
        assert plugin.name == PLUGIN
        assert plugin.load() is enable_amx


def test_only_the_rust_server_gets_the_rust_front_end() -> None:
    folder, rust = Path("/folder"), Path("/wheel/vllm-rs")
    assert variables("tokka", folder, rust) == {}
    assert variables("vllm-default", folder, rust) == {}
    python = variables("vllm", folder, rust)
    assert python["VLLM_PLUGINS"] == PLUGIN
    assert python["PYTHONPATH"].startswith("/folder:")
    more = {"VLLM_USE_RUST_FRONTEND": "1", "VLLM_RUST_FRONTEND_PATH": "/wheel/vllm-rs"}
    assert variables("vllm-rust", folder, rust) == {**python, **more}


def test_binary_rejects_a_file_that_is_not_executable(tmp_path: Path) -> None:
    file = tmp_path / "vllm-rs"
    with pytest.raises(argparse.ArgumentTypeError, match="not an executable file"):
        binary(str(file))
    file.touch(0o644)
    with pytest.raises(argparse.ArgumentTypeError, match="give the path of vllm/vllm-rs"):
        binary(str(file))
    file.chmod(0o755)
    assert binary(str(file)) == file
