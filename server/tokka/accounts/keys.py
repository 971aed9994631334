"""Who is asking: static API keys, held as hashes and compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from tokka.errors import InvalidApiKey

MAX_KEY_CHARS = 512
_REFUSAL = "Incorrect API key provided. Send a valid key as `Authorization: Bearer KEY`."


@dataclass(frozen=True, slots=True)
class Key:
    """A known credential. `tenant` is who is counted; scopes say what it may do."""

    tenant: str
    scopes: frozenset[str]


# On loopback without keys, everyone is this.
ANONYMOUS = Key("anonymous", frozenset({"inference", "metrics"}))


class StaticKeys:
    """The keys given with --api-key. Each is a tenant of its own, named after its place: `key-1`, `key-2`."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._known = [
            (_digest(key), Key(f"key-{place}", frozenset({"inference", "metrics"})))
            for place, key in enumerate(keys, start=1)
        ]

    def __bool__(self) -> bool:
        return bool(self._known)

    def verify(self, authorization: str | None) -> Key:
        """Return the key of an Authorization header. Raises InvalidApiKey, the same whatever was wrong."""
        scheme, _, credential = (authorization or "").partition(" ")
        digest = _digest(credential.strip()[:MAX_KEY_CHARS])
        found: Key | None = None
        # No early exit: the time taken must not tell which key came close.
        for known, key in self._known:
            if hmac.compare_digest(known, digest):
                found = key
        if found is None or scheme.lower() != "bearer":
            raise InvalidApiKey(_REFUSAL)
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()
