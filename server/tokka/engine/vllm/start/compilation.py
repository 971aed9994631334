"""Chooses eager or compiled execution, and the folder for compiled code. Reasons and figures: docs/adr/0011."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import structlog

from tokka.engine.vllm.start.arguments import VllmOptions
from tokka.engine.vllm.start.environment import engine_version
from tokka.engine.vllm.start.sealed_folder import damage_of, has_unsealed_files, is_sealed, seal, set_aside

log = structlog.get_logger("tokka.engine")

Optimize = Literal["start", "throughput"]

# Minimum free bytes to compile. The embedded model's code takes 7 MiB; the compiler also writes several times as much
# temporarily.
_NEEDED_BYTES = 200 << 20
# Engine arguments that do not affect the code. The last one depends on the memory that other programs leave free.
_NOT_IN_THE_CODE = {"enforce_eager", "served_model_name", "kv_cache_memory_bytes"}


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts that `choose` decides by."""

    cpu: bool
    # The cache holds complete code for this model, these arguments and this machine.
    compiled_before: bool
    # Why compiled code can be neither made nor loaded here; None if it can.
    obstacle: str | None


@dataclass(frozen=True, slots=True)
class Choice:
    """How to execute the model, and why."""

    eager: bool
    reason: str


def choose(optimize: Optimize | None, facts: Facts) -> Choice:
    """Choose how to execute if --enforce-eager does not decide it."""
    # design 1.3.2
    if optimize == "start":
        return Choice(True, "--optimize start")
    # design 1.3.3
    if not facts.cpu:
        # vLLM's own default. vLLM brings everything that it needs to compile for a GPU.
        return Choice(False, "the engine runs on a GPU")
    # design 1.3.4
    if facts.obstacle:
        return Choice(True, facts.obstacle)
    # design 1.3.5
    if facts.compiled_before:
        return Choice(False, "compiled at an earlier start")
    # design 1.3.6
    if optimize == "throughput":
        return Choice(False, "--optimize throughput; this start compiles for a minute or more, later starts do not")
    return Choice(True, "no compiled code exists for this configuration yet; --optimize throughput compiles it")


def apply_execution(
    options: VllmOptions, arguments: dict[str, Any], *, cpu: bool, environ: Mapping[str, str] = os.environ
) -> Path | None:
    """Set `enforce_eager` in `arguments`. Return the folder for vLLM's caches; None leaves the folder to vLLM."""
    settings, cache_dir = options.settings, options.cache_dir
    own = environ.get("VLLM_CACHE_ROOT")
    # At an engine restart the variable still holds Tokka's own folder.
    named_by_operator = own is not None and not Path(own).is_relative_to(cache_dir)
    folder = cache_dir / "compiled" / _key(arguments)
    before = not named_by_operator and cpu and _is_whole(folder)
    # design 1.3.1
    if settings.enforce_eager is None and "enforce_eager" not in options.engine_args:
        obstacle = _obstacle(cache_dir, environ, room_needed=not before) if cpu else None
        choice = choose(settings.optimize, Facts(cpu=cpu, compiled_before=before, obstacle=obstacle))
        arguments["enforce_eager"] = choice.eager
        report = log.warning if cpu and settings.optimize == "throughput" and choice.eager else log.info
        report("execution_chosen", execution="eager" if choice.eager else "compiled", reason=choice.reason)
    if named_by_operator or not _is_writable(cache_dir):
        # vLLM writes to its cache folder at every start, so it uses its own folder.
        return None
    return folder if cpu and not arguments["enforce_eager"] else cache_dir / "vllm"


def seal_compiled(folder: Path | None) -> None:
    """Seal the compiled code unless an intact seal covers it. Call after a start, which proves it works. Blocks."""
    code = _code(folder) if folder else None
    if code is None or not code.exists():
        return
    try:
        if damage_of(code) or has_unsealed_files(code):
            seal(code)
    except OSError as error:
        log.warning("compiled_code_not_kept", reason=error.strerror or str(error), folder=str(code))


def _code(folder: Path) -> Path:
    # The name that vLLM uses.
    return folder / "torch_compile_cache"


def _is_whole(folder: Path) -> bool:
    code = _code(folder)
    # Code without a seal may be incomplete: another server may be compiling it.
    if not is_sealed(code):
        return False
    if damage := damage_of(code):
        try:
            log.warning("compiled_code_set_aside", damage=damage, folder=str(set_aside(code)))
        except OSError as error:
            log.warning("compiled_code_damaged", damage=damage, folder=str(code), reason=error.strerror)
        return False
    return True


def _obstacle(cache_dir: Path, environ: Mapping[str, str], *, room_needed: bool) -> str | None:
    """Return why compiled code can be neither made nor loaded here; None if it can."""
    if environ.get("TORCHDYNAMO_DISABLE") == "1":
        # Set by this server at its first, eager start, or by the operator.
        return "compilation is switched off in this process"
    # Loading code also needs the compiler: torch checks its version.
    compiler = environ.get("CXX") or "g++"
    if shutil.which(compiler, path=environ.get("PATH")) is None:
        return f"the C++ compiler {compiler} was not found"
    if not _is_writable(cache_dir):
        return f"--cache-dir {cache_dir} cannot be written"
    if room_needed and (free := shutil.disk_usage(_nearest(cache_dir)).free) < _NEEDED_BYTES:
        return f"--cache-dir {cache_dir} has no room for compiled code: {free} bytes free, {_NEEDED_BYTES} needed"
    return None


def _is_writable(folder: Path) -> bool:
    return os.access(_nearest(folder), os.W_OK)


def _nearest(folder: Path) -> Path:
    """Return the folder, or its nearest existing parent."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def _key(arguments: Mapping[str, Any]) -> str:
    """Return a hash of everything that compiled code depends on. vLLM's own check leaves out the processor."""
    config = Path(str(arguments["model"])) / "config.json"
    facts = [
        engine_version(),
        platform.python_version(),
        platform.machine(),
        _processor_flags(),
        config.read_text(encoding="utf-8") if config.exists() else "",
        {name: value for name, value in arguments.items() if name not in _NOT_IN_THE_CODE},
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _processor_flags() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
