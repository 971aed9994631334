"""Leases: the parts of a quota's remaining tokens that several servers may each use without asking the others.

For each key, written usage plus all leases is at most the quota. A transaction ensures this twice a second, beside the
requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tokka.core import Limits
from tokka.store.rows import Lease, UsageRow

# Seconds that a refused request is remembered. The other servers need half a second to release unused tokens, and the
# client retries after one second.
_WANTED_S = 5.0
# During a renewal, requests may take 1/64 of the tokens that are not in use.
_KEPT = 64


@dataclass(frozen=True, slots=True)
class Claim:
    """A server's input to the renewal of its lease for one key, in tokens."""

    limits: Limits
    in_use: int
    wanted: int
    # Requests may take this many until the lease is renewed.
    floor: int


def left_of(limits: Limits, day: int, month: int) -> int:
    """Return the remaining tokens of the quotas. `day`, `month`: written usage in tokens."""
    pairs = ((limits.daily_tokens, day), (limits.monthly_tokens, month))
    return max(0, min(limit - used for limit, used in pairs if limit is not None))


def renewed(left: int, servers: int, writer: str, claim: Claim, known: Mapping[str, Lease]) -> Lease:
    """Return this server's next lease. `left`: remaining tokens of the key. `known`: its present leases by server.

    The server gets its tokens in use. Then the servers' wanted tokens are granted in the order of their names, and the
    rest is split equally. The lease never includes tokens that other servers hold. It is at least the floor if enough
    tokens are available.
    """
    demands = {**known, writer: Lease(0, claim.in_use, claim.wanted)}
    free = max(0, left - sum(demand.in_use for demand in demands.values()))
    target = claim.in_use
    for name in sorted(demands):
        # All or nothing: half of a request's tokens would not help it, but would help other servers.
        wanted = demands[name].wanted if demands[name].wanted <= free else 0
        free -= wanted
        target += wanted if name == writer else 0
    target += free // servers
    available = max(0, left - sum(lease.tokens for name, lease in known.items() if name != writer))
    return Lease(min(max(target, claim.floor), available), claim.in_use, claim.wanted)


class Leases:
    """This server's leases in memory. Only the event loop's thread may use them."""

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}
        # From `begin` until `apply`: the tokens that requests may take, by key.
        self._floors: dict[str, int] | None = None
        self._wanted: dict[str, tuple[int, float]] = {}
        self._servers = 1

    def held(self, key_id: str) -> int | None:
        """Return the tokens that the server may use beyond its written usage; None: it does not share the quota.

        If there are other servers, a new key has 0 tokens until its first lease.
        """
        if self._floors is not None and key_id in self._floors:
            return self._floors[key_id]
        return self._tokens.get(key_id, None if self._servers == 1 else 0)

    def want(self, key_id: str, tokens: int, now_s: float) -> None:
        """Remember a request that was refused although the quota may allow it."""
        known, _ = self._wanted.get(key_id, (0, 0.0))
        self._wanted[key_id] = max(known, tokens), now_s + _WANTED_S

    def write(self, row: UsageRow) -> None:
        """Subtract written usage from the lease."""
        for tokens in (self._tokens, self._floors or {}):
            if row.key_id in tokens:
                tokens[row.key_id] -= row.tokens

    def begin(self, limits: Mapping[str, Limits], in_use: Callable[[str], int], now_s: float) -> dict[str, Claim]:
        """Return the claims for these keys. Until `apply`, requests may take at most the floors."""
        self._wanted = {key_id: wanted for key_id, wanted in self._wanted.items() if now_s < wanted[1]}
        if self._floors is None:
            self._floors = {key_id: self._floor(tokens, in_use(key_id)) for key_id, tokens in self._tokens.items()}
        floors, nothing = self._floors, (0, 0.0)
        return {
            key_id: Claim(limit, in_use(key_id), self._wanted.get(key_id, nothing)[0], floors.get(key_id, 0))
            for key_id, limit in limits.items()
        }

    def apply(self, limits: Mapping[str, Limits], tokens: Mapping[str, int], servers: int) -> None:
        """Store renewed leases. `limits`: the keys with a quota; other keys' leases are dropped."""
        kept = {key_id: held for key_id, held in self._tokens.items() if key_id in limits}
        self._tokens, self._floors, self._servers = {**kept, **tokens}, None, servers

    def _floor(self, tokens: int, in_use: int) -> int:
        # The only server keeps all tokens. With other servers, it offers nearly all unused tokens and takes none of
        # them until it knows its new lease.
        return tokens if self._servers == 1 else min(tokens, in_use) + max(0, tokens - in_use) // _KEPT
