"""Writes log lines without ever making anybody wait: nobody may be reading them, or the disk may be full."""

from __future__ import annotations

import contextlib
import io
import os
import queue
import select
import threading

import structlog

log = structlog.get_logger("tokka.log")

_MAX_QUEUED_BYTES = 8 << 20
_MAX_WRITE_BYTES = 64 << 10
# How long lines gather after a write.
_GATHER_S = 0.03


class LineWriter(io.TextIOBase):
    """A text file that takes whole lines into a bounded queue; one thread of its own writes them to `fd`, in order.

    Lines that find no room, or that the file does not take, are dropped and counted; once lines can be written again,
    one of them says how many are missing.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._queued_bytes = 0
        self._dropped = 0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-lines", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines lost so far."""
        return self._dropped

    def write(self, text: str) -> int:
        """Take one line, or several whole ones. Never blocks."""
        line = text.encode(errors="replace")
        with self._lock:
            if self._queued_bytes + len(line) > _MAX_QUEUED_BYTES:
                self._dropped += 1
                return len(text)
            self._queued_bytes += len(line)
        self._lines.put(line)
        return len(text)

    def finish(self, within_s: float = 1.0) -> None:
        """Write what is queued, if that is possible in this time."""
        self._ends.set()
        self._lines.put(None)
        self._thread.join(within_s)

    def _run(self) -> None:
        reported = 0
        while True:
            lines, is_last = self._take()
            if lines and not self._wrote(b"".join(lines)):
                with self._lock:
                    self._dropped += len(lines)
            elif self._dropped > reported:
                reported, lost = self._dropped, self._dropped - reported
                log.warning("log_lines_dropped", count=lost)
            if is_last:
                return
            # Waking this thread for each line costs the one that logs more than all else about the line.
            self._ends.wait(_GATHER_S)

    def _take(self) -> tuple[list[bytes], bool]:
        """Return the lines of one write, waiting for the first; and whether they are the last."""
        lines: list[bytes] = []
        size = 0
        with contextlib.suppress(queue.Empty):
            while size < _MAX_WRITE_BYTES:
                line = self._lines.get(block=not lines)
                if line is None:
                    return lines, True
                lines.append(line)
                size += len(line)
                with self._lock:
                    self._queued_bytes -= len(line)
        return lines, False

    def _wrote(self, data: bytes) -> bool:
        try:
            while data:
                try:
                    data = data[os.write(self._fd, data) :]
                except BlockingIOError:
                    # A terminal or pipe that another process has made non-blocking.
                    select.select([], [self._fd], [])
        except OSError:
            # Full disk, closed pipe, a terminal that is gone: nothing can be said where nothing can be written.
            return False
        return True
