"""Quotas shared by servers: leases never exceed the remaining tokens, and go to the servers that want them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.store.databases import Postgres
from tokka.accounts.accounts import Accounts
from tokka.accounts.admin_views import NewKey
from tokka.accounts.keys import KeyRing
from tokka.accounts.leases import Claim, left_of, renewed
from tokka.accounts.ledger import open_ledger
from tokka.admission.allowance import Allowance, Allowances
from tokka.core import Key, Limits, RequestRecord
from tokka.errors import QuotaExceeded, RateLimited
from tokka.store.rows import Lease

QUOTA = Limits(daily_tokens=400)


def claim(in_use: int = 0, wanted: int = 0, floor: int = 0) -> Claim:
    return Claim(QUOTA, in_use, wanted, floor)


@pytest.mark.parametrize(
    ("left", "servers", "claimed", "known", "tokens"),
    [
        (400, 1, claim(), {}, 400),
        (400, 1, claim(in_use=500), {}, 400),
        (400, 2, claim(), {}, 200),
        # Another server's lease is not available, and its tokens in use are not free.
        (400, 2, claim(), {"b": Lease(400)}, 0),
        (400, 2, claim(), {"b": Lease(200, in_use=100)}, 150),
        # A server gets its wanted tokens before the rest is shared.
        (100, 2, claim(wanted=80), {"b": Lease(0)}, 90),
        (100, 2, claim(), {"b": Lease(50, wanted=80)}, 10),
        # Two servers want the last tokens: the first by name gets them.
        (100, 2, claim(wanted=60), {"b": Lease(40, wanted=60)}, 60),
        (100, 2, claim(wanted=60), {"0": Lease(40, wanted=60)}, 20),
        # Requests may take the floor during the renewal.
        (100, 2, claim(floor=70), {"b": Lease(30)}, 70),
        (100, 2, claim(floor=70), {"b": Lease(50)}, 50),
    ],
)
def test_lease_has_used_and_wanted_tokens_and_an_equal_share(
    left: int, servers: int, claimed: Claim, known: dict[str, Lease], tokens: int
) -> None:
    assert renewed(left, servers, "a", claimed, known).tokens == tokens


def test_left_is_the_least_of_day_and_month() -> None:
    assert left_of(Limits(daily_tokens=10, monthly_tokens=100), 4, 97) == 3
    assert left_of(Limits(daily_tokens=10), 14, 97) == 0


NUMBERS = st.integers(0, 500)


@given(
    st.integers(0, 1000),
    st.lists(st.tuples(st.sampled_from("abc"), NUMBERS, NUMBERS, NUMBERS), max_size=20),
)
def test_leases_never_exceed_the_tokens_left(left: int, steps: list[tuple[str, int, int, int]]) -> None:
    leases: dict[str, Lease] = {}
    for writer, in_use, wanted, floor in steps:
        leases[writer] = renewed(left, 3, writer, claim(in_use, wanted, floor), leases)
        assert sum(lease.tokens for lease in leases.values()) <= left


class Server:
    """The accounts and allowances of one server. The test synchronises them."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.accounts = Accounts(KeyRing(), lambda: open_ledger(url, folder, 1.0), is_optional=False)
        self.allowances = Allowances(self.accounts.spent, self.accounts.want)
        self.accounts.reserved = self.allowances.reserved

    def reserve(self, key: Key, tokens: int) -> Allowance:
        allowance = self.allowances.open(key, time.monotonic())
        allowance.reserve(tokens, time.monotonic())
        return allowance

    def finish(self, key: Key, allowance: Allowance, used: int) -> None:
        record = RequestRecord(id="r", arrived_s=0.0)
        record.key, record.model, record.prompt_tokens = key, "m", used
        self.accounts.count(record)
        allowance.settle(used, time.monotonic())

    def fill(self, key: Key, tokens: int) -> int:
        """Reserve until this server refuses. Return the reserved tokens."""
        reserved = 0
        with contextlib.suppress(QuotaExceeded, RateLimited):
            while True:
                self.reserve(key, tokens)
                reserved += tokens
        return reserved


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str | None:
    if request.param == "sqlite":
        return None
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.new_database()


@pytest.fixture
async def pair(tmp_path: Path, url: str | None) -> AsyncIterator[tuple[Server, Server]]:
    servers = Server(tmp_path, url), Server(tmp_path, url)
    for server in servers:
        await server.accounts.open()
    yield servers
    for server in servers:
        await server.accounts.close()


async def made(pair: tuple[Server, Server], limits: Limits = QUOTA) -> Key:
    """Create a key and share its quota between both servers."""
    issued = await pair[0].accounts.create(NewKey("a", "a", frozenset({"inference"}), limits))
    await synchronize(pair)
    return pair[0].accounts.ring.verify(f"Bearer {issued.secret}", time.time())


async def synchronize(servers: tuple[Server, Server], times: int = 3) -> None:
    for _ in range(times):
        for server in servers:
            await server.accounts.synchronize()


@pytest.mark.parametrize("limits", [QUOTA, Limits(monthly_tokens=400)])
async def test_two_servers_grant_one_quota(pair: tuple[Server, Server], limits: Limits) -> None:
    key = await made(pair, limits)
    assert [server.fill(key, 10) for server in pair] == [200, 200]
    await synchronize(pair)
    assert [server.fill(key, 10) for server in pair] == [0, 0]


async def test_server_gets_tokens_that_the_other_does_not_use(pair: tuple[Server, Server]) -> None:
    key = await made(pair)
    with pytest.raises(RateLimited) as refused:
        pair[0].reserve(key, 400)
    assert refused.value.headers()["retry-after"] == "2"
    await synchronize(pair)
    pair[0].reserve(key, 400)
    with pytest.raises(RateLimited):
        pair[1].reserve(key, 1)


async def test_prepared_tokens_count_as_wanted(pair: tuple[Server, Server]) -> None:
    key = await made(pair)
    allowance = pair[0].allowances.open(key, time.monotonic())
    allowance.prepare(150, time.monotonic())
    with pytest.raises(RateLimited):
        allowance.reserve(400, time.monotonic())
    allowance.settle(0, time.monotonic(), served=False)
    await synchronize(pair)
    pair[0].reserve(key, 400)


async def test_used_up_quota_is_final_on_both_servers(pair: tuple[Server, Server]) -> None:
    key = await made(pair)
    for server in pair:
        server.finish(key, server.reserve(key, 200), 200)
    await synchronize(pair)
    for server in pair:
        with pytest.raises(QuotaExceeded):
            server.reserve(key, 1)


async def test_tokens_that_were_not_used_come_back(pair: tuple[Server, Server]) -> None:
    key = await made(pair)
    held = [server.reserve(key, 200) for server in pair]
    pair[1].finish(key, held[1], 50)
    await synchronize(pair)
    assert [server.fill(key, 5) for server in pair] == [75, 75]


async def test_lease_of_a_stopped_server_comes_back(tmp_path: Path, url: str | None) -> None:
    pair = Server(tmp_path, url), Server(tmp_path, url)
    for server in pair:
        await server.accounts.open()
    key = await made(pair)
    await pair[1].accounts.close()
    await pair[0].accounts.synchronize()
    assert pair[0].fill(key, 10) == 400
    await pair[0].accounts.close()


async def test_lease_of_a_killed_server_lapses(pair: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch) -> None:
    key = await made(pair)
    monkeypatch.setattr("tokka.store.leases.GONE_S", -1)
    monkeypatch.setattr("tokka.store.leases.SIGN_S", -1)
    await pair[0].accounts.synchronize()
    assert pair[0].fill(key, 10) == 400


async def test_new_key_is_usable_where_it_was_made(pair: tuple[Server, Server]) -> None:
    await made(pair)
    issued = await pair[0].accounts.create(NewKey("b", "b", frozenset({"inference"}), QUOTA))
    key = pair[0].accounts.ring.verify(f"Bearer {issued.secret}", time.time())
    assert pair[0].fill(key, 10) == 200
    # The other server knows the key, but grants nothing before it has a lease.
    pair[1].accounts.ring.apply([issued.row], time.time())
    assert pair[1].fill(key, 10) == 0
    await synchronize(pair)
    # Half of the remaining tokens.
    assert pair[1].fill(key, 10) == 100


async def test_server_alone_grants_the_whole_quota_at_once(tmp_path: Path) -> None:
    server = Server(tmp_path)
    await server.accounts.open()
    issued = await server.accounts.create(NewKey("a", "a", frozenset({"inference"}), QUOTA))
    key = server.accounts.ring.verify(f"Bearer {issued.secret}", time.time())
    renewing = asyncio.create_task(server.accounts.synchronize())
    assert server.fill(key, 10) == 400
    await renewing
    assert server.fill(key, 10) == 0
    await server.accounts.close()
