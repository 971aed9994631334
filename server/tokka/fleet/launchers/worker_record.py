"""The file that lets a gateway find a local worker again that an earlier gateway has started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import Field, TypeAdapter, ValidationError

from tokka.fleet.private_file import write_private

log = structlog.get_logger("tokka.fleet")

_SUFFIX = ".json"
# Maximum bytes of a record. A model's name may be long.
_MAX_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A worker that was started. `pid` and `start_ticks` name its process within the `boot`."""

    worker: str
    model: str
    revision: str
    devices: tuple[str, ...]
    memory_bytes: int | None
    pid: Annotated[int, Field(gt=1, le=1 << 22)]
    start_ticks: int
    boot: str
    # Whether it was asked to drain. A second SIGTERM would break off its requests.
    is_stopping: bool = False
    # Why it was killed, if the launcher did it.
    killed: str | None = None


_FORM = TypeAdapter(WorkerRecord)


def boot_id() -> str:
    """Return the id of this machine's boot. Clock ticks and pids start again with each."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()


def write_record(folder: Path, record: WorkerRecord) -> None:
    """Blocks. Raises OSError."""
    write_private(_path(folder, record.worker), _FORM.dump_json(record).decode())


def remove_record(folder: Path, worker: str) -> None:
    """Blocks. Raises OSError."""
    _path(folder, worker).unlink(missing_ok=True)


def read_records(folder: Path) -> list[WorkerRecord]:
    """Return the records in a folder. Unreadable ones are logged. Blocks."""
    records = []
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        try:
            with path.open("rb") as file:
                record = _FORM.validate_json(file.read(_MAX_BYTES), strict=True)
        except (OSError, ValidationError) as error:
            reason = error.strerror if isinstance(error, OSError) else error.errors()[0]["msg"]
            log.warning("worker_record_ignored", file=str(path), reason=reason)
            continue
        if path != _path(folder, record.worker):
            log.warning("worker_record_ignored", file=str(path), reason=f"it is of worker {record.worker}")
            continue
        records.append(record)
    # A gateway that was killed while it wrote a record leaves a part of one.
    for part in folder.glob(f"*{_SUFFIX}.*"):
        part.unlink(missing_ok=True)
    return records


def _path(folder: Path, worker: str) -> Path:
    return folder / f"{worker}{_SUFFIX}"
