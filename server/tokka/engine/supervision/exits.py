"""Explains to the operator how an engine process ended."""

from __future__ import annotations

import signal
from pathlib import Path

_MORE_MEMORY = (
    "free memory, raise the memory limit of the container or job, choose a smaller model, or lower --max-model-len or "
    "--kv-cache-memory"
)
# The usual cause of each signal in an engine process, and the remedy.
_MEANINGS = {
    signal.SIGKILL: f"most likely because the memory ran out; {_MORE_MEMORY}",
    signal.SIGBUS: "most likely because /dev/shm is full or a weight file was changed; give the container a larger "
    "/dev/shm",
    signal.SIGILL: "most likely because this processor lacks an instruction that the engine uses; install an engine "
    "built for this processor",
    signal.SIGTERM: "by another program; send SIGTERM only to the tokka process",
}
_RAN_OUT = f"by the kernel because the memory ran out; {_MORE_MEMORY}"
_CRASHED = "a crash in the engine's native code; start with --log-level debug to see the engine's own log"


def exit_words(code: int, *, out_of_memory: bool = False) -> str:
    """Describe how a process ended, with the likely cause and the remedy.

    `code`: its exit code, negative for a signal. `out_of_memory`: the kernel's out-of-memory killer ran meanwhile.
    """
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        number = signal.Signals(-code)
    except ValueError:
        return f"was killed by signal {-code}"
    meaning = _MEANINGS.get(number, _CRASHED)
    if number == signal.SIGKILL and out_of_memory:
        meaning = _RAN_OUT
    return f"was killed by signal {-code} ({number.name}), {meaning}"


def oom_kills() -> int:
    """Return the number of out-of-memory kills since boot, or 0 if the kernel does not report it."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
