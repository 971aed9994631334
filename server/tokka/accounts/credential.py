"""The secret a client sends: how it is made, recognised by people, and known without being kept."""

from __future__ import annotations

import hashlib
import secrets

# Of a secret or a static key; a longer one is none.
MAX_KEY_CHARS = 512
_PREFIX_CHARS = 8


def new_secret() -> str:
    """Return 256 random bits, with a beginning that scanners for leaked keys can look for."""
    return "tk-" + secrets.token_urlsafe(32)


def new_key_id() -> str:
    return "key_" + secrets.token_hex(8)


def prefix_of(secret: str) -> str:
    return secret[:_PREFIX_CHARS]


def digest_of(secret: str) -> bytes:
    # Not slowed down as for passwords: nobody guesses 256 bits, and it is paid for by each request.
    return hashlib.sha256(secret.encode(errors="replace")).digest()
