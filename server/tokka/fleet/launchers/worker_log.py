"""The log file of a local worker: bounded, and kept for a while after a failure."""

from __future__ import annotations

import os
from pathlib import Path

# Maximum bytes of a log; a worker may write more for a second. Beyond it the older half is dropped.
MAX_BYTES = 8 << 20
# Maximum number of logs of failed workers.
MAX_FAILED = 10
_FAILED = ".failed.log"
# Bytes at the end of a log, and characters of a line, that are read for the reason of a failure.
_READ_BYTES = 16 << 10
_LINE_CHARACTERS = 400


class WorkerLog:
    """Its methods block, and raise OSError, except `reason`."""

    def __init__(self, folder: Path, worker: str) -> None:
        self.path = folder / f"{worker}.log"
        # Where the log of a failed worker stays.
        self.kept = folder / f"{worker}{_FAILED}"

    def open(self) -> int:
        """Return a file descriptor for the worker's output."""
        # Appending, so that each write goes to the end of the file also after `trim`.
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600)

    def trim(self) -> None:
        """Drop the older half of a log that is too long. Lines that the worker writes in this moment may be lost."""
        # Not through a pipe to the gateway: the worker's log would end with it.
        with self.path.open("r+b") as file:
            if file.seek(0, os.SEEK_END) <= MAX_BYTES:
                return
            file.seek(-MAX_BYTES // 2, os.SEEK_END)
            end = file.read(MAX_BYTES // 2)
            file.truncate(0)
        with self.path.open("ab") as file:
            file.write(end[end.find(b"\n") + 1 :])

    def reason(self) -> str | None:
        """Return the last line that is not a log entry: the worker's one line about its failure."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _READ_BYTES))
                text = file.read(_READ_BYTES).decode(errors="replace")
        except OSError:
            return None
        lines = [" ".join(line.split()) for line in text.splitlines()]
        said = [line for line in lines if line and not line.startswith("{")]
        # Python may write about its own end after it.
        line = next((line for line in reversed(said) if line.startswith("tokka: ")), said[-1] if said else None)
        return None if line is None else line.removeprefix("tokka: ")[:_LINE_CHARACTERS]

    def remove(self, *, is_failure: bool) -> None:
        """Remove the log. Keep it after a failure, and drop the oldest of too many."""
        if not is_failure:
            self.path.unlink(missing_ok=True)
            return
        self.path.replace(self.kept)
        kept = sorted(self.path.parent.glob(f"*{_FAILED}"), key=lambda path: path.stat().st_mtime_ns)
        for path in kept[:-MAX_FAILED]:
            path.unlink()


def remove_strays(folder: Path, workers: set[str]) -> None:
    """Remove the logs of workers whose gateway was killed before it wrote their record. Blocks. Raises OSError."""
    for path in folder.glob("*.log"):
        if not path.name.endswith(_FAILED) and path.name.removesuffix(".log") not in workers:
            path.unlink()
