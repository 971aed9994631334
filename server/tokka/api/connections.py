"""Open connections: their limits, and which one closes to make room for a new one."""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, Protocol

# Maximum connections open beyond the limit, to answer probes and to refuse other requests with a reason.
RESERVE = 64
Cut = Literal["header_timeout", "write_timeout", "evicted", "refused"]
# full: the server is at its connection limit. address_full: the peer's address is at its limit.
Admission = Literal["welcome", "full", "address_full"]
# The sender of the connection's last request. stranger: has no valid key. anonymous: needs no key.
Caller = Literal["stranger", "anonymous", "keyed"]
# waiting: between requests, or in the headers of the next one. receiving: the body is incomplete. answering: the
# response is incomplete. stalled: the response is incomplete because the client does not read. delivering: the
# response is complete, and the client has yet to read it or to send the rest of its body.
Stage = Literal["waiting", "receiving", "answering", "stalled", "delivering"]


class Rank(IntEnum):
    """The eviction order: lowest rank first, and within a rank the connection that has been in it longest."""

    # No valid key, and the client does not read its response.
    UNREAD = 0
    # No valid key and no complete request: silence, incomplete headers, the time between two probes.
    STRANGER = 1
    # Between two served requests. The client can reconnect.
    IDLE = 2
    # An in-flight request without a valid key.
    PENDING = 3


# Pairs without an entry are never evicted.
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
    """Limits on connections, in seconds and bytes."""

    header_bytes: int
    header_s: float
    write_s: float
    max_connections: int
    # Maximum connections from one peer address; None: no limit.
    max_per_address: int | None = None


class Connection(Protocol):
    """A connection that can be evicted."""

    def evict(self) -> None:
        """Close at once to make room."""
        ...


class Connections:
    """Count connections and choose which one to evict.

    The choice takes constant time. Only the connections of an address at its own limit are searched.
    """

    def __init__(self, limits: Limits, on_cut: Callable[[Cut], None]) -> None:
        self.limits = limits
        self.on_cut = on_cut
        self._ranks: dict[Connection, Rank | None] = {}
        # Dicts, for their order: the connection that has waited longest comes first.
        self._queues: dict[Rank, dict[Connection, None]] = {rank: {} for rank in Rank}
        self._reserve: dict[Connection, None] = {}
        # The connections' peer addresses, if addresses have a limit.
        self._addresses: dict[Connection, str] = {}
        self._peers: defaultdict[str, dict[Connection, None]] = defaultdict(dict)

    @property
    def count(self) -> int:
        return len(self._ranks) + len(self._reserve)

    def opened(self, connection: Connection, host: str | None) -> Admission:
        """Register a new connection, and evict another one if there is no room. Without room, it may only probe.

        `host`: the peer's address; None for a unix socket, which has no limit of its own.
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
        """Rank a connection by caller and stage. Connections in the reserve and evicted ones have no rank."""
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
        """Forget a connection. An evicted one is already forgotten."""
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
        """Evict the first connection. Return whether there was one."""
        first = next(iter(connections), None)
        if first is None:
            return False
        self._evict(first)
        return True

    def _evict(self, connection: Connection) -> None:
        # Free the room now, before the transport reports that the connection is closed.
        self.closed(connection)
        connection.evict()


def address_of(host: str) -> str:
    """Return the address that the limit counts: an IPv4 address, or the /64 from which an IPv6 host picks its own."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
