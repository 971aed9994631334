"""The secret of the prefix cache's salts, kept in the gateway's state."""

from __future__ import annotations

import secrets
from pathlib import Path

from tokka.errors import unreadable
from tokka.fleet.private_file import write_private

_NAME = "prefix-salt"
_BYTES = 32


def read_salt(folder: Path) -> bytes:
    """Return the secret, and write it first if it is missing or damaged. Raises StartupError."""
    path = folder / _NAME
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = path.read_text(encoding="ascii", errors="replace") if path.exists() else ""
        if len(found) != 2 * _BYTES:
            found = secrets.token_hex(_BYTES)
            write_private(path, found)
    except OSError as error:
        raise unreadable(f"cannot use {path}: {error.strerror}", error) from None
    return found.encode()
