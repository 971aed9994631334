"""Tokens of keys: what they may do, when they end, and that only their key makes them."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import replace

import jwt
import pytest

from tests.accounts.test_keys import NOW, SECRET, Issuer, refusal, ring, row
from tokka.accounts.credential import MAX_KEY_CHARS, digest_of, new_secret
from tokka.accounts.keys import KeyRing
from tokka.accounts.tokens import LIFETIME_S, Token, new_token
from tokka.core import Key, Limits
from tokka.errors import InvalidApiKey, PermissionDenied

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
        # The same whatever was wrong.
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
    # Told apart from a wrong one, and only to who has it: its user else looks for a mistake in the key.
    with pytest.raises(InvalidApiKey, match=r"expired at 20\d\d-.*/authenticate_with_key"):
        owner(keys, token, NOW + LIFETIME_S)
    assert is_refused(keys, f"{token.text[:-3]}abc", NOW + LIFETIME_S)


def test_a_token_is_good_no_longer_than_its_key() -> None:
    keys = ring(replace(ALICE, expires_at=int(NOW) + 60))
    token = issued(keys)
    assert token.expires_in == 60
    assert is_refused(keys, token, NOW + 60)
    # Also where somebody has made one that says otherwise.
    longer = new_token(ALICE.id, digest_of(SECRET), NOW, None)
    assert not is_refused(keys, longer, NOW + 59)
    assert is_refused(keys, longer, NOW + 60)


def test_revoking_the_key_ends_its_tokens() -> None:
    keys = ring(ALICE)
    token = issued(keys)
    keys.apply([replace(ALICE, revoked_at=int(NOW), revision=2)])
    assert is_refused(keys, token)


def test_a_rotation_ends_tokens_of_the_old_secret_with_it() -> None:
    keys = ring(ALICE)
    old = issued(keys)
    rotated = row("new-secret", id=ALICE.id, previous_digest=ALICE.digest, previous_until=int(NOW) + 100, revision=2)
    keys.apply([rotated])
    assert owner(keys, old, NOW + 99).id == ALICE.id
    assert owner(keys, issued(keys, "new-secret"), NOW + 200).id == ALICE.id
    assert is_refused(keys, old, NOW + 100)


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


def test_without_keys_there_is_a_token_that_is_of_no_use_once_there_are_some() -> None:
    keys = KeyRing()
    token = keys.issue(None, NOW)
    assert token.expires_in == LIFETIME_S
    keys.apply([ALICE])
    assert is_refused(keys, token)


CLAIMS = {"iss": "tokka", "sub": ALICE.id, "iat": int(NOW), "exp": int(NOW) + 60}


def forged(secret: bytes | None, algorithm: str | None = "HS256", kid: object = ALICE.id) -> str:
    return jwt.encode(CLAIMS, secret, algorithm, headers={"kid": kid})  # type: ignore[arg-type]


def test_what_the_key_has_not_signed_is_refused() -> None:
    keys = ring(ALICE)
    good = issued(keys).text
    head, claims, signature = good.split(".")
    _, longer, _ = forged(secrets.token_bytes(32)).split(".")
    wrong = [
        *(f"{head}.{longer}.{signature}", f"{head}.{claims}.", f"{head}.{claims}.{signature[:-1]}", f"{good}x"),
        *(f"x{good}", f".{claims}.{signature}", "..", "a.b.c", "[" * 400 + ".a.b", f"{head}.{head}.{signature}"),
        # The stored hash itself is not the secret, nor is the key.
        *(forged(digest_of(SECRET)), forged(ALICE.digest.encode()), forged(SECRET.encode())),
        *(forged(None, None), forged(secrets.token_bytes(64), "HS512")),
        *(forged(digest_of(SECRET), kid="key-1"), new_token("nobody", digest_of(SECRET), NOW, None).text),
        new_token(ALICE.id, digest_of(new_secret()), NOW, None).text,
    ]
    for token in wrong:
        assert is_refused(keys, token), token


def test_a_token_is_as_short_as_a_credential_may_be() -> None:
    assert len(new_token("admin-999", bytes(32), NOW, None).text) < MAX_KEY_CHARS // 2
    keys = ring(ALICE)
    assert is_refused(keys, issued(keys).text + "." * MAX_KEY_CHARS)


def test_signatures_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ring(ALICE)
    token = issued(keys)
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    assert owner(keys, token)
    assert any(a == b and len(a) == 32 for a, b in compared)
