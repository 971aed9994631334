"""Keys in memory: the key of each valid header, and one error for all others."""

from __future__ import annotations

import gc
import hmac
import sys
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.accounts.rings import FIRST, KEYS, NOW, SECOND, SECRET, Issuer, refusal, ring, row
from tokka.accounts.credential import MAX_KEY_CHARS, new_secret
from tokka.accounts.keys import KeyRing
from tokka.accounts.tokens import new_token
from tokka.core import ANONYMOUS, Key, Limits
from tokka.errors import InvalidApiKey


def test_each_key_is_a_tenant_of_its_own() -> None:
    assert KEYS.verify(f"Bearer {FIRST}", NOW).tenant == "key-1"
    assert KEYS.verify(f"Bearer {SECOND}", NOW).tenant == "key-2"


def test_a_static_key_has_the_scope_inference_only() -> None:
    assert KEYS.verify(f"Bearer {FIRST}", NOW).scopes == {"inference"}


def test_a_metrics_key_has_the_scope_metrics_only() -> None:
    key = KeyRing([FIRST], metrics_keys=["tk-metrics-key"]).verify("Bearer tk-metrics-key", NOW)
    assert (key.tenant, key.scopes) == ("metrics-1", frozenset({"metrics"}))


@pytest.mark.parametrize("header", [f"bearer {FIRST}", f"BEARER {FIRST}", f"Bearer   {FIRST} "])
def test_the_scheme_is_read_as_http_reads_it(header: str) -> None:
    assert KEYS.verify(header, NOW).tenant == "key-1"


@pytest.mark.parametrize(
    "header",
    [
        *(f"Bearer {FIRST}x", f"Bearer {FIRST[:-1]}"),
        *(f"Bearer {FIRST.upper()}", f"Bearer {FIRST} {SECOND}", f"Bearer {FIRST}{SECOND}"),
        *("Bearer ä", "Bearer \udcff", f"Bearer {FIRST}\x00", "Bearer " + "x" * (MAX_KEY_CHARS + 1)),
    ],
)
def test_whatever_is_wrong_the_refusal_is_the_same(header: str | None) -> None:
    assert refusal(header).body() == refusal("Bearer some-other-key").body()


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", FIRST, f"Basic {FIRST}", f"Bearer\t{FIRST}"])
def test_missing_key_is_refused_as_missing(header: str | None) -> None:
    assert refusal(header).message == "No API key was sent as `Authorization: Bearer KEY`."


def test_a_refusal_asks_for_a_bearer_key() -> None:
    assert refusal(None).headers()["www-authenticate"] == "Bearer"


def test_a_refusal_does_not_repeat_the_key() -> None:
    assert "some-other-key" not in refusal("Bearer some-other-key").message


@given(st.text(max_size=30))
def test_nothing_but_a_key_passes(credential: str) -> None:
    if credential.strip() not in (FIRST, SECOND):
        refusal(f"Bearer {credential}")


def test_without_keys_nothing_passes() -> None:
    empty = KeyRing([])
    assert not empty.is_protected
    refusal(f"Bearer {FIRST}", empty)


def test_one_key_protects() -> None:
    assert KeyRing([FIRST]).is_protected


@pytest.mark.parametrize(
    ("ring", "several"),
    [
        (KeyRing(), False),
        (KeyRing([FIRST]), False),
        (KeyRing([FIRST, FIRST], ["tk-admin-key"], metrics_keys=["tk-metrics-key"]), False),
        (KeyRing([FIRST, SECOND]), True),
    ],
)
def test_operators_are_no_tenants_beside_a_user(ring: KeyRing, several: bool) -> None:
    assert ring.has_several_tenants == several


def test_no_key_can_be_read_from_the_memory_of_the_object() -> None:
    assert FIRST not in repr(vars(KEYS))


def test_configured_key_works_when_it_has_the_maximum_length() -> None:
    longest = "k" * MAX_KEY_CHARS
    assert KeyRing([longest]).verify(f"Bearer {longest}", NOW).tenant == "key-1"


def test_the_anonymous_key_has_the_scope_inference_only() -> None:
    assert ANONYMOUS.scopes == {"inference"}


def test_an_admin_key_may_administer() -> None:
    key = KeyRing([FIRST], ["tk-admin-key"]).verify("Bearer tk-admin-key", NOW)
    assert (key.tenant, key.scopes) == ("admin-1", frozenset({"inference", "metrics", "admin"}))


# -- keys of the database ---------------------------------------------------------------------------------------


def test_secret_has_a_fixed_prefix_and_256_random_bits() -> None:
    assert SECRET.startswith("tk-")
    assert len(SECRET) == 46
    assert new_secret() != SECRET


def test_stored_key_has_its_permissions_and_limits() -> None:
    stored = row(limits=Limits(rpm=3), models=frozenset({"m"}))
    key = ring(stored).verify(f"Bearer {SECRET}", NOW)
    assert key == Key("key_1", "t", frozenset({"inference"}), Limits(rpm=3), frozenset({"m"}))


def test_an_expired_key_is_refused_from_its_very_second_on() -> None:
    keys = ring(row(expires_at=int(NOW)))
    assert keys.verify(f"Bearer {SECRET}", NOW - 0.001).id == "key_1"
    with pytest.raises(InvalidApiKey) as refused:
        keys.verify(f"Bearer {SECRET}", NOW)
    assert refused.value.body() == refusal("Bearer wrong").body()


def test_a_revoked_key_is_refused_as_an_unknown_one_and_opens_nothing() -> None:
    keys = ring(row())
    keys.apply([row(revoked_at=int(NOW), revision=2)], NOW)
    assert refusal(f"Bearer {SECRET}", keys).body() == refusal("Bearer wrong").body()
    assert keys.is_protected


@pytest.mark.parametrize("fields", [{"revoked_at": int(NOW)}, {"expires_at": int(NOW)}])
def test_unusable_key_protects_only_a_ring_that_had_an_active_one(fields: dict[str, Any]) -> None:
    keys = ring(row(**fields))
    assert not keys.is_protected
    assert (keys.stored(NOW), keys.unusable(NOW)) == (0, 1)
    keys = ring(row())
    keys.apply([row(**fields, revision=2)], NOW)
    assert keys.is_protected
    assert keys.rule(NOW) == "keys required: 0 active"


def test_older_revision_changes_nothing() -> None:
    keys = ring(row(revoked_at=int(NOW), revision=2))
    keys.apply([row(revision=1)], NOW)
    refusal(f"Bearer {SECRET}", keys)


def test_stale_row_holds_up_no_revocation_beside_it() -> None:
    keys = ring(row(revision=2), row(new_secret(), id="key_2"))
    other = new_secret()
    keys.apply([row(revision=1), row(other, id="key_2", revision=2)], NOW)
    assert keys.verify(f"Bearer {other}", NOW).id == "key_2"
    keys.apply([row(revision=1), row(other, id="key_2", revoked_at=int(NOW), revision=3)], NOW)
    refusal(f"Bearer {other}", keys)


def test_previous_secret_without_a_time_is_refused() -> None:
    keys = ring(row(new_secret(), previous_digest=row().digest, previous_until=None))
    refusal(f"Bearer {SECRET}", keys)


def test_token_of_the_previous_secret_outlives_a_rotation() -> None:
    # An earlier version rotated the key, so the public half for the new secret's tokens is missing.
    rotated = {"previous_digest": row().digest, "previous_until": int(NOW) + 60, "previous_token_key": row().token_key}
    keys = ring(row(new_secret(), token_key=None, **rotated))
    token = new_token("key_1", SECRET, NOW, None)
    assert keys.verify(f"Bearer {token.text}", NOW).id == "key_1"


def test_rotation_accepts_the_old_secret_during_the_grace_time() -> None:
    new = new_secret()
    keys = ring(row())
    keys.apply([row(new, previous_digest=row().digest, previous_until=int(NOW) + 60, revision=2)], NOW)
    for secret in (SECRET, new):
        assert keys.verify(f"Bearer {secret}", NOW + 59).id == "key_1"
    assert keys.verify(f"Bearer {new}", NOW + 60).id == "key_1"
    with pytest.raises(InvalidApiKey):
        keys.verify(f"Bearer {SECRET}", NOW + 60)


def test_a_second_rotation_ends_the_first_secret() -> None:
    second, third = new_secret(), new_secret()
    keys = ring(row(second, previous_digest=row().digest, previous_until=int(NOW) + 60, revision=2))
    keys.apply([row(third, previous_digest=row(second).digest, previous_until=int(NOW) + 60, revision=3)], NOW)
    refusal(f"Bearer {SECRET}", keys)
    assert {keys.verify(f"Bearer {secret}", NOW).id for secret in (second, third)} == {"key_1"}


def test_a_rotated_secret_does_not_outlive_its_key() -> None:
    new = new_secret()
    keys = ring(row(new, previous_digest=row().digest, previous_until=int(NOW) + 60, expires_at=int(NOW) + 5))
    with pytest.raises(InvalidApiKey):
        keys.verify(f"Bearer {SECRET}", NOW + 5)


def test_a_secret_followed_by_more_than_a_key_can_have_is_refused() -> None:
    longest = "k" * MAX_KEY_CHARS
    refusal(f"Bearer {longest}k", KeyRing([longest]))


def operations(keys: KeyRing, header: str) -> int:
    """Count the lines and calls that a verification executes."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event in ("line", "call")
        return trace

    before = sys.gettrace()
    # A garbage collection would run finalizers of other tests, and their lines would count.
    gc.disable()
    sys.settrace(trace)
    try:
        keys.verify(header, NOW)
    except InvalidApiKey:
        pass
    finally:
        sys.settrace(before)
        gc.enable()
    return count


@pytest.fixture(scope="module")
def many() -> KeyRing:
    rows = (row(f"secret-{number}", id=f"key_{number}") for number in range(9_999))
    return ring(row(id="mine"), *rows)


@pytest.mark.parametrize("credential", [SECRET, "unknown", "x" * 9000])
def test_verifying_takes_the_same_steps_with_10_keys_and_with_10000(many: KeyRing, credential: str) -> None:
    few = ring(row(id="mine"), *(row(f"secret-{number}", id=f"key_{number}") for number in range(9)))
    assert operations(few, f"Bearer {credential}") == operations(many, f"Bearer {credential}") > 0


def test_each_verification_compares_one_digest_in_constant_time(many: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    many.verify(f"Bearer {SECRET}", NOW)
    refusal("Bearer unknown", many)
    assert [len(a) + len(b) for a, b in compared] == [64, 64]


@pytest.fixture
def issuer() -> Issuer:
    Issuer.asked = []
    return Issuer()


def test_key_ring_passes_a_long_token_to_the_issuer_uncut(issuer: Issuer) -> None:
    keys = KeyRing(tokens=issuer)
    token = f"{'h' * 600}.{'p' * 600}.s"
    assert keys.verify(f"Bearer {token}", NOW).id == "oidc:a"
    assert issuer.asked == [token]
    assert keys.is_protected


@pytest.mark.parametrize(
    "header", ["Bearer unknown", "Bearer a.b", "Bearer a.b.c.d", "Basic a.b.c", f"Bearer {SECRET}"]
)
def test_nothing_else_is(issuer: Issuer, header: str) -> None:
    refusal(header, KeyRing(tokens=issuer))
    assert issuer.asked == []


def test_a_key_of_ours_may_look_like_a_token(issuer: Issuer) -> None:
    assert KeyRing(["a.b.c"], tokens=issuer).verify("Bearer a.b.c", NOW).id == "key-1"
    assert issuer.asked == []


def test_a_change_of_a_key_leaves_the_others_alone() -> None:
    other = new_secret()
    keys = ring(row(), row(other, id="key_2"))
    keys.apply([replace(row(), revoked_at=1, revision=2)], NOW)
    assert keys.verify(f"Bearer {other}", NOW).id == "key_2"
