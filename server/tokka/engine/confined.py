"""Processes of our own that work on what strangers sent: how the server starts and ends them. They confine themselves
(`sandbox.py`) before their first question.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from typing import Any, cast

from tokka.engine.sandbox import bare_environment

# As asyncio has it.
_LINE_BYTES = 64 << 10


async def start_confined(module: str, *arguments: str, line_bytes: int = _LINE_BYTES) -> Process:
    """Start a module that is told this process's id first. `line_bytes`: the longest line of its answers."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", module, str(os.getpid()), *arguments),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        limit=line_bytes,
        env=bare_environment(),
    )


async def end_confined(process: Process) -> None:
    # A signal to a process that ends by itself could replace the exit code, which tells why it ended.
    if process.stdout is None or not process.stdout.at_eof():
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    try:
        await process.wait()
    finally:
        # Its pipes would be closed by the garbage collector, which warns of them.
        cast(Any, process)._transport.close()
