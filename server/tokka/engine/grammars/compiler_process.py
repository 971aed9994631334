"""The server's side of one process that compiles constraints (`compiler.py`): starts, queries and ends it."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import Process
from signal import SIGPROF
from typing import Any

import orjson
import structlog

from tokka.engine.grammars.compile_queue import WAIT_S
from tokka.engine.grammars.limits import COMPILE_S
from tokka.engine.grammars.verdicts import Verdict
from tokka.errors import EngineDied, EngineError, ServerOverloaded
from tokka.sandbox.process import end_confined, start_confined

log = structlog.get_logger("tokka.engine")

# Maximum wall-clock seconds for one answer. On a busy machine a second of CPU time takes several.
_ANSWER_S = 10.0
_START_S = 60.0
# Seconds that a refusal is cached if the process gave no answer: the machine may be the cause.
_DOUBT_S = 60.0
_LINE_BYTES = 16 << 20


class CompilerProcess:
    """Compiles one constraint at a time. Ends a process that takes too long; the next constraint starts a new one."""

    def __init__(self, tokenizer: dict[str, Any]) -> None:
        """`tokenizer`: the first line that the process reads."""
        self._tokenizer = tokenizer
        self._process: Process | None = None
        self._closed = False
        # CPU seconds of all processes so far, including their starts.
        self.cpu_s = 0.0

    async def start(self) -> None:
        """Start the process if none runs. Raises EngineError, EngineDied after `close`."""
        await self._running()

    async def compile(self, question: dict[str, Any]) -> Verdict:
        """Compile a constraint.

        Raises ServerOverloaded if the process lacks CPU time, EngineError if it cannot start, EngineDied after `close`.
        """
        reason = ""
        # Another program may have ended the process once; if it ends twice, the constraint is the cause.
        for _ in range(2):
            process = await self._running()
            began_s = asyncio.get_running_loop().time()
            try:
                return Verdict(**await self._ask(process, question, _ANSWER_S))
            except TimeoutError:
                # The constraint may be valid (vllm/design 2.3.7).
                raise ServerOverloaded(
                    "The grammar compiler is too slow now. Retry later.", retry_after_s=WAIT_S
                ) from None
            except (OSError, EOFError):
                # vllm/design 2.3.7
                if process.returncode == -SIGPROF:
                    self.cpu_s += COMPILE_S
                    reason = f"it takes more than {COMPILE_S:.0f} s to compile: make it smaller or simpler"
                    break
                # Out of memory or stack, or a fault in the library. The CPU time is unknown: count the elapsed time.
                self.cpu_s += min(COMPILE_S, asyncio.get_running_loop().time() - began_s)
                reason = "it takes too much memory or nests too deeply: make it smaller or simpler"
        log.warning("constraint_refused", kind=question["kind"], chars=len(question["text"]), reason=reason)
        return Verdict(reason=reason, until_s=asyncio.get_running_loop().time() + _DOUBT_S)

    async def close(self) -> None:
        self._closed = True
        await self._end()

    async def _running(self) -> Process:
        if self._closed:
            raise EngineDied
        if self._process is None or self._process.returncode is not None:
            try:
                self._process = await start_confined("tokka.engine.grammars.compiler", line_bytes=_LINE_BYTES)
                if self._closed:
                    # `close` ran during the start and did not see this process.
                    await self._end()
                    raise EngineDied
                said = await self._ask(self._process, self._tokenizer, _START_S)
            except (OSError, EOFError, TimeoutError):
                raise EngineError("The grammar compiler could not be started.") from None
            if refused := said["sandbox"]:
                log.debug("compiler_sandbox_incomplete", reason=refused)
        return self._process

    async def _ask(self, process: Process, line: dict[str, Any], within_s: float) -> dict[str, Any]:
        """Send a line and return the answer. Raises EOFError or OSError if the process ends, TimeoutError."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(within_s):
                process.stdin.write(orjson.dumps(line) + b"\n")
                await process.stdin.drain()
                answer = await process.stdout.readline()
            if not answer.endswith(b"\n"):
                raise EOFError
        except BaseException:
            # A late answer would be read as the answer to the next line.
            await self._end()
            raise
        said: dict[str, Any] = orjson.loads(answer)
        self.cpu_s += said.pop("cpu_s")
        return said

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await end_confined(process)
