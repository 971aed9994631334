"""Static keys: who a header belongs to, and one refusal for everything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokka.accounts.keys import MAX_KEY_CHARS, StaticKeys
from tokka.core import ANONYMOUS
from tokka.errors import InvalidApiKey

FIRST, SECOND = "tk-first-key", "tk-second-key"
KEYS = StaticKeys([FIRST, SECOND])


def refusal(authorization: str | None, keys: StaticKeys = KEYS) -> InvalidApiKey:
    with pytest.raises(InvalidApiKey) as refused:
        keys.verify(authorization)
    return refused.value


def test_each_key_is_a_tenant_of_its_own() -> None:
    assert KEYS.verify(f"Bearer {FIRST}").tenant == "key-1"
    assert KEYS.verify(f"Bearer {SECOND}").tenant == "key-2"


def test_a_static_key_may_generate_and_read_metrics_but_not_administer() -> None:
    assert KEYS.verify(f"Bearer {FIRST}").scopes == {"inference", "metrics"}


@pytest.mark.parametrize("header", [f"bearer {FIRST}", f"BEARER {FIRST}", f"Bearer   {FIRST} "])
def test_the_scheme_is_read_as_http_reads_it(header: str) -> None:
    assert KEYS.verify(header).tenant == "key-1"


@pytest.mark.parametrize(
    "header",
    [
        *(None, "", "Bearer", "Bearer ", FIRST, f"Basic {FIRST}", f"Bearer {FIRST}x", f"Bearer {FIRST[:-1]}"),
        *(f"Bearer {FIRST.upper()}", f"Bearer {FIRST} {SECOND}", f"Bearer {FIRST}{SECOND}", f"Bearer\t{FIRST}"),
        *("Bearer ä", "Bearer \udcff", f"Bearer {FIRST}\x00", "Bearer " + "x" * (MAX_KEY_CHARS + 1)),
    ],
)
def test_whatever_is_wrong_the_refusal_is_the_same(header: str | None) -> None:
    assert refusal(header).body() == refusal("Bearer some-other-key").body()


def test_a_refusal_asks_for_a_bearer_key() -> None:
    assert refusal(None).headers()["www-authenticate"] == "Bearer"


def test_a_refusal_does_not_repeat_the_key() -> None:
    assert "some-other-key" not in refusal("Bearer some-other-key").message


@given(st.text(max_size=30))
def test_nothing_but_a_key_passes(credential: str) -> None:
    if credential.strip() not in (FIRST, SECOND):
        refusal(f"Bearer {credential}")


def test_without_keys_nothing_passes() -> None:
    empty = StaticKeys([])
    assert not empty
    refusal(f"Bearer {FIRST}", empty)


def test_keys_are_true_when_there_are_any() -> None:
    assert StaticKeys([FIRST])


def test_no_key_can_be_read_from_the_memory_of_the_object() -> None:
    assert FIRST not in repr(vars(KEYS))


def test_a_key_longer_than_the_limit_of_headers_still_works_where_it_is_configured() -> None:
    longest = "k" * MAX_KEY_CHARS
    assert StaticKeys([longest]).verify(f"Bearer {longest}").tenant == "key-1"


def test_without_keys_everyone_on_this_machine_may_do_everything() -> None:
    assert ANONYMOUS.scopes == {"inference", "metrics", "admin"}


def test_an_admin_key_may_administer() -> None:
    key = StaticKeys([FIRST], ["tk-admin-key"]).verify("Bearer tk-admin-key")
    assert (key.tenant, key.scopes) == ("admin-1", {"inference", "metrics", "admin"})
