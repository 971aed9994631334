"""Verify credentials with the keys in memory: static keys, keys of the database, and their tokens."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tokka.accounts.credential import MAX_KEY_CHARS, digest_of
from tokka.accounts.tokens import Token, expiry_of, key_id_of, new_token, token_key_of
from tokka.core import ANONYMOUS, Key, KeyScope, Limits
from tokka.errors import InvalidApiKey, PermissionDenied
from tokka.protocol.times import format_iso
from tokka.store.rows import KeyRow, TokenKey

NO_KEY = "No API key was sent as `Authorization: Bearer KEY`."
REFUSAL = "Incorrect API key provided. Send a valid key as `Authorization: Bearer KEY`."
# Scopes of static keys. Metrics name all tenants, so users' keys cannot read metrics.
_USER: frozenset[KeyScope] = frozenset({"inference"})
_METRICS: frozenset[KeyScope] = frozenset({"metrics"})
_ADMIN: frozenset[KeyScope] = _USER | _METRICS | {"admin"}
# All scopes that a key's token may have. A token that could create keys could extend its access without end.
_TOKEN: frozenset[KeyScope] = frozenset({"inference"})


class Tokens(Protocol):
    """Verify the tokens (JWT) of an issuer."""

    def verify(self, token: str) -> Key:
        """Return the key that a token stands for. Must not block.

        Raises InvalidApiKey for an invalid token, always with the message `REFUSAL`. Raises SignerUnknown if a newer
        key of the issuer may have signed the token.
        """

    async def renewed(self) -> None:
        """Wait until the issuer's keys have been fetched again. Raises IssuerUnavailable."""


@dataclass(frozen=True, slots=True)
class _Entry:
    digest: bytes
    key: Key
    # When it expires, in seconds since 1970; None: never.
    until: float | None = None
    # The public key that verifies its tokens; None: not stored yet.
    token_key: bytes | None = None

    def is_valid(self, now_s: float) -> bool:
        return self.until is None or now_s < self.until


_NOBODY = _Entry(bytes(32), Key("nobody", "nobody", frozenset()), until=0)


class KeyRing:
    """All valid credentials. Verifying an API key takes one hash and one look-up, however many keys there are."""

    def __init__(
        self,
        keys: Sequence[str] = (),
        admin_keys: Sequence[str] = (),
        tokens: Tokens | None = None,
        *,
        metrics_keys: Sequence[str] = (),
    ) -> None:
        """Add the static keys. Each is a tenant, named by its position: `key-1`, `key-2`, `admin-1`, `metrics-1`."""
        self._tokens = tokens
        self._rows: dict[str, KeyRow] = {}
        # Limits of the stored keys with a daily or monthly quota, by key id. Without revoked keys.
        self.quotas: dict[str, Limits] = {}
        self._entries: dict[bytes, _Entry] = {}
        # By key id. A rotated key has two entries.
        self._by_id: dict[str, list[_Entry]] = {}
        kinds = (("key", keys, _USER), ("admin", admin_keys, _ADMIN), ("metrics", metrics_keys, _METRICS))
        for kind, given, scopes in kinds:
            for place, secret in enumerate(given, start=1):
                name = f"{kind}-{place}"
                self._add(_Entry(digest_of(secret), Key(name, name, scopes), token_key=token_key_of(secret)))
        self._is_protected = bool(self._entries or self._tokens)

    @property
    def is_protected(self) -> bool:
        """Whether requests need a credential: from the first active key until the program ends.

        Revoking the last key does not open a running server. The next start decides by the keys active then.
        """
        return self._is_protected

    def rule(self, now_s: float) -> str:
        """Describe the accepted credentials of a protected server, for the log."""
        active = {entry.key.id for entry in self._entries.values() if entry.is_valid(now_s)}
        return f"keys required: {len(active)} active{' and tokens of the issuer' if self._tokens else ''}"

    def may_infer(self, now_s: float) -> bool:
        """Tell whether any credential allows inference now."""
        entries = (entry for entry in self._entries.values() if "inference" in entry.key.scopes)
        return bool(self._tokens) or any(entry.is_valid(now_s) for entry in entries)

    def stored(self, now_s: float) -> int:
        """Return the number of active keys in the database."""
        return sum(row.status(now_s) == "active" for row in self._rows.values())

    def unusable(self, now_s: float) -> int:
        """Return the number of keys in the database that are revoked or expired."""
        return len(self._rows) - self.stored(now_s)

    @property
    def has_several_tenants(self) -> bool:
        """Whether more than one tenant may generate. Administrators do not count."""
        keys = (entry.key for entry in self._entries.values())
        tenants = {key.tenant for key in keys if "inference" in key.scopes and "admin" not in key.scopes}
        return self._tokens is not None or len(tenants) > 1

    @property
    def rows(self) -> list[KeyRow]:
        """The database's keys as last read, including revoked ones."""
        return list(self._rows.values())

    def apply(self, rows: Iterable[KeyRow], now_s: float) -> None:
        """Add new and changed keys. Skips a row that is older than the known one."""
        for row in rows:
            self._is_protected = self._is_protected or row.status(now_s) == "active"
            known = self._rows.get(row.id)
            if known and known.revision > row.revision:
                continue
            if known:
                for entry in _entries_of(known):
                    self._entries.pop(entry.digest, None)
            self._rows[row.id] = row
            if row.limits.has_quota and row.revoked_at is None:
                self.quotas[row.id] = row.limits
            else:
                self.quotas.pop(row.id, None)
            self._by_id.pop(row.id, None)
            for entry in _entries_of(row):
                self._add(entry)

    def verify(self, authorization: str | None, now_s: float) -> Key:
        """Return the key of an Authorization header. `now_s`: seconds since 1970, to check expiry.

        Raises InvalidApiKey, with the same message for every invalid credential. Only an expired token of a key gets a
        message of its own, because its owner had the key. Raises SignerUnknown as `Tokens.verify` does.
        """
        credential = _credential_of(authorization)
        if entry := self._entry_of(credential, now_s):
            return entry.key
        if credential.count(".") == 2:
            if key := self._key_of_token(credential, now_s):
                return key
            if self._tokens:
                return self._tokens.verify(credential)
        raise InvalidApiKey(REFUSAL if credential else NO_KEY)

    async def verify_renewed(self, authorization: str | None, now_s: float) -> Key:
        """Fetch the issuer's keys again, then verify. Call this after `verify` has raised SignerUnknown."""
        if self._tokens:
            await self._tokens.renewed()
        return self.verify(authorization, now_s)

    def issue(self, authorization: str | None, now_s: float) -> Token:
        """Return a token for the key of a verified Authorization header.

        Raises PermissionDenied if the header holds a token: a new token requires the key itself.
        """
        if not self.is_protected:
            # This server needs no credential, but some clients always send a token. A random secret signs this one, so
            # no server accepts it as a credential.
            return new_token(ANONYMOUS.id, secrets.token_urlsafe(32), now_s, None)
        secret = _credential_of(authorization)
        entry = self._entry_of(secret, now_s)
        if entry is None:
            raise PermissionDenied("A token cannot be exchanged for another token. Send the API key itself.")
        return new_token(entry.key.id, secret, now_s, entry.until)

    def unlearnt(self, authorization: str | None, now_s: float) -> TokenKey | None:
        """Return the public key for an API key's tokens if the API key's row lacks it, else None.

        A row lacks it if it is older than this kind of token, or if an earlier version of the server rotated the key.
        """
        secret = _credential_of(authorization)
        entry = self._entry_of(secret, now_s)
        if entry is None or entry.token_key == (token_key := token_key_of(secret)):
            return None
        return TokenKey(entry.key.id, entry.digest.hex(), token_key.hex())

    def _entry_of(self, credential: str, now_s: float) -> _Entry | None:
        digest = digest_of(credential[:MAX_KEY_CHARS])
        entry = self._entries.get(digest, _NOBODY)
        # The look-up by hash leaks no useful timing, since nobody can choose the hash. The constant-time comparison
        # protects the key even if an attacker could.
        is_known = hmac.compare_digest(entry.digest, digest) and len(credential) <= MAX_KEY_CHARS
        return entry if is_known and entry.is_valid(now_s) else None

    def _key_of_token(self, token: str, now_s: float) -> Key | None:
        if len(token) > MAX_KEY_CHARS or (key_id := key_id_of(token)) is None:
            return None
        for entry in self._by_id.get(key_id, ()):
            if not entry.is_valid(now_s) or entry.token_key is None:
                continue
            if (until := expiry_of(token, key_id, entry.token_key, now_s)) is None:
                continue
            if now_s >= until:
                raise InvalidApiKey(
                    f"This token expired at {format_iso(until)}. Get a new one at /authenticate_with_key."
                )
            return replace(entry.key, scopes=_TOKEN & entry.key.scopes)
        return None

    def _add(self, entry: _Entry) -> None:
        # If two static keys are equal, the first one's name counts.
        if self._entries.setdefault(entry.digest, entry) is entry:
            self._by_id.setdefault(entry.key.id, []).append(entry)


def _credential_of(authorization: str | None) -> str:
    """Return the bearer credential of an Authorization header, or an empty text."""
    scheme, _, credential = (authorization or "").partition(" ")
    return credential.strip() if scheme.lower() == "bearer" else ""


def _entries_of(row: KeyRow) -> list[_Entry]:
    if row.revoked_at is not None:
        return []
    key = Key(row.id, row.tenant, row.scopes, row.limits, row.models)
    entries = [_Entry(bytes.fromhex(row.digest), key, row.expires_at, _bytes_of(row.token_key))]
    if row.previous_digest and row.previous_until is not None:
        until = row.previous_until if row.expires_at is None else min(row.previous_until, row.expires_at)
        entries.append(_Entry(bytes.fromhex(row.previous_digest), key, until, _bytes_of(row.previous_token_key)))
    return entries


def _bytes_of(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)
