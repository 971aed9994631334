"""Short-lived tokens (JWT) for the holders of keys: what makes one, and what checks it, is the key's hash alone.

So every front end that knows a key knows its tokens, nothing is kept of them, and they end with the key.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass

import jwt

# Long enough for a session's work; a client asks for the next one with its key.
LIFETIME_S = 3600
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


def is_good(text: str, digest: bytes, now_s: float) -> bool:
    """Tell whether the token was made with this hash and has not expired. The signatures are compared in constant
    time."""
    try:
        claims = json.loads(_JWS.decode(text, _secret_of(digest), algorithms=[_ALGORITHM]))
    except (jwt.PyJWTError, ValueError, RecursionError):
        return False
    # Whoever signed it is one of us.
    return bool(claims["iss"] == _ISSUER and now_s < claims["exp"])


def _secret_of(digest: bytes) -> bytes:
    return hmac.new(digest, _PURPOSE, hashlib.sha256).digest()
