"""Rate limits and quotas of keys: reserve tokens before a request runs, settle with its actual usage. Pure.

The prompt and the maximum completion are reserved together, so concurrent requests cannot exceed a limit between them.
Unused tokens go back at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from tokka.admission.buckets import Bucket
from tokka.core import Key, Limits, Spent
from tokka.errors import QuotaExceeded, RateLimited

# Seconds until a retry beyond `max_running`: a guess, since the end of a choice is not known.
_RUNNING_RETRY_S = 1.0
# Seconds until a retry while other servers hold the quota. They give up unused tokens within two or three renewals.
_LEASE_RETRY_S = 2.0


@dataclass(frozen=True, slots=True)
class Gauge:
    """One limit, as the `x-ratelimit-*` headers of a response report it."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(slots=True)
class _Account:
    """The state of one key with limits."""

    limits: Limits
    requests: Bucket | None
    tokens: Bucket | None
    running: int = 0
    # Tokens of open requests, not yet in the usage that `spent` returns.
    reserved: int = 0


class Allowances:
    """The limits of all keys. `spent` returns the usage of a key id; `want` asks for a larger lease on its quotas."""

    def __init__(self, spent: Callable[[str], Spent], want: Callable[[str, int], None] = lambda *_: None) -> None:
        self._spent = spent
        self._want = want
        self._accounts: dict[str, _Account] = {}

    def open(self, key: Key, now_s: float) -> Allowance:
        """Count a request and return its allowance. Raises RateLimited or QuotaExceeded without counting it."""
        if key.limits == Limits():
            return Allowance(key, None, self._spent, self._want)
        account = self._account(key, now_s)
        _check_requests(account, now_s)
        allowance = Allowance(key, account, self._spent, self._want)
        allowance.check_quota(1)
        if account.requests:
            account.requests.take(1, now_s)
        return allowance

    def count(self, key: Key, now_s: float) -> None:
        """Count a request that uses no tokens. Raises RateLimited without counting it."""
        if key.limits.rpm is None:
            return
        account = self._account(key, now_s)
        _check_requests(account, now_s)
        if account.requests:
            account.requests.take(1, now_s)

    def gauges(self, key: Key, now_s: float) -> dict[str, Gauge]:
        """Return the key's rate limits by `requests` and `tokens`; empty for a key without rate limits."""
        if key.limits.rpm is None and key.limits.tpm is None:
            return {}
        account = self._account(key, now_s)
        buckets = {"requests": account.requests, "tokens": account.tokens}
        return {
            name: Gauge(bucket.capacity, bucket.remaining(now_s), bucket.reset_s(now_s))
            for name, bucket in buckets.items()
            if bucket
        }

    def reserved(self, key_id: str) -> int:
        """Return the tokens that the key's open requests have reserved."""
        account = self._accounts.get(key_id)
        return account.reserved if account else 0

    def _account(self, key: Key, now_s: float) -> _Account:
        account = self._accounts.get(key.id)
        if account is None:
            account = self._accounts[key.id] = _Account(
                key.limits, _bucket(key.limits.rpm, now_s), _bucket(key.limits.tpm, now_s)
            )
        elif account.limits != key.limits:
            # An operator changed the limits: start with full buckets, keep the counts of open requests.
            account.limits = key.limits
            account.requests, account.tokens = _bucket(key.limits.rpm, now_s), _bucket(key.limits.tpm, now_s)
        return account


@dataclass(slots=True)
class Allowance:
    """One request's part of its key's limits, held until `settle`."""

    _key: Key
    _account: _Account | None
    _spent: Callable[[str], Spent]
    _want: Callable[[str, int], None]
    _choices: int = field(default=0, init=False)
    _reserved: int = field(default=0, init=False)
    # Tokens charged for preparing the prompt, even if the request never runs.
    _prepared: int = field(default=0, init=False)

    def run(self, choices: int) -> None:
        """Count choices against `max_running`, once. Raises RateLimited."""
        account, most = self._account, self._key.limits.max_running
        if account is None or self._choices:
            return
        # design 1.3
        if most is not None and account.running + choices > most:
            raise RateLimited(
                f"Your key may run {most} choices at once; {account.running} are in flight, and this request asks for "
                f"{choices}.",
                of="requests",
                retry_after_s=_RUNNING_RETRY_S if choices <= most else None,
            )
        account.running += choices
        self._choices = choices

    def room(self) -> int | None:
        """Return the maximum tokens this request can ever get, prompt included; None if there is no limit."""
        limits = self._key.limits
        held = self._held()
        lefts = [left for left, _ in self._quotas()] + ([] if held is None else [held])
        rooms = [limits.tpm, *(left + self._reserved for left in lefts)]
        return min((room for room in rooms if room is not None), default=None)

    def prepare(self, tokens: int, now_s: float) -> None:
        """Reserve the minimum size of a prompt before it is tokenised. Raises RateLimited or QuotaExceeded.

        The key pays for these tokens even if the request turns out to be invalid.
        """
        self.reserve(tokens, now_s)
        self._prepared = tokens

    def reserve(self, tokens: int, now_s: float) -> None:
        """Raise the reservation to `tokens`, the maximum the request can use. Raises RateLimited or QuotaExceeded."""
        more = tokens - self._reserved
        if self._account is None or more <= 0:
            return
        self.check_quota(more)
        bucket = self._account.tokens
        if bucket:
            wait_s = bucket.wait_s(more, now_s) if tokens <= bucket.capacity else math.inf
            # design 1.5, 1.6
            if wait_s:
                left = bucket.remaining(now_s) + self._reserved
                raise _rate_limited("tokens", self._key.limits.tpm, left, tokens, wait_s)
            bucket.take(more, now_s)
        self._account.reserved += more
        self._reserved = tokens

    def settle(self, used: int, now_s: float, *, served: bool = True) -> None:
        """Give back unused tokens; with `served=False` the prompt's minimum and the request, too. Works once."""
        account, self._account = self._account, None
        if account is None:
            return
        account.running -= self._choices
        account.reserved -= self._reserved
        if account.tokens:
            account.tokens.give_back(self._reserved - (max(used, self._prepared) if served else used), now_s)
        if account.requests and not served:
            account.requests.give_back(1, now_s)

    def check_quota(self, tokens: int) -> None:
        """Raise QuotaExceeded if fewer tokens are left, or RateLimited if other servers may hold them."""
        for left, period in self._quotas():
            # design 1.5, 1.6
            if tokens > left:
                raise QuotaExceeded(
                    f"This request exceeds your key's token quota for this {period}: {max(0, left)} are left, and it "
                    f"may use {tokens}. Lower max_completion_tokens, or ask the operator to raise the quota."
                )

        held = self._held()
        # design 1.5, 1.6
        if held is not None and tokens > held:
            # The whole request: its own reservation goes back when this error ends it.
            self._want(self._key.id, self._reserved + tokens)
            raise RateLimited(
                f"Other servers hold the rest of your key's tokens: {max(0, held)} are free here, and this request may "
                f"use {tokens}. Retry in {_LEASE_RETRY_S:.3g} s.",
                of="tokens",
                retry_after_s=_LEASE_RETRY_S,
            )

    def _held(self) -> int | None:
        """Return the free tokens of this server's lease; None if it needs no lease."""
        account = self._account
        if account is None or not self._key.limits.has_quota:
            return None
        held = self._spent(self._key.id).held
        return None if held is None else held - account.reserved

    def _quotas(self) -> list[tuple[int, str]]:
        """Return the free tokens and the period of each quota."""
        limits, account = self._key.limits, self._account
        if account is None or not limits.has_quota:
            return []
        spent = self._spent(self._key.id)
        pairs = ((limits.daily_tokens, spent.day, "day"), (limits.monthly_tokens, spent.month, "month"))
        return [(limit - used - account.reserved, period) for limit, used, period in pairs if limit is not None]


def _check_requests(account: _Account, now_s: float) -> None:
    bucket = account.requests
    if bucket and (wait_s := bucket.wait_s(1, now_s)):
        raise _rate_limited("requests", account.limits.rpm, bucket.remaining(now_s), 1, wait_s)


def _bucket(per_minute: int | None, now_s: float) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute, now_s)


def _rate_limited(
    of: Literal["requests", "tokens"], limit: int | None, remaining: int, wanted: int, wait_s: float
) -> RateLimited:
    message = (
        f"Rate limit reached: your key may use {limit} {of} a minute, {remaining} are left, and this request needs "
        f"{wanted}."
    )
    if math.isinf(wait_s):
        return RateLimited(f"{message} Ask for fewer.", of=of, retry_after_s=None)
    return RateLimited(f"{message} Retry in {wait_s:.3g} s.", of=of, retry_after_s=wait_s)
