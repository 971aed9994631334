"""Who is asking: static API keys, held as hashes and compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from tokka.core import Key, KeyScope
from tokka.errors import InvalidApiKey

MAX_KEY_CHARS = 512
_REFUSAL = "Incorrect API key provided. Send a valid key as `Authorization: Bearer KEY`."


_USER: frozenset[KeyScope] = frozenset({"inference", "metrics"})
_ADMIN: frozenset[KeyScope] = _USER | {"admin"}


class StaticKeys:
    """The keys given with --api-key and --admin-key. Each is a tenant of its own, named after its place: `key-1`,
    `key-2`, `admin-1`. Only admin keys may stop the server: an API key is handed to its users."""

    def __init__(self, keys: Sequence[str], admin_keys: Sequence[str] = ()) -> None:
        users = [(_digest(key), _static(f"key-{place}", _USER)) for place, key in enumerate(keys, start=1)]
        admins = [(_digest(key), _static(f"admin-{place}", _ADMIN)) for place, key in enumerate(admin_keys, start=1)]
        self._known = users + admins

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


def _static(name: str, scopes: frozenset[KeyScope]) -> Key:
    return Key(name, name, scopes)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()
