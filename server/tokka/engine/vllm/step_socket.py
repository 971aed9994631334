"""Reads the engine's messages from their socket, without a task and for less CPU than zmq's asyncio socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import zmq

# Numbers: `&` of zmq's enumerations takes as much CPU as reading the events.
_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)


class StepSocket:
    """Calls back when a message arrives, and reads messages without waiting.

    For each message zmq's asyncio socket makes a future, asks for events and schedules itself. That takes as much CPU
    as all other work on a small step. `socket`: zmq's socket, which vLLM still closes.
    """

    def __init__(self, socket: Any) -> None:
        self._socket: Any = zmq.Socket.shadow(socket.underlying)
        self._fd: int = socket.get(zmq.FD)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._close_socket = socket.close
        socket.close = self._close

    def watch(self, on_message: Callable[[], None]) -> None:
        """Call `on_message` in the running loop when messages arrive. It must read until `receive` returns None."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, on_message)
        # The descriptor does not become readable for messages that have arrived before.
        self._loop.call_soon(on_message)

    def receive(self) -> list[Any] | None:
        """Return the parts of the next message, or None if none waits or the socket is not watched."""
        # Reading the events clears all signals so far, so the next message makes the descriptor readable.
        # design 3.1
        if self._loop is None or not self._socket.get(_EVENTS) & _POLLIN:
            return None
        # Nothing blocks from here: all parts of a message arrive together.
        frames: list[Any] = [self._socket.recv(copy=False)]
        while frames[-1].more:
            frames.append(self._socket.recv(copy=False))
        return frames

    def stop(self) -> None:
        """Stop watching. The socket stays open."""
        loop, self._loop = self._loop, None
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self._fd)

    def _close(self, linger: int | None = None) -> None:
        self.stop()
        self._close_socket(linger)
