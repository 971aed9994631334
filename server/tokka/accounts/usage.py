"""Usage in memory: requests add to it, the database gets it in batches, and the database's totals complete it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from tokka.accounts.calendar import DAY_S, hour_of, periods_of
from tokka.core import RequestRecord, Spent
from tokka.store.rows import Periods, Totals, UsageRow

# Maximum entries in memory, about 40 MB. While the database is down for long, further entries are dropped.
MAX_ENTRIES = 100_000
# Maximum bytes of a name: PostgreSQL limits index entries, and tenant names may come from outside, in tokens.
_MAX_NAME_BYTES = 255


@dataclass(slots=True)
class _Sums:
    requests: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0


@dataclass(slots=True)
class _Account:
    """One key's tokens: the database's totals of a day and month, and the unwritten tokens by day."""

    periods: Periods = field(default_factory=lambda: Periods(0, 0))
    day: int = 0
    month: int = 0
    unwritten: dict[int, int] = field(default_factory=dict)


class UsageBook:
    """Usage of all keys. Only the event loop's thread may use it. `now_s`: seconds since 1970."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._sums: dict[tuple[int, str, str, str], _Sums] = {}
        self._accounts: defaultdict[str, _Account] = defaultdict(_Account)
        self._taken = 0
        self._periods = Periods(0, 0)
        # Requests missing from the usage because there were too many entries.
        self.dropped = 0

    @property
    def pending(self) -> int:
        """The number of entries that are not in the database yet."""
        return len(self._sums) + self._taken

    def add(self, record: RequestRecord, now_s: float) -> None:
        """Count an ended request, with any outcome. Requests without a key do not count."""
        if record.key is None:
            return
        hour, key_id = hour_of(now_s), _clean(record.key.id)
        place = (hour, key_id, _clean(record.key.tenant), _clean(record.model))
        if tokens := record.prompt_tokens + record.completion_tokens:
            unwritten = self._accounts[key_id].unwritten
            day = hour // DAY_S * DAY_S
            unwritten[day] = unwritten.get(day, 0) + tokens
        sums = self._sums.get(place)
        if sums is None:
            if self.pending >= self._max_entries:
                self.dropped += 1
                return
            sums = self._sums[place] = _Sums()
        sums.requests += 1
        sums.prompt += record.prompt_tokens
        sums.cached += record.cached_tokens
        sums.completion += record.completion_tokens

    def take(self) -> tuple[UsageRow, ...]:
        """Return the entries to write, and start new ones. They stay in `pending` and `spent` until `confirm`."""
        sums, self._sums = self._sums, {}
        self._taken += len(sums)
        return tuple(
            UsageRow(*place, total.requests, total.prompt, total.cached, total.completion)
            for place, total in sums.items()
        )

    def confirm(self, rows: Sequence[UsageRow], totals: Totals) -> None:
        """Note that the rows are written. `totals`: the database's totals, which include the rows."""
        self._taken -= len(rows)
        for row in rows:
            self._move(row, totals.periods)
        if totals.periods.month != self._periods.month:
            self._forget(totals.periods)
        self._periods = totals.periods
        for key_id, (day, month) in totals.by_key.items():
            account = self._accounts[key_id]
            account.periods, account.day, account.month = totals.periods, day, month

    def spent(self, key_id: str, now_s: float) -> Spent:
        """Return the key's tokens of today and this month: all of this process, and the written ones of others."""
        account = self._accounts.get(_clean(key_id))
        if account is None:
            return Spent()
        now = periods_of(now_s)
        # Totals of a past day or month no longer count.
        day = account.day if account.periods.day == now.day else 0
        month = account.month if account.periods.month == now.month else 0
        for began, tokens in account.unwritten.items():
            day += tokens if began >= now.day else 0
            month += tokens if began >= now.month else 0
        return Spent(day, month)

    def unwritten(self, key_id: str) -> int:
        """Return the key's tokens that are not known to be in the database."""
        account = self._accounts.get(_clean(key_id))
        return sum(account.unwritten.values()) if account else 0

    def _move(self, row: UsageRow, periods: Periods) -> None:
        """Move a row's tokens from the unwritten ones to the totals."""
        account = self._accounts[row.key_id]
        began = row.hour // DAY_S * DAY_S
        left = account.unwritten.get(began, 0) - row.tokens
        if left > 0:
            account.unwritten[began] = left
        else:
            account.unwritten.pop(began, None)
        if account.periods != periods:
            account.day = account.day if account.periods.day == periods.day else 0
            account.month = account.month if account.periods.month == periods.month else 0
            account.periods = periods
        account.day += row.tokens if row.hour >= periods.day else 0
        account.month += row.tokens if row.hour >= periods.month else 0

    def _forget(self, periods: Periods) -> None:
        """Drop the keys without usage in this month."""
        for key_id, account in list(self._accounts.items()):
            if not account.unwritten and account.periods.month != periods.month:
                del self._accounts[key_id]


@lru_cache(8192)
def _clean(name: str) -> str:
    """Return the name in a form that both databases accept: no NUL, valid UTF-8, short enough for an index."""
    return name.replace("\0", "").encode("utf-8", "replace")[:_MAX_NAME_BYTES].decode("utf-8", "ignore")
