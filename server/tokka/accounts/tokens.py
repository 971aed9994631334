"""Short-lived tokens (JWT) for the holders of API keys, signed with a key that is derived from the API key's secret.

The database stores only the public half, so its readers can check tokens but not make them. Tokens are not stored. A
token ends with its API key.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

# Seconds that a token is valid, as at Aitta: programs get a token at their start and keep it. The end of the API key
# ends it earlier.
LIFETIME_S = 24 * 3600
# Maximum difference between the servers' clocks, in seconds.
CLOCKS_S = 10
_ALGORITHM = "EdDSA"
_ISSUER = "tokka"
# Input of the key derivation, so that no other use of a secret yields the same key.
_PURPOSE = b"tokka: tokens of a key"
_JWS = jwt.PyJWS(algorithms=[_ALGORITHM])


@dataclass(frozen=True, slots=True)
class Token:
    """A token and its lifetime in seconds."""

    text: str
    expires_in: int


def token_key_of(secret: str) -> bytes:
    """Return the public half of the key that signs this secret's tokens. It does not reveal the secret."""
    return _signing_key_of(secret).public_key().public_bytes_raw()


def new_token(key_id: str, secret: str, now_s: float, until: float | None) -> Token:
    """Return a token for an API key. `until`: when the API key expires, in seconds since 1970; None: never."""
    issued = int(now_s)
    expires = issued + LIFETIME_S if until is None else max(issued, min(issued + LIFETIME_S, int(until)))
    claims = {"iss": _ISSUER, "sub": key_id, "iat": issued, "exp": expires}
    text = jwt.encode(claims, _signing_key_of(secret), _ALGORITHM, headers={"kid": key_id})
    return Token(text, expires - issued)


def key_id_of(text: str) -> str | None:
    """Return the key id in a token's header, or None if it is not a token of this kind. The id is not verified yet."""
    try:
        header = jwt.get_unverified_header(text)
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None
    key_id = header.get("kid")
    return key_id if header.get("alg") == _ALGORITHM and isinstance(key_id, str) else None


def expiry_of(text: str, key_id: str, token_key: bytes, now_s: float) -> int | None:
    """Return the expiry of a key's token, which may be in the past, or None if the key did not sign it.

    The owner of a key can sign any claims with it. Claims that no server issues also give None.
    """
    try:
        public = Ed25519PublicKey.from_public_bytes(token_key)
        claims = json.loads(_JWS.decode(text, public, algorithms=[_ALGORITHM]))
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None
    return _expiry_in(claims, key_id, now_s)


def _expiry_in(claims: Any, key_id: str, now_s: float) -> int | None:
    if not isinstance(claims, dict) or (claims.get("iss"), claims.get("sub")) != (_ISSUER, key_id):
        return None
    issued, expires = claims.get("iat"), claims.get("exp")
    # Exact type: `true` and 1.5 are not times.
    if type(issued) is not int or type(expires) is not int:
        return None
    is_ours = 0 <= issued <= now_s + CLOCKS_S and 0 <= expires - issued <= LIFETIME_S
    return expires if is_ours else None


def _signing_key_of(secret: str) -> Ed25519PrivateKey:
    seed = HKDF(SHA256(), length=32, salt=None, info=_PURPOSE).derive(secret.encode(errors="replace"))
    return Ed25519PrivateKey.from_private_bytes(seed)
