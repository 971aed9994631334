"""The spine: admit a request, start it on the engine, count what it does, release what it held."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from tokka.admission.controller import AdmissionController
from tokka.admission.quarantine import Quarantine
from tokka.core import (
    Accepted,
    ChoiceDone,
    Event,
    Finished,
    GenerateRequest,
    Outcome,
    Prompt,
    PromptEcho,
    RequestRecord,
    TextDelta,
    Usage,
)
from tokka.engine.base import Engine
from tokka.engine.supervisor import Supervisor
from tokka.errors import EngineDied, InvalidRequest, ModelNotFound, Quarantined, RequestTimeout


class Generation:
    """An admitted request: owns its admission, its stream of events, and the duty to release both."""

    def __init__(self, events: AsyncGenerator[Event, None], resources: AsyncExitStack) -> None:
        self._events = events
        self._resources = resources

    def __aiter__(self) -> AsyncGenerator[Event, None]:
        return self._events

    async def aclose(self) -> None:
        """Stop the work if it is not finished. Safe to call twice, and when nothing was ever read."""
        await self._resources.aclose()


class Dispatcher:
    def __init__(
        self,
        supervisor: Supervisor,
        admission: AdmissionController,
        quarantine: Quarantine,
        names: Sequence[str],
        *,
        request_timeout_s: float | None = None,
        share_prefix_cache: bool = True,
    ) -> None:
        self._supervisor = supervisor
        self._admission = admission
        self._quarantine = quarantine
        self._names = tuple(names)
        self._request_timeout_s = request_timeout_s
        # Of this process alone: salts of two runs have nothing to do with each other.
        self._salt_key = None if share_prefix_cache else secrets.token_bytes(32)

    def check_model(self, name: str | None) -> None:
        """Raise ModelNotFound unless this is one of the served names; None stands for the only one there is."""
        if name is not None and name not in self._names:
            raise ModelNotFound(
                f"The model `{name[:128]}` does not exist. Served here: {', '.join(self._names)}.", param="model"
            )

    async def open(self, request: GenerateRequest, record: RequestRecord) -> Generation:
        """Admit the request and start it. Raises before any byte is sent, or returns a running generation."""
        self.check_model(request.model)
        record.model = request.model
        self._admission.check_open()
        self._check_quarantine(request)
        # Nobody waits in turn for an engine that is not there.
        self._supervisor.engine()
        deadline = self._deadline(request, record.arrived_s)
        async with AsyncExitStack() as stack:
            admission = self._admission.admit(len(request.prompts) * request.sampling.n, _left_s(deadline))
            await stack.enter_async_context(admission)
            record.queue_s = time.monotonic() - record.arrived_s
            engine = self._supervisor.engine()
            run = _Run(request, record, engine_number=self._supervisor.starts, deadline=deadline)
            events = engine.generate(replace(request, cache_salt=self._salt(request, record)))
            stack.push_async_callback(events.aclose)
            accepted = await self._accepted(events, run)
            metered = self._metered(accepted, events, run)
            stack.push_async_callback(metered.aclose)
            stack.callback(_settle, record)
            return Generation(metered, stack.pop_all())

    async def tokenize(self, model: str | None, prompt: Prompt) -> list[int]:
        return await self._engine_for(model).tokenize(prompt)

    async def detokenize(self, model: str | None, token_ids: Sequence[int]) -> str:
        return await self._engine_for(model).detokenize(token_ids)

    def _engine_for(self, model: str | None) -> Engine:
        self.check_model(model)
        return self._supervisor.engine()

    def _deadline(self, request: GenerateRequest, arrived_s: float) -> float | None:
        limits = [limit for limit in (request.timeout_s, self._request_timeout_s) if limit is not None]
        return arrived_s + min(limits) if limits else None

    def _check_quarantine(self, request: GenerateRequest) -> None:
        if left_s := self._quarantine.holds_for_s(request, time.monotonic()):
            raise Quarantined(
                "This request was running each time when the engine died, so it is refused for another "
                f"{math.ceil(left_s)} s. Change it, or ask the operator to look at the server's log.",
                should_retry=False,
            )

    def _salt(self, request: GenerateRequest, record: RequestRecord) -> str | None:
        """Return what keeps a tenant's cached prompts to itself; a client's own salt divides them further."""
        if self._salt_key is None:
            return request.cache_salt
        text = f"{record.tenant}\0{request.cache_salt or ''}"
        return hmac.new(self._salt_key, text.encode(), hashlib.sha256).hexdigest()

    async def _accepted(self, events: AsyncGenerator[Event, None], run: _Run) -> Accepted:
        try:
            accepted = await _next(events, run.deadline)
        except TimeoutError:
            raise RequestTimeout("The request's time was over before the engine had taken it.") from None
        if not isinstance(accepted, Accepted):
            raise RuntimeError(f"the engine began with {type(accepted).__name__} instead of Accepted")
        return accepted

    async def _metered(
        self, accepted: Accepted, events: AsyncGenerator[Event, None], run: _Run
    ) -> AsyncGenerator[Event, None]:
        """Pass the events on, count them, and end the generation at its deadline with the answer so far."""
        request, record = run.request, run.record
        record.prompt_tokens = sum(map(len, accepted.prompt_token_ids))
        unfinished: dict[int, TextDelta | None] = dict.fromkeys(range(len(request.prompts) * request.sampling.n))
        outcome: Outcome = "stop"
        yield accepted
        try:
            while True:
                event = await _next(events, run.deadline)
                match event:
                    case TextDelta():
                        record.last_token_s = time.monotonic()
                        record.first_token_s = record.first_token_s or record.last_token_s
                        record.completion_tokens += len(event.token_ids)
                        unfinished[event.index] = event
                    case ChoiceDone():
                        unfinished.pop(event.index, None)
                        outcome = "length" if event.finish_reason == "length" else outcome
                    case Finished(usage):
                        record.cached_tokens = usage.cached_tokens
                        record.completion_tokens = usage.completion_tokens
                        record.outcome = outcome
                        self._quarantine.completed(request)
                        yield event
                        return
                    case Accepted() | PromptEcho():
                        pass
                yield event
        except TimeoutError:
            await events.aclose()
            record.outcome = "timeout"
            for event in _cut_short(unfinished):
                yield event
            yield Finished(Usage(record.prompt_tokens, record.completion_tokens))
        except InvalidRequest:
            record.outcome = "invalid"
            raise
        except EngineDied:
            record.outcome = "error"
            self._quarantine.ran_at_death(request, run.engine_number, time.monotonic())
            raise
        except Exception:
            record.outcome = "error"
            raise


@dataclass(frozen=True, slots=True)
class _Run:
    """One request on one engine."""

    request: GenerateRequest
    record: RequestRecord
    engine_number: int
    deadline: float | None


def _left_s(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _cut_short(unfinished: dict[int, TextDelta | None]) -> Iterator[Event]:
    """End what is not finished: with what was kept back, and the reason."""
    for index, last in sorted(unfinished.items(), key=lambda entry: entry[0]):
        if last is not None and (last.held or last.held_logprobs):
            yield TextDelta(index, last.held, (), last.held_logprobs or None)
        yield ChoiceDone(index, "length", "timeout")


async def _next(events: AsyncGenerator[Event, None], deadline: float | None) -> Event:
    if deadline is None:
        return await anext(events)
    # Only around the wait: a timeout that spanned our own `yield` would cancel the consumer.
    async with asyncio.timeout(_left_s(deadline)):
        return await anext(events)


def _settle(record: RequestRecord) -> None:
    """A generation closed before its end was given up by its client."""
    record.outcome = record.outcome or "aborted"
