"""Quotas that several servers share: each holds a lease, a part of what is left, and asks nobody while that lasts.

For each key, written usage and all leases together are at most the quota. A transaction keeps it so, twice a second and
beside the requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tokka.core import Limits
from tokka.store.rows import Lease, UsageRow

# Seconds that a refused request is remembered: the others need half a second to give up what they do not use, the
# client one to come back.
_WANTED_S = 5.0
# The part that requests may take during a renewal, of what is not in use: one in so many.
_KEPT = 64


@dataclass(frozen=True, slots=True)
class Claim:
    """What a server says of one key when it renews its lease, in tokens."""

    limits: Limits
    in_use: int
    wanted: int
    # Requests may take so many before the lease is renewed.
    floor: int


def left_of(limits: Limits, day: int, month: int) -> int:
    """Return what is left of the quotas after written usage."""
    pairs = ((limits.daily_tokens, day), (limits.monthly_tokens, month))
    return max(0, min(limit - used for limit, used in pairs if limit is not None))


def renewed(left: int, servers: int, writer: str, claim: Claim, known: Mapping[str, Lease]) -> Lease:
    """Return this server's next lease. `known`: the present leases of the key by server.

    It gets what it has in use, then what it wants, in the order of the servers' names, then an equal part of the rest.
    It never gets what others hold, and never holds less than the floor as long as that is there.
    """
    demands = {**known, writer: Lease(0, claim.in_use, claim.wanted)}
    free = max(0, left - sum(demand.in_use for demand in demands.values()))
    target = claim.in_use
    for name in sorted(demands):
        # Half of what a request needs is of no use to it, and of use to others.
        wanted = demands[name].wanted if demands[name].wanted <= free else 0
        free -= wanted
        target += wanted if name == writer else 0
    target += free // servers
    available = max(0, left - sum(lease.tokens for name, lease in known.items() if name != writer))
    return Lease(min(max(target, claim.floor), available), claim.in_use, claim.wanted)


class Leases:
    """This server's leases in memory. Of one thread, the event loop's."""

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}
        # While the leases are renewed: what requests may take until that is known to have ended.
        self._floors: dict[str, int] | None = None
        self._wanted: dict[str, tuple[int, float]] = {}
        self._servers = 1

    def held(self, key_id: str) -> int | None:
        """Return what the server may use beyond the usage it has written; None: it need not share.

        Nothing of a new key, until there is a lease, if other servers know the key as well.
        """
        if self._floors is not None and key_id in self._floors:
            return self._floors[key_id]
        return self._tokens.get(key_id, None if self._servers == 1 else 0)

    def want(self, key_id: str, tokens: int, now_s: float) -> None:
        """Remember a request that was refused although the quota may allow it."""
        known, _ = self._wanted.get(key_id, (0, 0.0))
        self._wanted[key_id] = max(known, tokens), now_s + _WANTED_S

    def write(self, row: UsageRow) -> None:
        """Note usage that is written: it is no longer covered by the lease."""
        for tokens in (self._tokens, self._floors or {}):
            if row.key_id in tokens:
                tokens[row.key_id] -= row.tokens

    def begin(self, limits: Mapping[str, Limits], in_use: Callable[[str], int], now_s: float) -> dict[str, Claim]:
        """Return the claims for these keys. Until `settle`, requests take no more than their floors."""
        self._wanted = {key_id: wanted for key_id, wanted in self._wanted.items() if now_s < wanted[1]}
        if self._floors is None:
            self._floors = {key_id: self._floor(tokens, in_use(key_id)) for key_id, tokens in self._tokens.items()}
        floors, nothing = self._floors, (0, 0.0)
        return {
            key_id: Claim(limit, in_use(key_id), self._wanted.get(key_id, nothing)[0], floors.get(key_id, 0))
            for key_id, limit in limits.items()
        }

    def settle(self, limits: Mapping[str, Limits], tokens: Mapping[str, int], servers: int) -> None:
        """Take over the renewed leases of these keys."""
        kept = {key_id: held for key_id, held in self._tokens.items() if key_id in limits}
        self._tokens, self._floors, self._servers = {**kept, **tokens}, None, servers

    def _floor(self, tokens: int, in_use: int) -> int:
        # A server alone keeps all. With others it offers nearly all that it does not use, and takes none of that until
        # it knows what it got.
        return tokens if self._servers == 1 else min(tokens, in_use) + max(0, tokens - in_use) // _KEPT
