"""Captures the engine processes' output: keeps it out of the terminal, and its last lines to explain a failure."""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from pathlib import Path
from typing import Self

from tokka.engine.vllm.error_mapping import is_wrapper

_KEPT_LINES = 200
_ERROR = re.compile(r"(?:^|\s)([A-Za-z_][\w.]*(?:Error|Exception|Interrupt)): (.+)")
# Written by vLLM and by plugin.py.
_WORKER_EXIT = re.compile(r"Worker proc (\S+) died unexpectedly \(exit code: (-?\d+)\)")


class EngineLog:
    """A named pipe that engine processes write to, and a thread that reads it. Leave the block after they end."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "engine-output")
        os.mkfifo(self.path, 0o600)
        # Also open for writing, so that reading does not end before `__exit__`.
        self._fd = os.open(self.path, os.O_RDWR)
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._thread = threading.Thread(target=self._read, name="engine-output", daemon=True)
        self._thread.start()

    def last_error(self) -> str | None:
        """Return the last error that the engine printed, as one line, or None. It may be an old warning."""
        # Some errors span several lines, with the reason in the second.
        for line in reversed(list(self._lines)):
            found = _ERROR.search(line)
            if found and not is_wrapper(found[2]):
                return found[2].strip()
        return None

    def worker_exits(self) -> dict[str, int]:
        """Return the exit codes of dead workers, by name; negative for a signal."""
        found = filter(None, map(_WORKER_EXIT.search, list(self._lines)))
        return {line[1]: int(line[2]) for line in found}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._fd, b"\0")
        self._thread.join(timeout=5)
        os.close(self._fd)

    def _read(self) -> None:
        pending = b""
        while True:
            pending += os.read(self._fd, 65536)
            *lines, pending = pending.split(b"\n")
            for line in lines:
                self._lines.append(line.decode(errors="replace").rstrip())
            if pending.endswith(b"\0"):
                return
            # A line without an end must not grow without limit.
            pending = pending[-65536:]
