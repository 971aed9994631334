"""Runs inside every process of the engine: vLLM loads it there as a plugin.

What can only be done from inside: ending with the server and not before, asking for AMX, loading compiled code, handing
over what is printed.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import select
import signal
import sys
import threading
from typing import Any

# Path of the server's pipe for the engine's output; unset with --log-level debug.
OUTPUT_VARIABLE = "TOKKA_ENGINE_OUTPUT"
# Seconds for the first of the workers that fail at their start to end.
_EXIT_S = 2.0


def install() -> None:
    """Entry point of the group vllm.general_plugins. Does nothing in the server's own process."""
    if "tokka" not in os.environ.get("VLLM_PLUGINS", "").split(","):
        # Another program's vLLM in the same environment loads every plugin it finds.
        return
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        return
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


def end_with(parent_pid: int) -> None:
    """End this process when its parent ends, however that ended: vLLM itself leaves orphans after a SIGKILL."""
    try:
        pidfd = os.pidfd_open(parent_pid)
    except OSError:
        os._exit(1)
    if os.getppid() != parent_pid:
        os._exit(1)

    def watch() -> None:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        while not poll.poll():
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def leave_interrupts_to_the_server() -> None:
    """Ctrl-C reaches every process of a terminal's group: the engine must go on while the server drains."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _redirect_output() -> None:
    if path := os.environ.get(OUTPUT_VARIABLE):
        fd = os.open(path, os.O_WRONLY)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)


def _enable_amx() -> None:
    """Ask the kernel for AMX tiles: vLLM uses them without asking and dies of SIGILL on small models."""
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
    """Have the engine print the exit code of a worker that dies.

    vLLM prints none for a worker that dies while it starts, and often `None` for one that dies later.
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
    """Wait for the first process to end, and print how it did."""
    by_sentinel = {process.sentinel: process for process in processes}
    for sentinel in multiprocessing.connection.wait(list(by_sentinel), timeout_s):
        process = by_sentinel[int(sentinel)]  # type: ignore[arg-type]
        # Its pipes are closed a moment before its exit code is there.
        process.join(_EXIT_S)
        if process.exitcode:
            sys.stderr.write(f"Worker proc {process.name} died unexpectedly (exit code: {process.exitcode})\n")


def _keep_logprobs_apart() -> None:
    from tokka.engine.vllm.listed_logprobs import keep_logprobs_apart

    keep_logprobs_apart()


def _rewind_generators() -> None:
    from tokka.engine.vllm.machine import is_cpu_build

    if is_cpu_build():
        from tokka.engine.vllm.seeded_chunks import rewind_generators

        rewind_generators()


def _let_compiled_code_load() -> None:
    """Add the method that vLLM misses when it loads what it compiled for a CPU; for want of it, it compiles again.

    `finalize_loading` belongs to vLLM's own backend. On a CPU vLLM takes torch's, whose code is complete once read.
    """
    try:
        from torch._dynamo.aot_compile_types import BundledAOTAutogradSerializableCallable as Code
    except ImportError:
        return
    if "finalize_loading" not in vars(Code):
        Code.finalize_loading = lambda _code, _config: None
