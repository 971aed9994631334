"""The open connections: how many there may be, and which one closes when a new one needs its room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, Protocol

# Connections beyond the limit that are open at once, to answer probes and to say why the rest is refused.
RESERVE = 64
Cut = Literal["header_timeout", "write_timeout", "evicted", "refused"]
# Who sent the last request: nobody with a valid key, anybody on a server without keys, or the holder of a valid key.
Caller = Literal["stranger", "anonymous", "keyed"]
# waiting: between requests, or in the headers of the next one. receiving: the body is incomplete. answering: the
# response is incomplete. stalled: so it is because the client does not read. delivering: the response is complete, and
# the client has yet to read it, or to send the rest of its body.
Stage = Literal["waiting", "receiving", "answering", "stalled", "delivering"]


class Rank(IntEnum):
    """Who makes room first. Within a rank: who has been in it for longest."""

    # Answered without a key, and does not take the answer.
    UNREAD = 0
    # Has not shown a key: silent, incomplete headers, probes.
    STRANGER = 1
    # Its last request was served; the client connects again when it needs to.
    IDLE = 2
    # A request whose key is not known to be valid.
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


class Connection(Protocol):
    def evict(self) -> None:
        """Close at once: the room is needed."""
        ...


class Connections:
    """Counts connections and chooses which one makes room, in the same time however many there are."""

    def __init__(self, limits: Limits, on_cut: Callable[[Cut], None]) -> None:
        self.limits = limits
        self.on_cut = on_cut
        self._ranks: dict[Connection, Rank | None] = {}
        # Dicts, for their order: the one that has waited for longest comes first.
        self._queues: dict[Rank, dict[Connection, None]] = {rank: {} for rank in Rank}
        self._reserve: dict[Connection, None] = {}

    @property
    def count(self) -> int:
        return len(self._ranks) + len(self._reserve)

    def opened(self, connection: Connection) -> bool:
        """Take in a new connection, and evict another one if there is no room. Return whether there is: without room
        the new one may only probe."""
        has_room = len(self._ranks) < self.limits.max_connections or self._evict_first()
        if not has_room:
            if len(self._reserve) >= RESERVE:
                self._evict(next(iter(self._reserve)))
            self._reserve[connection] = None
            return False
        self._ranks[connection] = None
        self.place(connection, "stranger", "waiting")
        return True

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

    def _evict_first(self) -> bool:
        """Evict the connection that makes room first. Return whether there was any."""
        first = next((connection for rank in Rank for connection in self._queues[rank]), None)
        if first is None:
            return False
        self._evict(first)
        return True

    def _evict(self, connection: Connection) -> None:
        # Before its transport says that it is closed: the room is free now.
        self.closed(connection)
        connection.evict()
