"""An admitted request: its run on the engine, and the release of all that it holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from tokka.admission.controller import Slot
from tokka.admission.suspects import Subject, Trial
from tokka.core import Finished, GenerateRequest, Outcome, RequestRecord, Usage
from tokka.dispatch.holdings import Holdings
from tokka.dispatch.meter import Meter, RepeatMeter
from tokka.dispatch.prepared import PreparedRequest, left_s
from tokka.dispatch.repeat import next_request
from tokka.engine.base import Sink
from tokka.engine.generation.resume import can_resume
from tokka.errors import (
    EngineDied,
    EngineLost,
    InvalidRequest,
    RequestTimeout,
    SlowReader,
    TenantHeld,
    TokkaError,
)


@dataclass(eq=False, slots=True)
class Generation:
    """An admitted request. It owns the admission slot and releases it."""

    record: RequestRecord
    subject: Subject
    holdings: Holdings
    slot: Slot
    # None once the request has survived the trial.
    trial: Trial | None
    deadline: float | None
    # None once the request runs: a long prompt takes a megabyte.
    prepared: PreparedRequest | None
    choices: int
    # The last death that the quarantine has heard of.
    noted: EngineDied | None = None

    async def run(self, sink: Sink) -> None:
        """Generate: `Accepted`, the events of every choice, `Finished`. Call it once. Cancelling it stops the work.

        At the deadline, ends the generation with the text so far, or raises RequestTimeout if it makes vectors. Raises
        EngineError after the events before it.
        """
        record, prepared = self.record, self.prepared
        assert prepared is not None
        self.prepared = None
        makes_vectors = prepared.accepted.dimensions > 0
        record.prompt_tokens = prepared.prompt_tokens
        meter = self._meter(sink, prepared.request)
        try:
            await sink.give(prepared.accepted)
            running = prepared.run(meter)
            if isinstance(meter, RepeatMeter):
                running = self._outlive(running, prepared.request, meter)
            del prepared
            try:
                async with asyncio.timeout(left_s(self._first_deadline())) as limit:
                    if self.trial is not None:
                        meter.on_token = self._watch_trial(self.trial, meter, limit)
                    usage = await running
            finally:
                self.slot.report(record)
        except TimeoutError:
            if self.trial is not None and left_s(self.deadline) != 0:
                ended = self.trial.error()
                record.outcome = _outcome_of(ended)
                raise ended from None
            record.outcome = "timeout"
            if makes_vectors:
                raise RequestTimeout(
                    "The request timed out before all vectors were ready. Send fewer inputs."
                ) from None
            for event in meter.cut_short():
                await sink.give(event)
            usage = Usage(record.prompt_tokens, record.completion_tokens)
        except Exception as error:
            record.outcome = _outcome_of(error)
            self._note(error)
            raise
        else:
            self._complete(usage, meter.outcome)
        await sink.give(Finished(usage))

    async def aclose(self) -> None:
        """Release everything. Call it after `run` has ended, or instead of `run`. Safe to call twice."""
        # Without an outcome, its client closed it before the end.
        self.record.outcome = self.record.outcome or "aborted"
        self.holdings.release()

    def _meter(self, sink: Sink, request: GenerateRequest) -> Meter:
        if self.holdings.replicas.is_one:
            return Meter(sink, self.slot, self.choices)
        return RepeatMeter(sink, self.slot, self.choices, keeps_tokens=can_resume(request))

    async def _outlive(
        self, running: Coroutine[Any, Any, Usage], request: GenerateRequest, meter: RepeatMeter
    ) -> Usage:
        """Run the request, on another replica if its own is gone. Raises as `Prepared.run` does."""
        repeats = 0
        while True:
            try:
                return await running
            except (EngineDied, EngineLost) as error:
                others = self.holdings.replicas.others(self.holdings.lease.replica)
                following = None if self.trial else next_request(request, meter, error, repeats, others)
                if following is None:
                    raise
                self._note(error)
                try:
                    lease = self.holdings.take_replica(following)
                    lease.replica.prefixes.add(lease.prefix)
                    running = (await PreparedRequest.of(following, self.holdings, self.deadline)).run(meter)
                except TokkaError:
                    # The client has lost its replica. That no other one could be had is not its business.
                    raise error from None
            repeats += 1

    def _note(self, error: Exception) -> None:
        """Tell the quarantine if the error is an engine's death."""
        if isinstance(error, EngineDied) and error is not self.noted:
            self.noted = error
            replica = self.holdings.lease.replica
            self.holdings.quarantine.ran_at_death(self.subject, replica.number, replica.served_s, time.monotonic())

    def _first_deadline(self) -> float | None:
        """Return the deadline of the request's first token: its own, or the end of its trial."""
        if self.trial is None:
            return self.deadline
        return self.trial.until_s if self.deadline is None else min(self.deadline, self.trial.until_s)

    def _watch_trial(self, trial: Trial, meter: Meter, limit: asyncio.Timeout) -> Callable[[float], None]:
        """Return a callback for each token of a request on trial. It ends the trial when the request has survived."""
        loop = asyncio.get_running_loop()
        is_first = True

        def on_token(now_s: float) -> None:
            nonlocal is_first
            if is_first and not trial.must_end:
                left = left_s(self.deadline)
                limit.reschedule(None if left is None else loop.time() + left)
            is_first = False
            if now_s >= trial.until_s and not trial.must_end:
                self.holdings.quarantine.survived(trial)
                self.trial = meter.on_token = None

        return on_token

    def _complete(self, usage: Usage, outcome: Outcome) -> None:
        record, quarantine = self.record, self.holdings.quarantine
        record.cached_tokens = usage.cached_tokens
        record.completion_tokens = usage.completion_tokens
        record.outcome = outcome
        self.slot.is_whole = True
        lease = self.holdings.lease
        lease.replica.prefixes.correct(lease.prefix, usage.cached_tokens / max(1, usage.prompt_tokens))
        quarantine.completed(self.subject, time.monotonic())
        if self.trial is not None:
            quarantine.survived(self.trial)


def _outcome_of(error: Exception) -> Outcome:
    match error:
        case InvalidRequest():
            return "invalid"
        case SlowReader():
            return "aborted"
        case TenantHeld():
            return "rejected"
    return "error"
