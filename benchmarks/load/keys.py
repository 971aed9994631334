"""A database of many keys, written by the program's own code."""

from __future__ import annotations

import time
from pathlib import Path

from tokka.accounts.credential import digest_of, new_key_id, new_secret, prefix_of
from tokka.store.keys import add
from tokka.store.location import database_at
from tokka.store.rows import KeyRow


def fill(folder: Path, count: int) -> str:
    """Create a database of `count` keys in this state folder; return the secret of the middle key."""
    database = database_at(None, folder, busy_s=5)
    database.open(None)
    secrets = [new_secret() for _ in range(count)]
    with database.transaction(write=True) as connection:
        for place, secret in enumerate(secrets):
            add(connection, _row(place, secret))
    database.close()
    return secrets[count // 2]


def _row(place: int, secret: str) -> KeyRow:
    return KeyRow(
        id=new_key_id(),
        name=f"key {place}",
        tenant=f"tenant-{place}",
        prefix=prefix_of(secret),
        digest=digest_of(secret).hex(),
        scopes=frozenset({"inference"}),
        created_at=int(time.time()),
    )
