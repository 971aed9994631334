"""What each key may still use: reserved before a request runs, settled with what it really used. Pure.

Prompt and allowed completion are reserved together, so that requests at the same time cannot use more than the limit
between them; what was not used goes back at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from tokka.admission.buckets import Bucket
from tokka.core import Key, Limits, Spent
from tokka.errors import QuotaExceeded, RateLimited

# Choices end when they end; a second is as good a guess as any.
_RUNNING_RETRY_S = 1.0
# Servers that share a quota give up what they do not use in two or three looks at the database.
_LEASE_RETRY_S = 2.0


@dataclass(frozen=True, slots=True)
class Gauge:
    """One limit for an answer's headers."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(slots=True)
class _Account:
    """One key with limits."""

    limits: Limits
    requests: Bucket | None
    tokens: Bucket | None
    running: int = 0
    # Of requests that run now: not in what was spent.
    reserved: int = 0


class Allowances:
    """`spent`: what a key has used so far, by its id. `want`: takes what is missing of a lease."""

    def __init__(self, spent: Callable[[str], Spent], want: Callable[[str, int], None] = lambda *_: None) -> None:
        self._spent = spent
        self._want = want
        self._accounts: dict[str, _Account] = {}

    def open(self, key: Key, now_s: float) -> Allowance:
        """Count a request. Raises RateLimited or QuotaExceeded; then nothing was counted."""
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
        """Count a request that uses nothing else. Raises RateLimited; then it was not counted."""
        if key.limits.rpm is None:
            return
        account = self._account(key, now_s)
        _check_requests(account, now_s)
        if account.requests:
            account.requests.take(1, now_s)

    def gauges(self, key: Key, now_s: float) -> dict[str, Gauge]:
        """Return the key's limits by what they count, `requests` and `tokens`; empty for a key without."""
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
        """Return the tokens that the key's requests hold now."""
        account = self._accounts.get(key_id)
        return account.reserved if account else 0

    def _account(self, key: Key, now_s: float) -> _Account:
        account = self._accounts.get(key.id)
        if account is None:
            account = self._accounts[key.id] = _Account(
                key.limits, _bucket(key.limits.rpm, now_s), _bucket(key.limits.tpm, now_s)
            )
        elif account.limits != key.limits:
            # An operator has changed them: the buckets start anew, what runs goes on.
            account.limits = key.limits
            account.requests, account.tokens = _bucket(key.limits.rpm, now_s), _bucket(key.limits.tpm, now_s)
        return account


@dataclass(slots=True)
class Allowance:
    """What one request holds of its key's limits, until `settle`."""

    _key: Key
    _account: _Account | None
    _spent: Callable[[str], Spent]
    _want: Callable[[str, int], None]
    _choices: int = field(default=0, init=False)
    _reserved: int = field(default=0, init=False)
    # Tokens of a prompt that was prepared, whether or not it ran.
    _prepared: int = field(default=0, init=False)

    def run(self, choices: int) -> None:
        """Hold places for choices. Raises RateLimited."""
        account, most = self._account, self._key.limits.max_running
        if account is None:
            return
        if most is not None and account.running + choices > most:
            raise RateLimited(
                f"Your key may run {most} choices at once; {account.running} run, and this request asks for {choices}.",
                of="requests",
                retry_after_s=_RUNNING_RETRY_S if choices <= most else None,
            )
        account.running += choices
        self._choices = choices

    def room(self) -> int | None:
        """Return the most tokens this request can ever be given, prompt included; None: no limit."""
        limits = self._key.limits
        held = self._held()
        lefts = [left for left, _ in self._quotas()] + ([] if held is None else [held])
        rooms = [limits.tpm, *(left + self._reserved for left in lefts)]
        return min((room for room in rooms if room is not None), default=None)

    def prepare(self, tokens: int, now_s: float) -> None:
        """Reserve the least that a prompt has, before it is tokenised. It is paid for even if the request turns out to
        be invalid. Raises RateLimited or QuotaExceeded."""
        self.reserve(tokens, now_s)
        self._prepared = tokens

    def reserve(self, tokens: int, now_s: float) -> None:
        """Set so many tokens aside in all, the most the request can use. Raises RateLimited or QuotaExceeded."""
        more = tokens - self._reserved
        if self._account is None or more <= 0:
            return
        self.check_quota(more)
        bucket = self._account.tokens
        if bucket:
            wait_s = bucket.wait_s(more, now_s) if tokens <= bucket.capacity else math.inf
            if wait_s:
                left = bucket.remaining(now_s) + self._reserved
                raise _rate_limited("tokens", self._key.limits.tpm, left, tokens, wait_s)
            bucket.take(more, now_s)
        self._account.reserved += more
        self._reserved = tokens

    def settle(self, used: int, now_s: float, *, served: bool = True) -> None:
        """Give back what was not used; with `served=False` all of it, the request too. Once."""
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
        """Raise QuotaExceeded unless so many tokens are left; RateLimited if other servers may hold them."""
        for left, period in self._quotas():
            if tokens > left:
                raise QuotaExceeded(
                    f"Your key's tokens for this {period} are used up: {max(0, left)} are left, and this request may "
                    f"take {tokens}. Ask for fewer with max_completion_tokens, or have the limit raised."
                )

        held = self._held()
        if held is not None and tokens > held:
            # With what this request holds already: that goes back now.
            self._want(self._key.id, self._reserved + tokens)
            raise RateLimited(
                f"Other servers hold the rest of your key's tokens: {max(0, held)} are free here, and this request may "
                f"take {tokens}. Retry in {_LEASE_RETRY_S:.3g} s.",
                of="tokens",
                retry_after_s=_LEASE_RETRY_S,
            )

    def _held(self) -> int | None:
        """Return what is free of this server's part of the quotas; None: it has all."""
        account = self._account
        if account is None or not self._key.limits.has_quota:
            return None
        held = self._spent(self._key.id).held
        return None if held is None else held - account.reserved

    def _quotas(self) -> list[tuple[int, str]]:
        """Return what is left of each quota, and its period."""
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
    message = f"Rate limit reached: your key may use {limit} {of} a minute, {remaining} are left, {wanted} are wanted."
    if math.isinf(wait_s):
        return RateLimited(f"{message} Ask for fewer.", of=of, retry_after_s=None)
    return RateLimited(f"{message} Retry in {wait_s:.3g} s.", of=of, retry_after_s=wait_s)
