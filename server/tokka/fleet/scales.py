"""The numbers of replicas that an operator has fixed. They outlive the gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import structlog
from pydantic import Field, TypeAdapter, ValidationError

from tokka.fleet.private_file import write_private

log = structlog.get_logger("tokka.fleet")

_NAME = "fleet-scales.json"
_FORM = TypeAdapter(dict[str, Annotated[int, Field(ge=0)]])


def read_scales(folder: Path) -> dict[str, int]:
    """Return the numbers by model. An unreadable file is logged and counts as empty. Blocks."""
    path = folder / _NAME
    try:
        return _FORM.validate_json(path.read_bytes(), strict=True) if path.exists() else {}
    except (OSError, ValidationError) as error:
        log.warning("scales_ignored", file=str(path), reason=type(error).__name__)
        return {}


def write_scales(folder: Path, scales: dict[str, int]) -> None:
    """Blocks. Raises OSError."""
    write_private(folder / _NAME, _FORM.dump_json(scales).decode())
