"""The open connections: how many there may be, which of them wait for a request, and who has to go when it is full."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

# Beyond the limit: enough for probes and for saying why, before connections are closed unseen.
RESERVE = 64
Cut = Literal["header_timeout", "write_timeout", "evicted", "refused"]


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
    """Counts connections and knows those without a request under way, the longest waiting first."""

    def __init__(self, limits: Limits, on_cut: Callable[[Cut], None]) -> None:
        self.limits = limits
        self.on_cut = on_cut
        self.count = 0
        # A dict, for its order.
        self._waiting: dict[Connection, None] = {}

    def opened(self, connection: Connection) -> Literal["welcome", "probes_only", "full"]:
        """Take a new connection in, closing one that waits if there is no room. Says what the new one may do."""
        self.count += 1
        room = self.limits.max_connections - self.count
        if room < 0 and self._waiting:
            longest = next(iter(self._waiting))
            del self._waiting[longest]
            longest.evict()
            room = 0
        self._waiting[connection] = None
        if room >= 0:
            return "welcome"
        return "probes_only" if room >= -RESERVE else "full"

    def closed(self, connection: Connection) -> None:
        self.count -= 1
        self._waiting.pop(connection, None)

    def is_busy(self, connection: Connection) -> None:
        """Note that a request is under way."""
        self._waiting.pop(connection, None)

    def waits(self, connection: Connection) -> None:
        """Note that the connection's requests are done, and the next has yet to come."""
        self._waiting[connection] = None
