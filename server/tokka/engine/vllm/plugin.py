"""Runs inside every engine process: vLLM loads it there as a plugin.

It does the work that is only possible inside the process: end with the server and not before, request AMX, let compiled
code load, forward printed output.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
from typing import Any

from tokka.engine.supervision.lifeline import end_with, leave_interrupts_to_the_server

# Name of the plugin: of its entry point in pyproject.toml, and in VLLM_PLUGINS.
PLUGIN = "tokka"
# Path of the server's pipe for the engine's output; unset with --log-level debug.
OUTPUT_VARIABLE = "TOKKA_ENGINE_OUTPUT"
# Maximum seconds to wait for the first failing worker to end, and then for its exit code.
_EXIT_S = 2.0


def install() -> None:
    """Set up an engine process. Entry point of vllm.general_plugins; does nothing in the server's own process."""
    # design 1.7
    if PLUGIN not in os.environ.get("VLLM_PLUGINS", "").split(","):
        # Another program in the same environment: its vLLM loads every installed plugin.
        return
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        return
    # design 5.5
    end_with(parent.pid)
    leave_interrupts_to_the_server()
    _redirect_output()
    _enable_amx()
    _let_compiled_code_load()
    _take_ready_grammars()
    _refuse_missing_weights()
    _tell_how_workers_end()
    _keep_logprobs_apart()
    _rewind_generators()


def _redirect_output() -> None:
    if path := os.environ.get(OUTPUT_VARIABLE):
        fd = os.open(path, os.O_WRONLY)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)


def _enable_amx() -> None:
    """Request AMX tiles from the kernel. vLLM uses them without a request and dies of SIGILL on small models."""
    import torch

    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()


def _take_ready_grammars() -> None:
    from tokka.engine.vllm.guidance import take_ready_grammars

    take_ready_grammars()


def _refuse_missing_weights() -> None:
    from tokka.engine.vllm.missing_weights import refuse_missing_weights

    refuse_missing_weights()


def _tell_how_workers_end() -> None:
    """Make the engine print the exit code of a worker that dies.

    vLLM prints no exit code if the worker dies during its start, and often `None` if it dies later.
    """
    from vllm.v1.executor.multiproc_executor import WorkerProc

    wait_for_ready = WorkerProc.wait_for_ready

    def wait_and_tell(handles: list[Any]) -> Any:
        processes = [handle.proc for handle in handles]
        try:
            ready = wait_for_ready(handles)
        except Exception:
            _tell_exit(processes, _EXIT_S)
            raise
        threading.Thread(target=_tell_exit, args=(processes, None), name="worker-exits", daemon=True).start()
        return ready

    WorkerProc.wait_for_ready = staticmethod(wait_and_tell)


def _tell_exit(processes: list[Any], timeout_s: float | None) -> None:
    """Wait for the first process to end, and print a non-zero exit code."""
    by_sentinel = {process.sentinel: process for process in processes}
    for sentinel in multiprocessing.connection.wait(list(by_sentinel), timeout_s):
        process = by_sentinel[int(sentinel)]  # type: ignore[arg-type]
        # The pipes close a moment before the exit code is available.
        process.join(_EXIT_S)
        if process.exitcode:
            sys.stderr.write(f"Worker proc {process.name} died unexpectedly (exit code: {process.exitcode})\n")


def _keep_logprobs_apart() -> None:
    from tokka.engine.vllm.listed_logprobs import keep_logprobs_apart

    keep_logprobs_apart()


def _rewind_generators() -> None:
    from tokka.engine.vllm.start.environment import is_cpu_build

    if is_cpu_build():
        from tokka.engine.vllm.seeded_chunks import rewind_generators

        rewind_generators()


def _let_compiled_code_load() -> None:
    """Add `finalize_loading` to torch's compiled code. Without it vLLM compiles again at every start on a CPU.

    This method belongs to vLLM's own backend. On a CPU vLLM uses torch's backend, whose code is complete once read.
    """
    try:
        from torch._dynamo.aot_compile_types import BundledAOTAutogradSerializableCallable as Code
    except ImportError:
        return
    if "finalize_loading" not in vars(Code):
        Code.finalize_loading = lambda _code, _config: None
