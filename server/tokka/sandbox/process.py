"""Starts and ends the server's own processes that handle untrusted input.

Each process sandboxes itself (`sandbox.py`) before its first task.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from typing import Any, cast

from tokka.sandbox.confinement import bare_environment

# Default maximum bytes of an output line, the same as asyncio's.
_LINE_BYTES = 64 << 10


async def start_confined(module: str, *arguments: str, line_bytes: int = _LINE_BYTES) -> Process:
    """Start a module. Its first argument is this process's id. `line_bytes`: maximum bytes of an output line."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", module, str(os.getpid()), *arguments),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        limit=line_bytes,
        env=bare_environment(),
    )


async def end_confined(process: Process) -> None:
    """Kill the process unless it is ending by itself, and wait for its end."""
    # A signal to a process that is ending by itself could replace the exit code, which explains the end.
    if process.stdout is None or not process.stdout.at_eof():
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    try:
        await process.wait()
    finally:
        # Otherwise the garbage collector closes the pipes and warns about them.
        cast(Any, process)._transport.close()
