"""Write log lines without blocking the caller, even if nobody reads them or the disk is full."""

from __future__ import annotations

import contextlib
import io
import os
import queue
import select
import threading

import structlog

log = structlog.get_logger("tokka.log")

# Maximum bytes of queued lines, and of one write. Lines beyond the first are dropped.
_MAX_QUEUED_BYTES = 8 << 20
_MAX_WRITE_BYTES = 64 << 10
# Seconds between two writes, in which lines gather.
_GATHER_S = 0.03


class LineWriter(io.TextIOBase):
    """A text file with a bounded queue of whole lines. A separate thread writes them to `fd`, in order.

    If the queue is full or the write fails, lines are dropped and counted. Once writing works again, a log line reports
    their number.
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
        """The number of lines lost so far."""
        return self._dropped

    def write(self, text: str) -> int:
        """Queue one or several whole lines. Never blocks."""
        line = text.encode(errors="replace")
        with self._lock:
            if self._queued_bytes + len(line) > _MAX_QUEUED_BYTES:
                self._dropped += 1
                return len(text)
            self._queued_bytes += len(line)
        self._lines.put(line)
        return len(text)

    def finish(self, within_s: float = 1.0) -> None:
        """Write the queued lines, for at most this many seconds. Blocks."""
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
            # Waking this thread for each line would cost the logging thread more than the rest of the line.
            self._ends.wait(_GATHER_S)

    def _take(self) -> tuple[list[bytes], bool]:
        """Wait for a line. Return the lines of the next write, and whether they are the last ones."""
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
                    # Another process has made this terminal or pipe non-blocking.
                    select.select([], [self._fd], [])
        except OSError:
            # The disk is full, or the pipe or terminal is closed. The error cannot be logged either.
            return False
        return True
