"""Secrets of API keys: generation, the prefix shown to people, and the hash that is stored instead."""

from __future__ import annotations

import hashlib
import secrets

# Maximum characters of a secret or a static key. Longer credentials are refused.
MAX_KEY_CHARS = 512
_PREFIX_CHARS = 8


def new_secret() -> str:
    """Return 256 random bits as text, with a prefix that scanners for leaked keys can find."""
    return "tk-" + secrets.token_urlsafe(32)


def new_key_id() -> str:
    return "key_" + secrets.token_hex(8)


def prefix_of(secret: str) -> str:
    return secret[:_PREFIX_CHARS]


def digest_of(secret: str) -> bytes:
    # One fast hash, unlike for passwords: 256 random bits cannot be guessed, and every request pays for the hash.
    return hashlib.sha256(secret.encode(errors="replace")).digest()
