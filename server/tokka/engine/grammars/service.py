"""Turns a request's constraint into the engine's grammar, in separate processes that a constraint may crash."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from typing import Any

import orjson
import structlog

from tokka.core import Constraint
from tokka.engine.grammars.compile_queue import WAIT_S, CompileQueue
from tokka.engine.grammars.compiler_process import CompilerProcess
from tokka.engine.grammars.limits import states_for, with_tag
from tokka.engine.grammars.verdicts import Verdict, Verdicts
from tokka.engine.host import available_cores
from tokka.errors import EngineError, InvalidRequest, ServerOverloaded, UnsupportedParameter

log = structlog.get_logger("tokka.engine")

_TAG_CHARS = 16


@dataclass(slots=True, eq=False)
class _Job:
    """One constraint to compile, for all requests of its tenant that wait for it."""

    tenant: str
    key: bytes
    question: dict[str, Any]
    started: asyncio.Event = field(default_factory=asyncio.Event)
    verdict: asyncio.Future[Verdict] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    waiting: int = 0


class GrammarService:
    """The processes that compile constraints, the queue in front of them, and a cache of their verdicts."""

    def __init__(self, tokenizer: dict[str, Any] | None, processes: int | None = None) -> None:
        """`tokenizer`: from `tokenizer_line`. `processes`: two by default, one on a machine with one core."""
        count = processes or min(2, len(available_cores()))
        self._idle = [CompilerProcess(tokenizer) for _ in range(count)] if tokenizer else []
        self._processes = tuple(self._idle)
        self._queue: CompileQueue[_Job] = CompileQueue(count)
        self._jobs: dict[tuple[str, bytes], _Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._verdicts = Verdicts()
        # Private to this object, which lives as long as the engine's cache.
        self._tag_key = secrets.token_bytes(32)
        self._usable = tokenizer is not None

    async def start(self) -> bool:
        """Start the processes; return whether this model supports constraints."""
        problem = None if self._usable else "the model's tokenizer cannot be used"
        try:
            await asyncio.gather(*(process.start() for process in self._processes))
        except EngineError as error:
            problem = error.message
        # vllm/design 1.9.1
        if problem is not None:
            self._usable = False
            log.warning("constraints_unavailable", reason=problem)
        return self._usable

    async def grammar(self, constraint: Constraint, tenant: str = "", choices: int = 1) -> str:
        """Return the constraint as a grammar for the engine. Raises InvalidRequest naming the place, ServerOverloaded.

        `choices`: number of the engine's sequences that follow the grammar.
        """
        # vllm/design 2.3.4
        if not self._usable:
            raise UnsupportedParameter(
                f"'{constraint.param}' is not supported: this server cannot compile constraints. Leave it out.",
                param=constraint.param,
            )
        question = {"kind": constraint.kind, "text": constraint.text, "states": states_for(choices)}
        key = hashlib.sha256(orjson.dumps(question)).digest()
        verdict = self._verdicts.find(tenant, key, _now_s()) or await self._compiled(tenant, key, question)
        if verdict.reason:
            # The path holds the client's own names, which have any length.
            param = (constraint.param + verdict.at)[:200]
            raise InvalidRequest(f"Invalid value for '{param}': {verdict.reason}.", param=param)
        return verdict.grammar

    async def close(self) -> None:
        for process in self._processes:
            await process.close()
        # Queued jobs start now and fail at once.
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _compiled(self, tenant: str, key: bytes, question: dict[str, Any]) -> Verdict:
        job = self._jobs.get((tenant, key)) or self._queued(tenant, key, question)
        job.waiting += 1
        try:
            async with asyncio.timeout(WAIT_S):
                await job.started.wait()
        except TimeoutError:
            # vllm/design 2.3.5
            raise _overloaded(self._queue.wait_s(tenant, _now_s())) from None
        finally:
            job.waiting -= 1
            if not (job.waiting or job.started.is_set()):
                self._queue.remove(tenant, job)
                del self._jobs[tenant, key]
        # A started compilation continues when its client leaves: ending the process would delay the others.
        return await asyncio.shield(job.verdict)

    def _queued(self, tenant: str, key: bytes, question: dict[str, Any]) -> _Job:
        """Queue a new job. Raises ServerOverloaded if it would wait for too long."""
        # vllm/design 2.3.5
        if (wait_s := self._queue.refused_for_s(tenant, _now_s())) is not None:
            raise _overloaded(wait_s)
        job = self._jobs[tenant, key] = _Job(tenant, key, question)
        self._queue.add(tenant, job)
        self._start_jobs()
        return job

    def _start_jobs(self) -> None:
        while (job := self._queue.start(_now_s())) is not None:
            job.started.set()
            task = asyncio.create_task(self._run(job, self._idle.pop()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, job: _Job, process: CompilerProcess) -> None:
        began_s, used_s = _now_s(), process.cpu_s
        try:
            await self._decide(job, process)
            # If the constraint ended the process, restart it now. Its tenant pays for that, and no other tenant waits.
            with contextlib.suppress(EngineError):
                await process.start()
        finally:
            now_s = _now_s()
            self._idle.append(process)
            self._queue.finish(job.tenant, cpu_s=process.cpu_s - used_s, held_s=now_s - began_s, now_s=now_s)
            self._start_jobs()

    async def _decide(self, job: _Job, process: CompilerProcess) -> None:
        try:
            verdict = await process.compile(job.question)
            if verdict.grammar:
                verdict = Verdict(with_tag(verdict.grammar, self._tag(job.tenant)))
            self._verdicts.keep(job.tenant, job.key, verdict)
            job.verdict.set_result(verdict)
        except Exception as error:
            job.verdict.set_exception(error)
            # Mark the error as retrieved: all clients of the job may have left.
            job.verdict.exception()
        finally:
            del self._jobs[job.tenant, job.key]

    def _tag(self, tenant: str) -> str:
        """Return the tag that keeps a tenant's grammars apart in the engine's own cache."""
        return hmac.new(self._tag_key, tenant.encode(), hashlib.sha256).hexdigest()[:_TAG_CHARS]


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _overloaded(wait_s: float) -> ServerOverloaded:
    return ServerOverloaded(
        f"Too many new schemas and grammars wait to be compiled. Retry in {max(1, round(wait_s))} s.",
        retry_after_s=wait_s,
    )
