"""The public keys of an issuer, read from its key set (JWKS)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt

# Maximum keys of a key set. Reading a key takes about 0.1 ms of the event loop; large issuers publish about ten.
_MAX_KEYS = 100
# Allowed sizes of RSA keys, in bits. Smaller keys can be broken; larger ones are slow.
_RSA_BITS = range(2048, 8192 + 1)
# Allowed algorithms by key type and curve. A key is never used with another type's algorithm or a symmetric one.
_ALGORITHMS: dict[tuple[Any, Any], tuple[str, ...]] = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
# Public fields of a JWK. If an issuer publishes private ones by mistake, they are not loaded.
_PUBLIC = ("kty", "n", "e", "crv", "x", "y")
SUPPORTED = [name for names in _ALGORITHMS.values() for name in names]


@dataclass(frozen=True, slots=True)
class KeySet:
    """An issuer's public keys, by key id and algorithm."""

    keys: Mapping[tuple[str | None, str], jwt.PyJWK]
    kids: frozenset[str | None]
    # One text for each key. Equal key sets have equal texts.
    identity: frozenset[str]

    @classmethod
    def read(cls, document: Any) -> KeySet:
        """Read a JWKS document. Skips keys for encryption and of unknown kinds. Raises ValueError if none is usable."""
        given = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(given, list) or len(given) > _MAX_KEYS:
            raise ValueError(f"the issuer's key set is not a list of at most {_MAX_KEYS} keys")
        keys: dict[tuple[str | None, str], jwt.PyJWK] = {}
        identity = set()
        for item in given:
            # An unreadable key must not make the others unusable.
            with contextlib.suppress(Exception):
                kid, usable = _read_key(item)
                for algorithm, key in usable.items():
                    keys.setdefault((kid, algorithm), key)
                identity.add(json.dumps([kid, list(usable), [item.get(name) for name in _PUBLIC]]))
        if not keys:
            raise ValueError("the issuer's key set has no key that can verify tokens")
        return cls(keys, frozenset(kid for kid, _ in keys), frozenset(identity))

    def has(self, kid: str | None) -> bool:
        # A token may omit the key id if the set has only one key.
        return kid is None or kid in self.kids

    def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        if kid is not None:
            return self.keys.get((kid, algorithm))
        if len(self.identity) > 1:
            return None
        (only,) = self.kids
        return self.keys.get((only, algorithm))


def _read_key(item: Any) -> tuple[str | None, dict[str, jwt.PyJWK]]:
    """Return a JWK's key id, and its key for each allowed algorithm. Raises ValueError or an error of the parser."""
    if not isinstance(item, dict) or item.get("use", "sig") != "sig" or "verify" not in item.get("key_ops", ["verify"]):
        raise ValueError("not for signatures")
    kid = item.get("kid")
    if not isinstance(kid, str | None):
        raise ValueError("the kid is not a string")
    public = {name: item[name] for name in _PUBLIC if name in item}
    stated = item.get("alg")
    names = [name for name in _ALGORITHMS.get((item.get("kty"), item.get("crv")), ()) if stated in (None, name)]
    usable = {name: jwt.PyJWK(public, name) for name in names}
    if not usable:
        raise ValueError("no supported algorithm")
    if item["kty"] == "RSA" and any(key.key.key_size not in _RSA_BITS for key in usable.values()):
        raise ValueError("RSA key size not allowed")
    return kid, usable
