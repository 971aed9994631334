"""Key rings, rows and issuers for tests of keys and tokens."""

from __future__ import annotations

from typing import Any

import pytest

from tokka.accounts.credential import digest_of, new_secret, prefix_of
from tokka.accounts.keys import KeyRing
from tokka.accounts.tokens import token_key_of
from tokka.core import Key
from tokka.errors import InvalidApiKey
from tokka.store.rows import KeyRow

FIRST, SECOND = "tk-first-key", "tk-second-key"


NOW = 1_800_000_000.0


KEYS = KeyRing([FIRST, SECOND])


def refusal(authorization: str | None, keys: KeyRing = KEYS) -> InvalidApiKey:
    with pytest.raises(InvalidApiKey) as refused:
        keys.verify(authorization, NOW)
    return refused.value


SECRET = new_secret()


def row(secret: str = SECRET, **fields: Any) -> KeyRow:
    values: dict[str, Any] = {
        "id": "key_1",
        "name": "n",
        "tenant": "t",
        "prefix": prefix_of(secret),
        "digest": digest_of(secret).hex(),
        "token_key": token_key_of(secret).hex(),
        "scopes": frozenset({"inference"}),
        "created_at": int(NOW),
        "revision": 1,
    }
    return KeyRow(**values | fields)


def ring(*rows: KeyRow) -> KeyRing:
    made = KeyRing()
    made.apply(rows, NOW)
    return made


class Issuer:
    """A verifier that accepts and records every token."""

    asked: list[str] = []

    def verify(self, token: str) -> Key:
        self.asked.append(token)
        return Key("oidc:a", "oidc:a", frozenset({"inference"}))

    async def renewed(self) -> None:
        raise NotImplementedError
