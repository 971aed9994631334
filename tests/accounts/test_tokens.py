"""Tokens of API keys: their scopes and expiry, and that only the key itself can make them."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from jwt.utils import base64url_encode

from tests.accounts.rings import NOW, SECRET, Issuer, refusal, ring, row
from tokka.accounts.admin_views import NewKey
from tokka.accounts.credential import MAX_KEY_CHARS, new_secret
from tokka.accounts.keys import KeyRing
from tokka.accounts.ledger import open_ledger
from tokka.accounts.tokens import CLOCKS_S, LIFETIME_S, Token, _signing_key_of, new_token
from tokka.core import Key, Limits
from tokka.errors import InvalidApiKey, PermissionDenied
from tokka.store.rows import KeyRow, TokenKey
from tokka.store.sqlite import NAME

ALICE = row(
    id="key_0123456789abcdef",
    scopes=frozenset({"inference", "metrics", "admin"}),
    limits=Limits(rpm=7),
    models=frozenset({"m"}),
)


def issued(keys: KeyRing, secret: str = SECRET, now_s: float = NOW) -> Token:
    return keys.issue(f"Bearer {secret}", now_s)


def owner(keys: KeyRing, token: Token | str, now_s: float = NOW) -> Key:
    return keys.verify(f"Bearer {token.text if isinstance(token, Token) else token}", now_s)


def is_refused(keys: KeyRing, token: Token | str, now_s: float = NOW) -> bool:
    try:
        owner(keys, token, now_s)
    except InvalidApiKey as error:
        # The error is the same for every invalid token.
        return error.body() == refusal("Bearer some-other-key", keys).body()
    return False


def test_a_token_is_its_key_for_generating_and_nothing_else() -> None:
    keys = ring(ALICE)
    assert owner(keys, issued(keys)) == Key(
        ALICE.id, ALICE.tenant, frozenset({"inference"}), ALICE.limits, ALICE.models
    )


def test_every_front_end_that_knows_the_key_knows_its_token() -> None:
    assert owner(ring(ALICE), issued(ring(ALICE))).id == ALICE.id


def test_a_token_expires_when_it_says() -> None:
    keys = ring(ALICE)
    token = issued(keys)
    assert token.expires_in == LIFETIME_S
    assert owner(keys, token, NOW + LIFETIME_S - 1).id == ALICE.id
    # Only the holder of an expired token gets this error. Otherwise, a user would look for a mistake in the key.
    with pytest.raises(InvalidApiKey, match=r"expired at 20\d\d-.*/authenticate_with_key"):
        owner(keys, token, NOW + LIFETIME_S)
    assert is_refused(keys, f"{token.text[:-3]}abc", NOW + LIFETIME_S)


def test_a_token_is_good_no_longer_than_its_key() -> None:
    keys = ring(replace(ALICE, expires_at=int(NOW) + 60))
    token = issued(keys)
    assert token.expires_in == 60
    assert is_refused(keys, token, NOW + 60)
    # Also if the token itself claims a later expiry.
    longer = new_token(ALICE.id, SECRET, NOW, None)
    assert not is_refused(keys, longer, NOW + 59)
    assert is_refused(keys, longer, NOW + 60)


def test_revoking_the_key_ends_its_tokens() -> None:
    keys = ring(ALICE)
    token = issued(keys)
    keys.apply([replace(ALICE, revoked_at=int(NOW), revision=2)], NOW)
    assert is_refused(keys, token)


def rotated(secret: str, **fields: Any) -> KeyRow:
    """Return Alice's key with another secret. The previous secret is valid for 100 s more."""
    previous = {"previous_digest": ALICE.digest, "previous_token_key": ALICE.token_key}
    return row(secret, id=ALICE.id, previous_until=int(NOW) + 100, revision=2, **previous | fields)


def test_a_rotation_ends_tokens_of_the_old_secret_with_it() -> None:
    keys = ring(ALICE)
    old = issued(keys)
    keys.apply([rotated("new-secret")], NOW)
    assert owner(keys, old, NOW + 99).id == ALICE.id
    assert owner(keys, issued(keys, "new-secret"), NOW + 200).id == ALICE.id
    assert is_refused(keys, old, NOW + 100)


def test_old_secret_signs_good_tokens_until_its_grace_ends() -> None:
    keys = ring(rotated("new-secret"))
    token = issued(keys)
    assert token.expires_in == 100
    assert owner(keys, token, NOW + 99).id == ALICE.id
    assert is_refused(keys, token, NOW + 100)


def test_a_token_of_a_static_key_is_of_that_key_and_not_of_its_name() -> None:
    keys = KeyRing(["the-first-key", "the-second-key"])
    token = issued(keys, "the-second-key")
    assert owner(keys, token).id == "key-2"
    assert is_refused(KeyRing(["the-first-key", "another-second-key"]), token)


def test_a_token_gets_no_other_token() -> None:
    keys = ring(ALICE)
    with pytest.raises(PermissionDenied):
        issued(keys, issued(keys).text)


def test_an_issuers_token_gets_no_token_either() -> None:
    keys = KeyRing([], [], Issuer())
    assert keys.verify("Bearer a.good.token", NOW)
    with pytest.raises(PermissionDenied):
        issued(keys, "a.good.token")


def test_an_issuers_tokens_still_go_to_the_issuer() -> None:
    keys = KeyRing(["the-static-key-of-it"], [], Issuer())
    assert owner(keys, "a.good.token").tenant == keys.verify("Bearer a.good.token", NOW).tenant
    assert owner(keys, issued(keys, "the-static-key-of-it")).id == "key-1"


def test_anonymous_token_is_refused_when_the_first_key_exists() -> None:
    keys = KeyRing()
    token = keys.issue(None, NOW)
    assert token.expires_in == LIFETIME_S
    keys.apply([ALICE], NOW)
    assert is_refused(keys, token)


CLAIMS: dict[str, Any] = {"iss": "tokka", "sub": ALICE.id, "iat": int(NOW), "exp": int(NOW) + 60}


def forged(secret: Any, algorithm: str | None = "HS256", kid: object = ALICE.id) -> str:
    return jwt.encode(CLAIMS, secret, algorithm, headers={"kid": kid})


def signed(claims: dict[str, Any] | bytes) -> str:
    """Return a token with any claims, signed with Alice's key."""
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    return jwt.PyJWS().encode(payload, _signing_key_of(SECRET), "EdDSA", headers={"kid": ALICE.id})


def test_token_is_refused_when_its_key_has_not_signed_it() -> None:
    keys = ring(ALICE)
    good = issued(keys).text
    head, claims, signature = good.split(".")
    _, longer, _ = forged(secrets.token_bytes(32)).split(".")
    wrong = [
        *(f"{head}.{longer}.{signature}", f"{head}.{claims}.", f"{head}.{claims}.{signature[:-1]}", f"{good}x"),
        *(f"x{good}", f".{claims}.{signature}", "..", "a.b.c", "[" * 400 + ".a.b", f"{head}.{head}.{signature}"),
        *(forged(SECRET.encode()), forged(None, None), forged(secrets.token_bytes(64), "HS512")),
        *(forged(_signing_key_of("other"), "EdDSA"), forged(_signing_key_of(SECRET), "EdDSA", kid="key-1")),
        new_token(ALICE.id, new_secret(), NOW, None).text,
        new_token("nobody", SECRET, NOW, None).text,
    ]
    for token in wrong:
        assert is_refused(keys, token), token


def test_key_owner_can_sign_tokens_that_a_server_would_issue() -> None:
    keys = ring(ALICE)
    assert owner(keys, signed(CLAIMS)).id == ALICE.id
    assert owner(keys, signed({**CLAIMS, "iat": int(NOW) + CLOCKS_S})).id == ALICE.id
    assert owner(keys, signed({**CLAIMS, "exp": int(NOW) + LIFETIME_S})).id == ALICE.id


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("value", [None, "", "1800000060", True, 1.5, -1, [], {}, float("nan"), 10**40, -(10**40)])
def test_claim_of_a_wrong_type_or_value_is_refused(claim: str, value: Any) -> None:
    assert is_refused(ring(ALICE), signed({**CLAIMS, claim: value}))


@pytest.mark.parametrize("claim", CLAIMS)
def test_missing_claim_is_refused(claim: str) -> None:
    assert is_refused(ring(ALICE), signed({name: value for name, value in CLAIMS.items() if name != claim}))


@pytest.mark.parametrize("payload", [b"", b"null", b"[]", b"1", b"{", b'"x"', b"\xff", b"[" * 300])
def test_token_without_claims_is_refused(payload: bytes) -> None:
    assert is_refused(ring(ALICE), signed(payload))


@pytest.mark.parametrize(
    "times",
    [
        {"exp": int(NOW) + LIFETIME_S + 1},
        {"iat": int(NOW) + CLOCKS_S + 1, "exp": int(NOW) + CLOCKS_S + 60},
        {"iat": int(NOW) + 60, "exp": int(NOW) + 30},
        {"iat": 0},
        {"iat": -(10**40), "exp": 60 - 10**40},
    ],
)
def test_token_of_another_lifetime_is_refused(times: dict[str, int]) -> None:
    assert is_refused(ring(ALICE), signed({**CLAIMS, **times}))


# -- stored values ----------------------------------------------------------------------------------------------


def contents(folder: Path) -> list[str]:
    """Return all values of all tables."""
    with closing(sqlite3.connect(folder / NAME)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = [row for table in tables for row in connection.execute(f"SELECT * FROM {table}")]
    return [str(value) for row in rows for value in row]


def guesses(values: list[str]) -> Iterator[bytes]:
    """Yield the values as possible keys: as text, as bytes from hex, and derived from either with HMAC and HKDF."""
    for value in values:
        raw = [value.encode()]
        with suppress(ValueError):
            raw.append(bytes.fromhex(value))
        for one in raw:
            yield one
            yield hmac.new(one, b"tokka: tokens of a key", hashlib.sha256).digest()
            yield HKDF(SHA256(), length=32, salt=None, info=b"tokka: tokens of a key").derive(one)


def test_the_whole_database_makes_no_token(tmp_path: Path) -> None:
    with closing(open_ledger(None, tmp_path, 1.0)) as ledger:
        created = ledger.create(NewKey("alice", "t", frozenset({"inference"})), int(NOW))
        rotated_key = ledger.rotate(created.row.id, 3600, int(NOW))
        rows = ledger.all_keys()
    assert rotated_key is not None
    keys = ring(*rows)
    for secret in (created.secret, rotated_key.secret):
        assert owner(keys, issued(keys, secret)).id == created.row.id
    values = contents(tmp_path)
    # Check that the guesses include all stored digests and public keys.
    assert {rows[0].digest, rows[0].token_key, rows[0].previous_digest, rows[0].previous_token_key} <= set(values)
    for guess in guesses(values):
        tokens = [raw_token("HS256", created.row.id, partial(hmac.digest, guess, digest="sha256"))]
        if len(guess) == 32:
            tokens.append(raw_token("EdDSA", created.row.id, Ed25519PrivateKey.from_private_bytes(guess).sign))
        for token in tokens:
            assert is_refused(keys, token)


def raw_token(algorithm: str, key_id: str, sign: Callable[[bytes], bytes]) -> str:
    """Return a token made without the library, which refuses a public key as a secret."""
    head = {"alg": algorithm, "typ": "JWT", "kid": key_id}
    parts = [base64url_encode(json.dumps(part).encode()) for part in (head, {**CLAIMS, "sub": key_id})]
    text = b".".join(parts)
    return (text + b"." + base64url_encode(sign(text))).decode()


def test_tokens_made_of_a_secret_are_known_without_it() -> None:
    # Show that the test above would detect a valid token.
    token = raw_token("EdDSA", ALICE.id, _signing_key_of(SECRET).sign)
    assert owner(ring(ALICE), token).id == ALICE.id


def test_tokens_work_when_the_public_key_is_learnt() -> None:
    keys = ring(replace(ALICE, token_key=None))
    token = issued(keys)
    assert is_refused(keys, token)
    found = keys.unlearnt(f"Bearer {SECRET}", NOW)
    assert found == TokenKey(ALICE.id, ALICE.digest, str(ALICE.token_key))
    keys.apply([replace(ALICE, revision=2)], NOW)
    assert owner(keys, token).id == ALICE.id
    assert keys.unlearnt(f"Bearer {SECRET}", NOW) is None


def test_key_that_an_earlier_version_rotated_is_learnt_again() -> None:
    keys = ring(replace(ALICE, token_key=row("the-secret-before").token_key))
    assert is_refused(keys, issued(keys))
    assert keys.unlearnt(f"Bearer {SECRET}", NOW) == TokenKey(ALICE.id, ALICE.digest, str(ALICE.token_key))


@pytest.mark.parametrize("credential", ["unknown", "", "a.b.c"])
def test_only_the_key_itself_is_learnt_from(credential: str) -> None:
    assert ring(replace(ALICE, token_key=None)).unlearnt(f"Bearer {credential}", NOW) is None


# -- length -----------------------------------------------------------------------------------------------------


def test_a_token_is_as_short_as_a_credential_may_be() -> None:
    assert len(new_token("key_0123456789abcdef", "x", NOW, None).text) < MAX_KEY_CHARS * 2 // 3
    keys = ring(ALICE)
    assert is_refused(keys, issued(keys).text + "." * MAX_KEY_CHARS)
