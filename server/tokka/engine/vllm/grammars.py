"""From a request's constraint to the grammar the engine runs, made and tried out where it can do no harm."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import OrderedDict
from copy import copy
from dataclasses import dataclass
from signal import SIGPROF
from typing import Any

import orjson
import structlog

from tokka.core import Constraint
from tokka.engine.vllm.limits import COMPILE_S, states_for
from tokka.errors import EngineDied, EngineError, InvalidRequest, ServerOverloaded, UnsupportedParameter

log = structlog.get_logger("tokka.engine")

# On a busy machine what is ended after a second of the processor may take some.
_ANSWER_S = 10.0
# How long a request may wait for those before it.
WAIT_S = 10.0
# So long one that was given up stays refused: it may have been the machine's fault.
_DOUBT_S = 60.0
_START_S = 60.0
_KEPT = 512
_LINE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class _Verdict:
    grammar: str = ""
    reason: str = ""
    at: str = ""
    # In the event loop's time.
    until_s: float = math.inf


class Grammars:
    """One process that makes grammars, fed one at a time, ended when it takes too long, and what it has said so far."""

    def __init__(self, tokenizer: dict[str, Any] | None) -> None:
        """`tokenizer`: the process's first line; None if this model's cannot be used."""
        self._tokenizer = tokenizer
        self._verdicts: OrderedDict[bytes, _Verdict] = OrderedDict()
        self._turn = asyncio.Lock()
        # By whoever has the turn.
        self._asking: asyncio.Task[_Verdict] | None = None
        self._process: Process | None = None
        self._closed = False

    async def start(self) -> bool:
        """Start the process; return whether this model's answers can be held to a form at all."""
        try:
            usable = self._tokenizer is not None and await self._running() is not None
        except EngineError:
            usable = False
        if not usable:
            log.warning("constraints_unavailable", reason="no use can be made of the model's tokenizer")
            self._tokenizer = None
        return usable

    async def grammar(self, constraint: Constraint, choices: int = 1) -> str:
        """Return the constraint as the engine takes it. Raises InvalidRequest naming the place, ServerOverloaded.

        `choices`: how many sequences of the engine will be held to it.
        """
        if self._tokenizer is None:
            raise UnsupportedParameter(
                f"'{constraint.param}' is not supported with this model's tokenizer. Leave it out.",
                param=constraint.param,
            )
        asked = {"kind": constraint.kind, "text": constraint.text, "states": states_for(choices)}
        key = hashlib.sha256(orjson.dumps(asked)).digest()
        verdict = self._known(key) or await self._in_turn(key, asked)
        if verdict.reason:
            # The names in it are the client's own, of any length.
            param = (constraint.param + verdict.at)[:200]
            raise InvalidRequest(f"Invalid value for '{param}': {verdict.reason}.", param=param)
        return verdict.grammar

    def _known(self, key: bytes) -> _Verdict | None:
        verdict = self._verdicts.get(key)
        if verdict is None or asyncio.get_running_loop().time() >= verdict.until_s:
            return None
        self._verdicts.move_to_end(key)
        return verdict

    def _keep(self, key: bytes, verdict: _Verdict) -> None:
        self._verdicts[key] = verdict
        self._verdicts.move_to_end(key)
        if len(self._verdicts) > _KEPT:
            self._verdicts.popitem(last=False)

    async def _in_turn(self, key: bytes, asked: dict[str, Any]) -> _Verdict:
        try:
            async with asyncio.timeout(WAIT_S):
                await self._turn.acquire()
        except TimeoutError:
            raise ServerOverloaded("Too many new schemas and grammars at once.", retry_after_s=WAIT_S) from None
        # It goes on when the client leaves: to end the process would make the others wait for a new one.
        self._asking = asyncio.create_task(self._asked(key, asked))
        self._asking.add_done_callback(lambda _: self._turn.release())
        return await asyncio.shield(self._asking)

    async def _asked(self, key: bytes, asked: dict[str, Any]) -> _Verdict:
        # Whoever waited may have waited for the same one.
        verdict = self._known(key) or await self._told_twice(asked)
        self._keep(key, verdict)
        return verdict

    async def _told_twice(self, asked: dict[str, Any]) -> _Verdict:
        reason = ""
        # A process may have been ended by somebody else; by the same constraint twice is no chance.
        for _ in range(2):
            process = await self._running()
            try:
                return _Verdict(**await self._told(process, asked, _ANSWER_S))
            except TimeoutError:
                # It was given no processor: nothing is known of what it was asked.
                raise ServerOverloaded("The compiler of grammars is too slow now.", retry_after_s=WAIT_S) from None
            except (OSError, EOFError):
                if process.returncode == -SIGPROF:
                    reason = f"it takes more than {COMPILE_S:.0f} s to compile: make it smaller or simpler"
                    break
                # Out of memory, or of stack; or a fault of the library.
                reason = "it takes too much memory or nests too deeply: make it smaller or simpler"
        log.warning("constraint_refused", kind=asked["kind"], chars=len(asked["text"]), reason=reason)
        return _Verdict(reason=reason, until_s=asyncio.get_running_loop().time() + _DOUBT_S)

    async def _running(self) -> Process:
        if self._closed:
            raise EngineDied
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tokka.engine.vllm.grammar", str(os.getpid())),
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,
                limit=_LINE_BYTES,
            )
            try:
                await self._told(self._process, self._tokenizer, _START_S)
            except (OSError, EOFError):
                raise EngineError("The compiler of grammars could not be started.") from None
        return self._process

    async def _told(self, process: Process, line: dict[str, Any] | None, within_s: float) -> dict[str, Any]:
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
            # What it says next would be taken for the answer to another.
            await self._end()
            raise
        said: dict[str, Any] = orjson.loads(answer)
        return said

    async def close(self) -> None:
        self._closed = True
        await self._end()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            # Of one that ends by itself a signal might take the exit code, which tells why, from whoever waits for it.
            if process.stdout is None or not process.stdout.at_eof():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()


def tokenizer_line(tokenizer: Any, vocab_size: int) -> dict[str, Any] | None:
    """Return what the process needs of a model's tokenizer; None if it is of no kind that it can use."""
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.eos_token_id is None:
        return None
    bare = copy(tokenizer.backend_tokenizer)
    bare.no_padding()
    bare.no_truncation()
    return {
        "tokenizer": bare.to_str(),
        "vocab_size": max(vocab_size, len(tokenizer)),
        "eos": tokenizer.eos_token_id,
    }
