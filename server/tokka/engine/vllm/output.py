"""What the engine's processes print: kept out of the operator's terminal, its last lines kept to explain a failure."""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from pathlib import Path
from typing import Self

_KEPT_LINES = 200
_CAUSE = re.compile(r"(?:^|\s)([A-Za-z_][\w.]*(?:Error|Exception|Interrupt)): (.+)")
# What vLLM raises on top of the real cause.
_WRAPPERS = ("Engine core initialization failed", "WorkerProc initialization failed", "Executor failed")


class EngineOutput:
    """A named pipe that engine processes write to and a thread that reads it. To be left when they are gone."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "engine-output")
        os.mkfifo(self.path, 0o600)
        # Open for writing as well, so that reading never ends before we say so.
        self._fd = os.open(self.path, os.O_RDWR)
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._thread = threading.Thread(target=self._read, name="engine-output", daemon=True)
        self._thread.start()

    def cause(self) -> str | None:
        """Return the last error the engine printed, as one line, or None."""
        # Some errors go on over several lines, with the reason in the second.
        lines = list(self._lines)
        for at in range(len(lines) - 1, -1, -1):
            found = _CAUSE.search(lines[at])
            if found and not found[2].startswith(_WRAPPERS):
                return found[2].strip()
        return None

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
            # A line without an end must not grow for ever.
            pending = pending[-65536:]
