"""Limits and eviction of connections, tested without sockets."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from tokka.api.connections import RESERVE, Caller, Connections, Cut, Limits, Stage, address_of

Place = tuple[Caller, Stage]
HERE, THERE = "127.0.0.1", "192.0.2.7"
STRANGER_WAITING: Place = ("stranger", "waiting")
KEYED_WAITING: Place = ("keyed", "waiting")
KEYED_ANSWERING: Place = ("keyed", "answering")
# The eviction order. In a group, the connection that has been in it longest is evicted first.
ORDER: list[set[tuple[Caller, Stage]]] = [
    {("stranger", "stalled"), ("stranger", "delivering"), ("anonymous", "delivering")},
    {("stranger", "waiting")},
    {("anonymous", "waiting"), ("keyed", "waiting")},
    {("stranger", "receiving"), ("stranger", "answering"), ("anonymous", "receiving")},
]
NEVER: set[tuple[Caller, Stage]] = {
    ("keyed", "receiving"),
    ("keyed", "answering"),
    ("keyed", "delivering"),
    ("keyed", "stalled"),
    ("anonymous", "answering"),
    ("anonymous", "stalled"),
}


class One:
    """A connection that records its eviction."""

    evicted = False

    def evict(self) -> None:
        self.evicted = True


def full(*places: tuple[Caller, Stage], per_address: int | None = None) -> tuple[Connections, list[One]]:
    """Return a registry at its limit, with connections in these places, oldest first."""
    cuts: list[Cut] = []
    limits = Limits(1000, 1, 1, len(places), per_address)
    connections = Connections(limits, cuts.append)
    ones = [One() for _ in places]
    for one in ones:
        assert connections.opened(one, HERE) == "welcome"
    for one, (caller, stage) in zip(ones, places, strict=True):
        connections.place(one, caller, stage)
    return connections, ones


def test_every_place_has_its_rank() -> None:
    known = NEVER.union(*ORDER)
    assert known == {(caller, stage) for caller in get_args(Caller) for stage in get_args(Stage)}


def test_ranks_make_room_in_order() -> None:
    places = [place for group in reversed(ORDER) for place in sorted(group)] + sorted(NEVER)
    connections, ones = full(*places)
    newcomers = [One() for _ in places]
    evicted: list[tuple[Caller, Stage]] = []
    for newcomer in newcomers:
        if connections.opened(newcomer, HERE) != "welcome":
            break
        # Prevent the eviction of the newcomer itself.
        connections.place(newcomer, "keyed", "answering")
        evicted += [place for one, place in zip(ones, places, strict=True) if one.evicted and place not in evicted]
    assert [group for group in ORDER for _ in group] == [
        next(group for group in ORDER if place in group) for place in evicted
    ]
    assert not any(one.evicted for one in newcomers)


@pytest.mark.parametrize("place", sorted(NEVER))
def test_work_with_a_key_is_never_evicted(place: tuple[Caller, Stage]) -> None:
    connections, ones = full(place, place)
    assert connections.opened(One(), HERE) == "full"
    assert not any(one.evicted for one in ones)


def test_longest_in_its_rank_makes_room_first() -> None:
    connections, (first, second, third) = full(*[KEYED_WAITING] * 3)
    connections.place(first, "keyed", "answering")
    connections.place(first, "keyed", "waiting")
    assert connections.opened(One(), HERE) == "welcome"
    assert (first.evicted, second.evicted, third.evicted) == (False, True, False)


def test_silence_does_not_renew_a_place() -> None:
    connections, (first, second) = full(*[STRANGER_WAITING] * 2)
    connections.place(first, "stranger", "waiting")
    connections.opened(One(), HERE)
    assert (first.evicted, second.evicted) == (True, False)


def test_evicted_room_is_free_at_once() -> None:
    connections, ones = full(*[STRANGER_WAITING] * 3)
    assert [connections.opened(One(), HERE) for _ in range(3)] == ["welcome"] * 3
    assert all(one.evicted for one in ones)
    assert connections.count == 3
    for one in ones:
        connections.closed(one)
    assert connections.count == 3


def test_newcomers_beyond_the_bound_are_in_the_reserve() -> None:
    connections, _ = full(("keyed", "answering"))
    newcomers = [One() for _ in range(RESERVE + 2)]
    # Evicting one newcomer from the reserve does not admit another.
    assert {connections.opened(one, HERE) for one in newcomers} == {"full"}
    assert [one.evicted for one in newcomers] == [True] * 2 + [False] * RESERVE
    assert connections.count == 1 + RESERVE


def test_reserve_is_freed_by_its_own_connections() -> None:
    connections, (busy,) = full(("keyed", "answering"))
    newcomer = One()
    connections.opened(newcomer, HERE)
    connections.place(newcomer, "stranger", "waiting")
    connections.closed(newcomer)
    assert connections.count == 1
    connections.closed(busy)
    assert connections.opened(One(), HERE) == "welcome"


def at_its_bound(*places: tuple[Caller, Stage]) -> tuple[Connections, list[One]]:
    """Return a registry with room, and one address at its own limit."""
    connections, ones = full(*places, per_address=len(places))
    connections.limits = replace(connections.limits, max_connections=100)
    return connections, ones


def test_address_at_its_bound_gives_of_its_own_room() -> None:
    connections, ones = at_its_bound(("keyed", "answering"), ("keyed", "waiting"), ("stranger", "waiting"))
    other = One()
    assert connections.opened(other, THERE) == "welcome"
    connections.place(other, "stranger", "delivering")
    assert [connections.opened(One(), HERE) for _ in range(2)] == ["welcome"] * 2
    assert [one.evicted for one in (*ones, other)] == [False, False, True, False]


def test_busy_address_at_its_bound_is_refused_alone() -> None:
    connections, ones = at_its_bound(*[KEYED_ANSWERING] * 3)
    assert connections.opened(One(), HERE) == "address_full"
    assert connections.opened(One(), THERE) == "welcome"
    connections.closed(ones[0])
    assert connections.opened(One(), HERE) == "welcome"


def test_unix_socket_has_no_bound_of_an_address() -> None:
    connections = Connections(Limits(1000, 1, 1, 100, 1), lambda reason: None)
    ones = [One() for _ in range(50)]
    assert {connections.opened(one, None) for one in ones} == {"welcome"}
    assert not any(one.evicted for one in ones)


def test_address_without_connections_is_forgotten() -> None:
    connections, (busy,) = full(("keyed", "answering"), per_address=2)
    for number in range(200):
        one = One()
        # The first half is refused: the busy connection takes the only place.
        connections.opened(one, f"10.0.0.{number}")
        connections.closed(one)
        if number == 100:
            connections.closed(busy)
    assert len(connections._peers) == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%eth0", "fe80::1", True),
    ],
)
def test_address_is_an_ipv4_host_or_an_ipv6_network(one: str, other: str, same: bool) -> None:
    assert (address_of(one) == address_of(other)) is same
