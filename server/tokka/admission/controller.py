"""Carry out the policy's decisions for requests, each of which waits in its own task."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import NoReturn

import structlog

from tokka.admission.loop_room import LoopTime
from tokka.admission.policy import RETRY_AFTER_S, AdmissionPolicy, Decision, Prediction
from tokka.admission.ticket import Ticket
from tokka.core import RequestRecord
from tokka.engine_facts import EngineStats, ModelInfo
from tokka.errors import Draining, RequestTimeout, TokkaError

log = structlog.get_logger("tokka.admission")

# Seconds between two looks at the engine: several in the time of one answer.
_LOOK_EVERY_S = 0.1
# Seconds between two looks after `_RESTED_LOOKS` looks without an open request. Until then, what the policy has learnt
# of a busy event loop is outdated.
_RESTED_LOOK_EVERY_S = 1.0
_RESTED_LOOKS = 100


class Slot:
    """A running request's place on the engine, until `close`."""

    __slots__ = ("_charged", "_controller", "_is_open", "_ticket", "is_whole")

    def __init__(self, controller: AdmissionController, ticket: Ticket) -> None:
        self._controller = controller
        self._ticket = ticket
        self._charged = 0
        self._is_open = True
        # Whether the engine finished the request by itself.
        self.is_whole = False

    def produced(self, tokens: int, now_s: float) -> None:
        """Record tokens given to the request. The policy hears of the first at once and reads others in the ticket."""
        ticket = self._ticket
        ticket.tokens += tokens
        ticket.last_token_s = now_s
        if ticket.first_token_s is None:
            ticket.first_token_s = now_s
            self._controller.apply(self._controller.policy.begin(ticket, now_s))

    def report(self, record: RequestRecord) -> None:
        """Write the tokens and times so far into the request's record."""
        ticket = self._ticket
        record.completion_tokens = ticket.tokens
        record.first_token_s = ticket.first_token_s
        record.last_token_s = None if ticket.first_token_s is None else ticket.last_token_s

    def charge(self) -> None:
        """Charge the tenant for the tokens since the last charge."""
        if tokens := self._ticket.tokens - self._charged:
            self._charged = self._ticket.tokens
            self._controller.policy.charge(self._ticket, tokens)

    def close(self) -> None:
        """Give the place back. Safe to call twice."""
        if self._is_open:
            self._is_open = False
            self._controller.end(self, self._ticket)


class AdmissionController:
    """Tracks every open request from its arrival to its end."""

    def __init__(
        self,
        policy: AdmissionPolicy,
        *,
        queue_timeout_s: float,
        on_error: Callable[[Prediction, float], None] = lambda _, __: None,
    ) -> None:
        """`on_error` receives the errors of predictions, in seconds."""
        self.policy = policy
        self._on_error = on_error
        self._queue_timeout_s = queue_timeout_s
        self._turns: dict[Ticket, asyncio.Future[None]] = {}
        self._slots: set[Slot] = set()
        self._open_requests = 0
        # How much later than planned the last look came, in seconds: the lag of the event loop.
        self.late_s = 0.0
        # Ends the pause between two looks; None during short pauses.
        self._wake: asyncio.Event | None = None
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_draining(self) -> bool:
        return self._draining

    @property
    def open_requests(self) -> int:
        """Number of running and queued requests."""
        return self._open_requests

    @property
    def waiting_choices(self) -> int:
        return self.policy.queue.choices

    @property
    def backlog_s(self) -> float:
        """Expected seconds until a request behind all queued ones starts; 0 if none is queued."""
        return self.policy.backlog_s(time.monotonic())

    @property
    def limit(self) -> int:
        """Maximum choices that may run at once now."""
        return self.policy.batch.limit

    def resize(self, model: ModelInfo) -> None:
        """Apply the engine's capacity and step costs. Running requests stay."""
        before = self.policy.targets
        self.apply(self.policy.resize(model, time.monotonic()))
        if (now := self.policy.targets) != before:
            log.info("targets", ttft_s=now.ttft_s, tpot_s=now.tpot_s, choices=self.limit)

    async def run(self, stats: Callable[[], EngineStats]) -> NoReturn:
        """Let the policy look at the engine and the queue repeatedly, until cancelled."""
        late_s, looks, last_s, cpu_s = 0.0, 0, time.monotonic(), time.thread_time()
        while True:
            for slot in self._slots:
                slot.charge()
            before_s, last_s = last_s, time.monotonic()
            before_cpu_s, cpu_s = cpu_s, time.thread_time()
            self.late_s = late_s
            busy = (cpu_s - before_cpu_s) / max(last_s - before_s, _LOOK_EVERY_S)
            self.apply(self.policy.observe(stats(), last_s, LoopTime(late_s, busy)))
            while self.policy.errors:
                self._on_error(*self.policy.errors.popleft())
            looks = 0 if self._open_requests else looks + 1
            late_s = await self._pause(is_rested=looks >= _RESTED_LOOKS)

    async def _pause(self, *, is_rested: bool) -> float:
        """Sleep until the next look; return by how many seconds it is late. While `is_rested`, a request ends it."""
        pause_s = _RESTED_LOOK_EVERY_S if is_rested else _LOOK_EVERY_S
        due_s = time.monotonic() + pause_s
        if not is_rested:
            await asyncio.sleep(pause_s)
        else:
            self._wake = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            self._wake = None
        return max(0.0, time.monotonic() - due_s)

    def check_room(self, ticket: Ticket) -> None:
        """Raise Draining or ServerOverloaded if the request has no chance, before any work is spent on it."""
        self.check_open()
        self.policy.check_room(ticket, time.monotonic())

    async def admit(self, ticket: Ticket, timeout_s: float | None = None) -> Slot:
        """Return a slot for a request, waiting for it if necessary. The caller closes it.

        Raises Draining or ServerOverloaded at once or during the wait, and RequestTimeout after `timeout_s` or the
        queue timeout, if that is shorter. A request larger than the limit runs alone; otherwise it could never run.
        """
        self.check_open()
        self._open_requests += 1
        self._idle.clear()
        if self._wake is not None:
            self._wake.set()
        try:
            await self._take_turn(ticket, timeout_s)
        except BaseException:
            self._forget_one()
            raise
        slot = Slot(self, ticket)
        self._slots.add(slot)
        return slot

    def end(self, slot: Slot, ticket: Ticket) -> None:
        """End a slot that its request has closed."""
        self._slots.discard(slot)
        try:
            slot.charge()
            self.apply(self.policy.end(ticket, time.monotonic(), is_whole=slot.is_whole))
        finally:
            self._forget_one()

    def _forget_one(self) -> None:
        self._open_requests -= 1
        if not self._open_requests:
            self._idle.set()

    def check_open(self) -> None:
        """Raise Draining if the server takes no new requests."""
        # design 1.1
        if self._draining:
            raise _draining()

    def start_draining(self) -> None:
        """Refuse new requests from now on. Running and queued requests may finish."""
        self._draining = True

    def refuse_waiting(self) -> None:
        """Refuse all queued requests, because the drain's time is over."""
        for ticket in self.policy.refuse_all():
            self._resolve(ticket, _draining())

    async def idle(self) -> None:
        """Wait until no request is running or queued."""
        await self._idle.wait()

    def apply(self, decisions: list[Decision]) -> None:
        """Wake the requests that the decisions start or refuse."""
        for decision in decisions:
            self._resolve(decision.ticket, decision.refusal)

    async def _take_turn(self, ticket: Ticket, timeout_s: float | None) -> None:
        turn = self._turns[ticket] = asyncio.get_running_loop().create_future()
        limit_s = self._queue_timeout_s if timeout_s is None else min(timeout_s, self._queue_timeout_s)
        try:
            self.apply(self.policy.arrive(ticket, time.monotonic()))
            if not turn.done():
                async with asyncio.timeout(limit_s):
                    await turn
            turn.result()
        except TimeoutError:
            # design 4.6
            self._give_up(ticket, turn)
            after_s = self.policy.retry_after_s(ticket, time.monotonic())
            raise RequestTimeout(
                f"The request waited {limit_s:g} s in the queue and timed out. Send it again later, or give it a "
                "longer timeout.",
                retry_after_s=after_s,
            ) from None
        except asyncio.CancelledError:
            self._give_up(ticket, turn)
            raise
        finally:
            self._turns.pop(ticket, None)

    def _give_up(self, ticket: Ticket, turn: asyncio.Future[None]) -> None:
        """Withdraw a ticket after its owner has left, even if it was admitted at that moment."""
        now_s = time.monotonic()
        if turn.done() and not turn.cancelled() and turn.exception() is None:
            self.apply(self.policy.end(ticket, now_s, is_whole=False))
        else:
            self.apply(self.policy.leave(ticket, now_s))

    def _resolve(self, ticket: Ticket, refusal: TokkaError | None) -> None:
        turn = self._turns.get(ticket)
        if turn is None or turn.done():
            if refusal is None:
                # The ticket's owner was cancelled and has not run since, so the room goes back here.
                self.apply(self.policy.end(ticket, time.monotonic(), is_whole=False))
        elif refusal is None:
            turn.set_result(None)
        else:
            turn.set_exception(refusal)


def _draining() -> Draining:
    return Draining("The server is shutting down. Retry in a few seconds.", retry_after_s=RETRY_AFTER_S)
