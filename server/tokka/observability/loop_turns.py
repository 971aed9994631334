"""Measure how long single turns of the event loop last. All other requests wait during a turn.

Wall time means little on a shared machine, so a turn is measured in CPU time of the loop's thread. Other threads that
hold the interpreter's lock also delay the loop. Their time is measured separately.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

log = structlog.get_logger("tokka.loop")
_libc = ctypes.CDLL(None)

# Seconds between two looks of the thread while the loop is busy. The error of a measurement: a turn appears shorter by
# at most this.
_LOOK_EVERY_S = 0.02
# Seconds of CPU that the loop uses between two looks. Until then it counts as idle, and the thread sleeps.
_IDLE_S = 0.001
_ABSOLUTE = 1  # TIMER_ABSTIME
# Seconds of CPU from which a turn is logged. By then it has delayed probes and other streams.
_LOGGED_S = 0.25


@dataclass(frozen=True, slots=True)
class Turn:
    """Seconds that a new event waited for the loop.

    `cpu_s`: CPU time of the loop's thread, for other events. `threads_s`: time in which other threads computed and the
    loop got no CPU. It is an upper bound of the time that they held the interpreter's lock.
    """

    cpu_s: float
    threads_s: float


class LoopTurns:
    """Post markers to the running loop while it is busy, and measure how long each waits.

    `observe` is called in the loop's thread, once for each marker.
    """

    def __init__(self, observe: Callable[[Turn], None]) -> None:
        self._observe = observe
        self.longest_s = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clock = 0
        self._marker_is_out = False
        self._ends = False
        self._thread = threading.Thread(target=self._run, name="loop-turns", daemon=True)

    def start(self) -> None:
        """Start to measure the running loop. Earlier turns do not count; later calls do nothing."""
        if self._loop is not None:
            return
        self._loop = asyncio.get_running_loop()
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self._thread.start()

    def close(self) -> None:
        """End the thread. Does not wait for it."""
        self._ends = True

    def _run(self) -> None:
        cpu_s = time.clock_gettime(self._clock)
        while not self._ends:
            # Looks at fixed times would take a third of an idle server's CPU.
            _sleep_until(self._clock, cpu_s + _IDLE_S)
            before_s, cpu_s = cpu_s, time.clock_gettime(self._clock)
            if cpu_s - before_s >= _IDLE_S and not self._marker_is_out:
                self._marker_is_out = True
                self._post(cpu_s)
            time.sleep(_LOOK_EVERY_S)

    def _post(self, cpu_s: float) -> None:
        assert self._loop is not None
        process_s, wall_s = time.process_time(), time.monotonic()

        def come_up() -> None:
            self._marker_is_out = False
            used_s = time.thread_time() - cpu_s
            others_s = time.process_time() - process_s - used_s
            waited_s = time.monotonic() - wall_s - used_s
            self._note(Turn(max(0.0, used_s), max(0.0, min(others_s, waited_s))))

        try:
            self._loop.call_soon_threadsafe(come_up)
        except RuntimeError:
            # The loop was closed.
            self._ends = True

    def _note(self, turn: Turn) -> None:
        self.longest_s = max(self.longest_s, turn.cpu_s)
        if turn.cpu_s > _LOGGED_S:
            log.warning("event_loop_held", cpu_s=round(turn.cpu_s, 3))
        self._observe(turn)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _sleep_until(clock: int, time_s: float) -> None:
    """Sleep until another thread's CPU clock reaches a time. Return at once if the kernel cannot do that."""
    due = _Timespec(int(time_s), int(time_s % 1 * 1e9))
    # Python has no function for this. Linux checks the time at each tick of the scheduler, every 1 to 10 ms.
    _libc.clock_nanosleep(clock, _ABSOLUTE, ctypes.byref(due), None)
