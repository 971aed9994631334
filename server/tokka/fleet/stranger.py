"""A connection to the gateway until its hello: TLS, the time it may take, and the answer."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

from tokka.fleet.connection import Connection, Lost
from tokka.protocol.worker.frames import BrokenFrame
from tokka.protocol.worker.handshake import Hello, Refusal, hello_of, payload_of

# Seconds for TLS and hello together. A worker needs milliseconds.
HANDSHAKE_S = 5.0


class Stranger:
    """`admit`: lets a worker join and returns None, or returns why it must not; after None, the connection is its own.

    `on_over`: called once, when this is no stranger any more, with the reason if it was turned away.
    """

    def __init__(
        self,
        accepted: socket.socket,
        peer: str,
        context: ssl.SSLContext | None,
        admit: Callable[[Stranger, Hello], str | None],
        on_over: Callable[[Stranger, str | None], None],
    ) -> None:
        # Its address, for logs.
        self.peer = peer
        self._socket = accepted
        self._admit = admit
        self._on_over = on_over
        self._is_over = False
        self.connection = Connection(self._on_payload, self._on_lost)
        self._timer = asyncio.get_running_loop().call_later(
            HANDSHAKE_S, self.turn_away, f"no hello within {HANDSHAKE_S:g} s"
        )
        self._connecting = asyncio.create_task(self._connect(context))
        self._connecting.add_done_callback(self._connected)

    def turn_away(self, reason: str) -> None:
        """Close the connection without a word."""
        self._over(reason)
        self._connecting.cancel()
        self.connection.abort(reason)

    async def _connect(self, context: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        if context is None:
            await loop.connect_accepted_socket(lambda: self.connection, self._socket)
            return
        await loop.connect_accepted_socket(
            lambda: self.connection,
            self._socket,
            ssl=context,
            ssl_handshake_timeout=HANDSHAKE_S,
            ssl_shutdown_timeout=HANDSHAKE_S,
        )

    def _connected(self, connecting: asyncio.Task[None]) -> None:
        error = None if connecting.cancelled() else connecting.exception()
        if connecting.cancelled() or error is not None:
            self._socket.close()
            self._over(f"no TLS: {str(error) or type(error).__name__}")
            self.connection.connection_lost(None)

    def _on_payload(self, payload: bytearray) -> None:
        try:
            hello = hello_of(payload)
        except BrokenFrame as error:
            # Another program, which would not understand an answer.
            self.turn_away(str(error))
            return
        if (reason := self._admit(self, hello)) is None:
            self._over(None)
        else:
            self._over(reason)
            self.connection.send_payload(payload_of(Refusal(reason)))
            self.connection.close(reason)

    def _on_lost(self, lost: Lost) -> None:
        self._over(lost.reason)

    def _over(self, reason: str | None) -> None:
        if not self._is_over:
            self._is_over = True
            self._timer.cancel()
            self._on_over(self, reason)
