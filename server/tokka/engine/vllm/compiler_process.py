"""The server's side of one process that compiles constraints (`grammar.py`): start it, ask it, end it."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import Process
from signal import SIGPROF
from typing import Any

import orjson
import structlog

from tokka.engine.confined import end_confined, start_confined
from tokka.engine.vllm.compile_queue import WAIT_S
from tokka.engine.vllm.limits import COMPILE_S
from tokka.engine.vllm.verdicts import Verdict
from tokka.errors import EngineDied, EngineError, ServerOverloaded

log = structlog.get_logger("tokka.engine")

# Seconds of the clock for one answer. On a busy machine a second of CPU time takes several.
_ANSWER_S = 10.0
_START_S = 60.0
# Seconds for which a refusal without an answer is kept: the machine may have been the reason.
_DOUBT_S = 60.0
_LINE_BYTES = 16 << 20


class CompilerProcess:
    """Answers one question at a time. A process that takes too long is ended, and the next question starts another."""

    def __init__(self, tokenizer: dict[str, Any]) -> None:
        """`tokenizer`: the process's first line."""
        self._tokenizer = tokenizer
        self._process: Process | None = None
        self._closed = False
        # CPU seconds of all processes so far, starts included.
        self.cpu_s = 0.0

    async def start(self) -> None:
        """Start the process if none runs. Raises EngineError, EngineDied after `close`."""
        await self._running()

    async def compile(self, question: dict[str, Any]) -> Verdict:
        """Raises ServerOverloaded if the process gets no CPU time, EngineError, EngineDied after `close`."""
        reason = ""
        # Another program may have ended the process; a constraint that ends it twice does so itself.
        for _ in range(2):
            process = await self._running()
            began_s = asyncio.get_running_loop().time()
            try:
                return Verdict(**await self._ask(process, question, _ANSWER_S))
            except TimeoutError:
                # Nothing is known of the constraint.
                raise ServerOverloaded(
                    "The compiler of grammars is too slow now. Retry later.", retry_after_s=WAIT_S
                ) from None
            except (OSError, EOFError):
                if process.returncode == -SIGPROF:
                    self.cpu_s += COMPILE_S
                    reason = f"it takes more than {COMPILE_S:.0f} s to compile: make it smaller or simpler"
                    break
                # Out of memory or of stack, or a fault of the library. Its CPU time is not known.
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
                self._process = await start_confined("tokka.engine.vllm.grammar", line_bytes=_LINE_BYTES)
                if self._closed:
                    # `close` ran meanwhile and did not see this process.
                    await self._end()
                    raise EngineDied
                said = await self._ask(self._process, self._tokenizer, _START_S)
            except (OSError, EOFError, TimeoutError):
                raise EngineError("The compiler of grammars could not be started.") from None
            if refused := said["sandbox"]:
                log.debug("compiler_sandbox_incomplete", reason=refused)
        return self._process

    async def _ask(self, process: Process, line: dict[str, Any], within_s: float) -> dict[str, Any]:
        """Return the answer to a line. Raises EOFError or OSError if the process ends instead, TimeoutError."""
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
            # Its next answer would be taken for that to another question.
            await self._end()
            raise
        said: dict[str, Any] = orjson.loads(answer)
        self.cpu_s += said.pop("cpu_s")
        return said

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await end_confined(process)
