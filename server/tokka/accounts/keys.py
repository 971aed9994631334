"""Who is asking: keys held in memory by their hashes, static ones and those of the database."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tokka.accounts.credential import MAX_KEY_CHARS, digest_of
from tokka.core import Key, KeyScope
from tokka.errors import InvalidApiKey
from tokka.store.rows import KeyRow

REFUSAL = "Incorrect API key provided. Send a valid key as `Authorization: Bearer KEY`."
_USER: frozenset[KeyScope] = frozenset({"inference", "metrics"})
_ADMIN: frozenset[KeyScope] = _USER | {"admin"}


class Tokens(Protocol):
    """Knows the tokens (JWT) of an issuer."""

    def verify(self, token: str) -> Key:
        """Return whose token it is. Must not block. Raises InvalidApiKey with our one refusal, whatever is wrong."""


@dataclass(frozen=True, slots=True)
class _Entry:
    digest: bytes
    key: Key
    # Until when it is good; None: until it is revoked.
    until: float | None = None


_NOBODY = _Entry(bytes(32), Key("nobody", "nobody", frozenset()), until=0)


class KeyRing:
    """All that a credential can be. Verifying one costs the same however many there are: one hash, one look-up."""

    def __init__(self, keys: Sequence[str] = (), admin_keys: Sequence[str] = (), tokens: Tokens | None = None) -> None:
        """Static keys are tenants of their own, named after their place: `key-1`, `key-2`, `admin-1`. Only admin keys
        may stop the server: an API key is handed to its users."""
        self._tokens = tokens
        self._rows: dict[str, KeyRow] = {}
        self._entries: dict[bytes, _Entry] = {}
        for kind, given, scopes in (("key", keys, _USER), ("admin", admin_keys, _ADMIN)):
            for place, secret in enumerate(given, start=1):
                name = f"{kind}-{place}"
                self._add(_Entry(digest_of(secret), Key(name, name, scopes)))

    @property
    def is_protected(self) -> bool:
        """Whether a credential is asked for. Also when none is good any more: revoking the last key opens nothing."""
        return bool(self._entries or self._rows or self._tokens)

    @property
    def rows(self) -> list[KeyRow]:
        """The database's keys as they were last seen, revoked ones included."""
        return list(self._rows.values())

    def apply(self, rows: Iterable[KeyRow]) -> None:
        """Take over keys that are new or have changed; what is older than what is known already is left out."""
        for row in rows:
            known = self._rows.get(row.id)
            if known and known.revision > row.revision:
                continue
            if known:
                for entry in _entries_of(known):
                    self._entries.pop(entry.digest, None)
            self._rows[row.id] = row
            for entry in _entries_of(row):
                self._add(entry)

    def verify(self, authorization: str | None, now_s: float) -> Key:
        """Return the key of an Authorization header. Raises InvalidApiKey, the same whatever was wrong.

        `now_s`: the time of day, which keys expire by.
        """
        scheme, _, credential = (authorization or "").partition(" ")
        credential = credential.strip()
        digest = digest_of(credential[:MAX_KEY_CHARS])
        entry = self._entries.get(digest, _NOBODY)
        # The look-up goes by a hash that nobody can steer; the comparison is for whoever finds a way to.
        is_known = hmac.compare_digest(entry.digest, digest) and len(credential) <= MAX_KEY_CHARS
        is_good = entry.until is None or now_s < entry.until
        if scheme.lower() == "bearer":
            if is_known and is_good:
                return entry.key
            if self._tokens and credential.count(".") == 2:
                return self._tokens.verify(credential)
        raise InvalidApiKey(REFUSAL)

    def _add(self, entry: _Entry) -> None:
        # The first of two equal static keys keeps its name.
        self._entries.setdefault(entry.digest, entry)


def _entries_of(row: KeyRow) -> list[_Entry]:
    if row.revoked_at is not None:
        return []
    key = Key(row.id, row.tenant, row.scopes, row.limits, row.models)
    entries = [_Entry(bytes.fromhex(row.digest), key, row.expires_at)]
    if row.previous_digest and row.previous_until is not None:
        until = row.previous_until if row.expires_at is None else min(row.previous_until, row.expires_at)
        entries.append(_Entry(bytes.fromhex(row.previous_digest), key, until))
    return entries
