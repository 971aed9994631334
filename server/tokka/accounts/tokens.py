"""Short-lived tokens (JWT) for the holders of keys: what makes one, and what checks it, is the key's hash alone.

So every front end that knows a key knows its tokens, nothing is kept of them, and they end with the key.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass

import jwt

# As long as Aitta's: programs ask for one when they begin, and keep it. It ends with its key, whenever that is.
LIFETIME_S = 24 * 3600
_ALGORITHM = "HS256"
_ISSUER = "tokka"
# So that no other use of the hash has the same secret.
_PURPOSE = b"tokka: tokens of a key"
_JWS = jwt.PyJWS(algorithms=[_ALGORITHM])


@dataclass(frozen=True, slots=True)
class Token:
    """A token and for how many seconds it is good."""

    text: str
    expires_in: int


def new_token(key_id: str, digest: bytes, now_s: float, until: float | None) -> Token:
    """Return a token for a key, good no longer than the key is."""
    issued = int(now_s)
    expires = issued + LIFETIME_S if until is None else min(issued + LIFETIME_S, int(until))
    claims = {"iss": _ISSUER, "sub": key_id, "iat": issued, "exp": expires}
    return Token(jwt.encode(claims, _secret_of(digest), _ALGORITHM, headers={"kid": key_id}), max(0, expires - issued))


def key_id_of(text: str) -> str | None:
    """Return the id of the key that a token says it is of; None if it is none of these tokens. Nothing in it is true
    before its signature has been checked."""
    try:
        header = jwt.get_unverified_header(text)
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None
    key_id = header.get("kid")
    return key_id if header.get("alg") == _ALGORITHM and isinstance(key_id, str) else None


def expiry_of(text: str, digest: bytes) -> float | None:
    """Return until when a token is good, None if it was not made with this hash. The signatures are compared in
    constant time."""
    try:
        claims = json.loads(_JWS.decode(text, _secret_of(digest), algorithms=[_ALGORITHM]))
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None
    # Whoever signed it is one of us.
    return float(claims["exp"]) if claims["iss"] == _ISSUER else None


def _secret_of(digest: bytes) -> bytes:
    return hmac.new(digest, _PURPOSE, hashlib.sha256).digest()
