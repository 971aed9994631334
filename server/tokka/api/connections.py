"""The open connections: how many there may be, and which one closes when a new one needs its room."""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, Protocol

# Connections beyond the limit that are open at once, to answer probes and to say why the rest is refused.
RESERVE = 64
Cut = Literal["header_timeout", "write_timeout", "evicted", "refused"]
# full: the server has no room. address_full: the peer's address has as many connections as it may have.
Admission = Literal["welcome", "full", "address_full"]
# The sender of the last request. stranger: has no valid key. anonymous: needs none, since the server has no keys.
Caller = Literal["stranger", "anonymous", "keyed"]
# waiting: between requests, or in the headers of the next one. receiving: the body is incomplete. answering: the
# response is incomplete. stalled: so it is because the client does not read. delivering: the response is complete, and
# the client has yet to read it, or to send the rest of its body.
Stage = Literal["waiting", "receiving", "answering", "stalled", "delivering"]


class Rank(IntEnum):
    """The order in which connections make room. Within a rank, the one that has been in it longest goes first."""

    # No valid key, and the client does not take its response.
    UNREAD = 0
    # No valid key and no complete request: silence, incomplete headers, the time between two probes.
    STRANGER = 1
    # Between two requests that were served. The client connects again when it needs to.
    IDLE = 2
    # A request under way without a valid key.
    PENDING = 3


# Without an entry: never evicted.
_RANKS: dict[tuple[Caller, Stage], Rank] = {
    ("stranger", "waiting"): Rank.STRANGER,
    ("stranger", "receiving"): Rank.PENDING,
    ("stranger", "answering"): Rank.PENDING,
    ("stranger", "stalled"): Rank.UNREAD,
    ("stranger", "delivering"): Rank.UNREAD,
    ("anonymous", "waiting"): Rank.IDLE,
    ("anonymous", "receiving"): Rank.PENDING,
    ("anonymous", "delivering"): Rank.UNREAD,
    ("keyed", "waiting"): Rank.IDLE,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may cost. Seconds and bytes."""

    header_bytes: int
    header_s: float
    write_s: float
    max_connections: int
    # From one peer address; None: no bound.
    max_per_address: int | None = None


class Connection(Protocol):
    def evict(self) -> None:
        """Close at once: the room is needed."""
        ...


class Connections:
    """Counts connections and chooses which one makes room, in the same time however many there are; only the
    connections of an address at its own bound are searched."""

    def __init__(self, limits: Limits, on_cut: Callable[[Cut], None]) -> None:
        self.limits = limits
        self.on_cut = on_cut
        self._ranks: dict[Connection, Rank | None] = {}
        # Dicts, for their order: the one that has waited for longest comes first.
        self._queues: dict[Rank, dict[Connection, None]] = {rank: {} for rank in Rank}
        self._reserve: dict[Connection, None] = {}
        # By peer address, where that has a bound.
        self._addresses: dict[Connection, str] = {}
        self._peers: defaultdict[str, dict[Connection, None]] = defaultdict(dict)

    @property
    def count(self) -> int:
        return len(self._ranks) + len(self._reserve)

    def opened(self, connection: Connection, host: str | None) -> Admission:
        """Take in a new connection, and evict another one if there is no room. Without room the new one may only probe.

        `host`: the peer's address; None for a unix socket, which has no bound of its own.
        """
        address = address_of(host) if host and self.limits.max_per_address else None
        admission = self._admit(address)
        if admission != "welcome":
            if len(self._reserve) >= RESERVE:
                self._evict(next(iter(self._reserve)))
            self._reserve[connection] = None
            return admission
        if address:
            self._addresses[connection] = address
            self._peers[address][connection] = None
        self._ranks[connection] = None
        self.place(connection, "stranger", "waiting")
        return admission

    def place(self, connection: Connection, caller: Caller, stage: Stage) -> None:
        """Note what a connection is doing. One in the reserve, or evicted already, has no place."""
        if connection not in self._ranks:
            return
        rank, before = _RANKS.get((caller, stage)), self._ranks[connection]
        if rank is before:
            return
        if before is not None:
            del self._queues[before][connection]
        if rank is not None:
            self._queues[rank][connection] = None
        self._ranks[connection] = rank

    def closed(self, connection: Connection) -> None:
        """Forget a connection. One that was evicted is forgotten already."""
        self._reserve.pop(connection, None)
        rank = self._ranks.pop(connection, None)
        if rank is not None:
            del self._queues[rank][connection]
        if address := self._addresses.pop(connection, None):
            del self._peers[address][connection]
            if not self._peers[address]:
                del self._peers[address]

    def _admit(self, address: str | None) -> Admission:
        peers = self._peers.get(address, {}) if address else {}
        if address and len(peers) >= (self.limits.max_per_address or 0) and not self._evict_first(self._by_rank(peers)):
            return "address_full"
        everyone = (connection for rank in Rank for connection in self._queues[rank])
        if len(self._ranks) >= self.limits.max_connections and not self._evict_first(everyone):
            return "full"
        return "welcome"

    def _by_rank(self, connections: Iterable[Connection]) -> Iterable[Connection]:
        ranks = [(rank, one) for one in connections if (rank := self._ranks[one]) is not None]
        return (one for _, one in sorted(ranks, key=lambda pair: pair[0]))

    def _evict_first(self, connections: Iterable[Connection]) -> bool:
        """Evict the first of these. Return whether there was any."""
        first = next(iter(connections), None)
        if first is None:
            return False
        self._evict(first)
        return True

    def _evict(self, connection: Connection) -> None:
        # Before its transport says that it is closed: the room is free now.
        self.closed(connection)
        connection.evict()


def address_of(host: str) -> str:
    """Return what counts as one peer address: an IPv4 address, or the /64 that an IPv6 host chooses its own from."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
