"""A worker that has joined, as the gateway sees it. ADR 25 has the table of its states."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Literal

import structlog

from tokka.engine.remote.engine import RemoteEngine
from tokka.engine_facts import ModelInfo
from tokka.errors import Draining, EngineDied, EngineLost, WorkerDied
from tokka.fleet.connection import Connection, Lost
from tokka.protocol.worker import messages
from tokka.protocol.worker.frames import MAX_BYTES
from tokka.protocol.worker.handshake import Hello

log = structlog.get_logger("tokka.fleet")

State = Literal["starting", "ready", "draining", "gone"]
TRANSITIONS: dict[State, set[State]] = {
    # Its engine starts, for the first time or again.
    "starting": {"ready", "draining", "gone"},
    "ready": {"starting", "draining", "gone"},
    # It finishes its open requests.
    "draining": {"gone"},
    # Its connection has ended. If it joins again, it is another object.
    "gone": set(),
}
# Maximum seconds of silence from a worker whose engine is ready. With the second between two looks, that is 5 s.
_SILENCE_S = 4.0
# The same while its engine starts: libraries hold up the worker's event loop, and it has no requests to lose.
_SILENCE_AT_START_S = 60.0


class RemoteWorker:
    """One connection of a worker, and its engine. `on_change` is called with it after each change of its state.

    Implements `engine.remote.Link`.
    """

    def __init__(self, hello: Hello, connection: Connection, on_change: Callable[[RemoteWorker], None]) -> None:
        self.hello = hello
        self.state: State = "starting"
        # The last phase of a start, and a detail for people.
        self.phase, self.detail = "connected", ""
        self.engine = RemoteEngine(self)
        # Of the engine that was ready last.
        self.info: ModelInfo | None = None
        # How many engines the worker has started, this one included. 0: none was ready yet.
        self.engine_number = 0
        self.connection = connection
        self._on_change = on_change
        self._numbers = itertools.count(1)
        self._goodbye: str | None = None
        connection.on_payload = self._on_payload
        connection.allow_frames(MAX_BYTES)
        connection.watch(self._look)

    # -- Link

    def next_number(self) -> int:
        return next(self._numbers)

    def send(self, message: messages.Message) -> None:
        self.connection.send(message)

    # -- for the gateway

    def drain(self) -> None:
        """Ask the worker to finish its open requests and end."""
        self.send(messages.Drain())

    def lost(self, lost: Lost) -> None:
        """The connection has ended."""
        log.info("worker_gone", worker=self.hello.worker, reason=self._goodbye or lost.reason)
        if self._goodbye is None and lost.by_peer:
            # Its process has ended. A request may have been the cause, as with an engine's death.
            self.engine.end(WorkerDied(), "the worker's process ended")
        else:
            self.engine.end(EngineLost(), self._goodbye or f"the worker was lost: {lost.reason}")
        self._move("gone")

    def _look(self, silent_s: float) -> None:
        if silent_s > (_SILENCE_AT_START_S if self.state == "starting" else _SILENCE_S):
            self.connection.abort(f"the worker was silent for {silent_s:.1f} s")
        else:
            self.send(messages.Ping())

    # -- messages

    def _on_payload(self, payload: bytearray) -> None:
        for message in messages.from_worker(payload):
            if type(message) in _OWN:
                self._take(message)
            else:
                self.engine.receive(message)

    def _take(self, message: Any) -> None:
        match message:
            case messages.Stats(stats):
                self.engine.note(stats)
            case messages.Phase(phase=phase, detail=detail):
                self.phase, self.detail = phase, detail
                if self.state == "ready":
                    self._restart(detail or phase)
                self.engine.report(phase, detail)
                self._on_change(self)
            case messages.Ready(engine, info):
                if self.engine_number not in (0, engine) and self.state == "ready":
                    self._restart("the engine died")
                self.engine_number = engine
                self.phase, self.detail = "ready", ""
                self.info = info
                self.engine.ready(info)
                if self.state == "starting":
                    self._move("ready")
            case messages.Draining():
                self.engine.refuse(Draining("The worker is draining and accepts no new requests."))
                self.send(messages.NoMore())
                if self.state != "draining":
                    self._move("draining")
            case messages.Bye(reason):
                self._goodbye = reason

    def _restart(self, death: str) -> None:
        """The worker's engine has died. The worker starts another one."""
        self.engine.end(EngineDied(), death)
        self.engine = RemoteEngine(self)
        self._move("starting")

    def _move(self, state: State) -> None:
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"a worker cannot go from {self.state} to {state}")
        self.state = state
        log.info("worker_state", worker=self.hello.worker, model=self.hello.model, state=state)
        self._on_change(self)


# The messages that are not about one request.
_OWN = frozenset({messages.Stats, messages.Phase, messages.Ready, messages.Draining, messages.Bye, messages.Pong})
