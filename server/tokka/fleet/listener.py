"""Where workers join the gateway: accepts connections, checks the handshake, and keeps the workers that joined."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Sequence

import structlog

from tokka.fleet.address import Address
from tokka.fleet.connection import Lost
from tokka.fleet.remote_worker import RemoteWorker
from tokka.fleet.stranger import Stranger
from tokka.protocol.worker.handshake import Hello, Welcome, payload_of, refusal_of

log = structlog.get_logger("tokka.fleet")

# Maximum connections that have not said hello. Beyond it the oldest is closed, so that a flood cannot keep workers out.
_MOST_STRANGERS = 64
# Maximum workers. Each has an open file.
_MOST_WORKERS = 1024
_BACKLOG = 128
# Maximum connections accepted in one turn of the event loop: 1 ms.
_ACCEPTED_AT_ONCE = 8
# Seconds until the next attempt after the system could not give a connection.
_ACCEPT_AGAIN_S = 1.0
# Seconds between two log lines about strangers. Anyone can cause them, at any rate.
_LOG_EVERY_S = 1.0


class Listener:
    """`accepts`: returns why a worker with the right token must not join, None if it may.

    `on_change`: called when a worker has joined, and after each change of its state.
    """

    def __init__(
        self,
        token: str,
        context: ssl.SSLContext | None,
        accepts: Callable[[Hello], str | None],
        on_change: Callable[[RemoteWorker], None],
    ) -> None:
        self._token = token
        self._context = context
        self._accepts = accepts
        self._on_change = on_change
        self._listeners: list[socket.socket] = []
        # The oldest first.
        self._strangers: dict[Stranger, None] = {}
        self._next_log_s = 0.0
        self._not_logged = 0
        # By the worker's own id.
        self.workers: dict[str, RemoteWorker] = {}

    def open(self, listeners: Sequence[socket.socket]) -> None:
        """Accept connections on bound sockets. `close` closes them."""
        for listener in listeners:
            listener.setblocking(False)
            listener.listen(_BACKLOG)
            self._listeners.append(listener)
            self._watch(listener)

    async def close(self) -> None:
        """Close the sockets and every connection. The workers look for a gateway for a while."""
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        self._listeners.clear()
        connections = [stranger.connection for stranger in self._strangers]
        connections += [worker.connection for worker in self.workers.values()]
        for connection in connections:
            connection.abort("the gateway stops")
        await asyncio.gather(*(connection.wait_closed() for connection in connections))

    def _watch(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accept a few connections. The others wait for the next turns of the event loop."""
        # Not by the loop's own server: with it, connections in their TLS handshake would have no bound.
        loop = asyncio.get_running_loop()
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                accepted, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # No open files, or no memory. The listener stays readable, so a new attempt now would spin.
                log.error("cannot_accept_workers", reason=error.strerror)
                loop.remove_reader(listener)
                loop.call_later(_ACCEPT_AGAIN_S, self._watch, listener)
                return
            self._meet(accepted, str(Address(*address[:2])))

    def _meet(self, accepted: socket.socket, peer: str) -> None:
        accepted.setblocking(False)
        if len(self._strangers) >= _MOST_STRANGERS:
            oldest = next(iter(self._strangers))
            oldest.turn_away(f"more than {_MOST_STRANGERS} connections have not said hello")
        stranger = Stranger(accepted, peer, self._context, self._admit, self._over)
        self._strangers[stranger] = None

    def _over(self, stranger: Stranger, reason: str | None) -> None:
        self._strangers.pop(stranger, None)
        if reason is None:
            return
        self._not_logged += 1
        if (now_s := time.monotonic()) >= self._next_log_s:
            others, self._not_logged = self._not_logged - 1, 0
            self._next_log_s = now_s + _LOG_EVERY_S
            log.warning("worker_turned_away", peer=stranger.peer, reason=reason, others=others)

    def _admit(self, stranger: Stranger, hello: Hello) -> str | None:
        """Let a worker join; return why not if it must not."""
        if (reason := refusal_of(hello, self._token) or self._accepts(hello)) is not None:
            return reason
        earlier = self.workers.get(hello.worker)
        if earlier is not None:
            # The worker has lost that connection, and this side has not noticed.
            earlier.connection.abort("the worker joined again")
        elif len(self.workers) >= _MOST_WORKERS:
            return f"the gateway has {_MOST_WORKERS} workers, its maximum"
        connection = stranger.connection
        connection.send_payload(payload_of(Welcome()))
        worker = RemoteWorker(hello, connection, self._on_change)
        connection.on_lost = lambda lost: self._lost(worker, lost)
        self.workers[hello.worker] = worker
        about = {"worker": hello.worker, "model": hello.model, "node": hello.node, "pid": hello.pid}
        log.info("worker_joined", **about, version=hello.version, peer=stranger.peer)
        self._on_change(worker)
        return None

    def _lost(self, worker: RemoteWorker, lost: Lost) -> None:
        if self.workers.get(worker.hello.worker) is worker:
            del self.workers[worker.hello.worker]
        worker.lost(lost)
