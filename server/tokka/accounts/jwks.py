"""The public keys that an issuer signs its tokens with, as its key set (JWKS) has them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt

# Each costs the event loop some 0.1 ms when it is read. Large issuers publish about ten.
_MAX_KEYS = 100
_RSA_BITS = range(2048, 8192 + 1)
# By key type and curve. No key is used by an algorithm of another type, and none by a symmetric one.
_ALGORITHMS: dict[tuple[Any, Any], tuple[str, ...]] = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
# The parts of a key that anybody may know: an issuer that publishes more is not made to sign here.
_PUBLIC = ("kty", "n", "e", "crv", "x", "y")
SUPPORTED = [name for names in _ALGORITHMS.values() for name in names]


@dataclass(frozen=True, slots=True)
class KeySet:
    """An issuer's public keys, each with the algorithms it may be used by."""

    keys: Mapping[tuple[str | None, str], jwt.PyJWK]
    kids: frozenset[str | None]
    # Equal for equal keys, one item a key.
    identity: frozenset[str]

    @classmethod
    def read(cls, document: Any) -> KeySet:
        """Raises ValueError. Keys of no use here are left out: sets hold keys for encryption, and new kinds."""
        given = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(given, list) or len(given) > _MAX_KEYS:
            raise ValueError(f"the issuer's key set is not a list of at most {_MAX_KEYS} keys")
        keys: dict[tuple[str | None, str], jwt.PyJWK] = {}
        identity = set()
        for item in given:
            # One that cannot be read must not cost the others.
            with contextlib.suppress(Exception):
                kid, usable = _read_key(item)
                for algorithm, key in usable.items():
                    keys.setdefault((kid, algorithm), key)
                identity.add(json.dumps([kid, list(usable), [item.get(name) for name in _PUBLIC]]))
        if not keys:
            raise ValueError("the issuer's key set has no key that tokens could be checked with")
        return cls(keys, frozenset(kid for kid, _ in keys), frozenset(identity))

    def has(self, kid: str | None) -> bool:
        # A token need not say which it is of one.
        return kid is None or kid in self.kids

    def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        if kid is not None:
            return self.keys.get((kid, algorithm))
        if len(self.identity) > 1:
            return None
        (only,) = self.kids
        return self.keys.get((only, algorithm))


def _read_key(item: Any) -> tuple[str | None, dict[str, jwt.PyJWK]]:
    """Return a JWK's name, and the key for each algorithm it may be used by. Raises ValueError, and whatever the
    parser raises."""
    if not isinstance(item, dict) or item.get("use", "sig") != "sig" or "verify" not in item.get("key_ops", ["verify"]):
        raise ValueError("not for signatures")
    kid = item.get("kid")
    if not isinstance(kid, str | None):
        raise ValueError("a kid that is no text")
    public = {name: item[name] for name in _PUBLIC if name in item}
    stated = item.get("alg")
    names = [name for name in _ALGORITHMS.get((item.get("kty"), item.get("crv")), ()) if stated in (None, name)]
    usable = {name: jwt.PyJWK(public, name) for name in names}
    if not usable:
        raise ValueError("for no algorithm of ours")
    if item["kty"] == "RSA" and any(key.key.key_size not in _RSA_BITS for key in usable.values()):
        raise ValueError("of a size that is broken, or slow")
    return kid, usable
