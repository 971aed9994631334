"""Keys and usage in the database: each method is one piece of work for a thread, in short transactions."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tokka.accounts.answers import Issued, NewKey
from tokka.accounts.credential import digest_of, new_key_id, new_secret, prefix_of
from tokka.accounts.leases import Claim, left_of, renewed
from tokka.accounts.tokens import token_key_of
from tokka.core import Downtime
from tokka.store import downtimes, keys, leases, state, usage
from tokka.store.database import Database
from tokka.store.failures import Unavailable
from tokka.store.location import database_at
from tokka.store.rows import NOWHERE, Batch, KeyRow, Periods, ReportQuery, ReportRow, State, TokenKey, Totals

# Keys in one statement: databases bound its parameters.
_PART = 1000


def open_ledger(database_url: str | None, state_dir: Path, busy_s: float, *, create: bool = True) -> Ledger:
    """Open what the settings name; `busy_s`: how long to wait for other programs. `create=False`: only a database that
    exists. Raises StartupError."""
    ledger = Ledger(database_at(database_url, state_dir, busy_s))
    with ExitStack() as stack:
        stack.callback(ledger.close)
        try:
            ledger.open(None, create=create)
        except Unavailable as error:
            raise error.at_start(ledger.place) from None
        stack.pop_all()
    return ledger


@dataclass(frozen=True, slots=True)
class _Leased:
    """What the last renewal of leases went by."""

    version: int | None
    claims: Mapping[str, Claim]
    periods: Periods
    servers: frozenset[str]
    at_s: float

    def is_same(self, version: int, claims: Mapping[str, Claim], periods: Periods) -> bool:
        """Tell whether nothing has changed since."""
        return (self.version, self.claims, self.periods) == (version, claims, periods)

    def has_same_terms(self, servers: frozenset[str], claims: Mapping[str, Claim], periods: Periods) -> bool:
        """Tell whether only keys in use can have changed since."""
        limits = [{key_id: claim.limits for key_id, claim in given.items()} for given in (self.claims, claims)]
        return (self.servers, self.periods, limits[0]) == (servers, periods, limits[1])


class Ledger:
    """All of it blocks. Raises Unavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # Of the database when something was last read from it: as long as nobody else has written, nothing new is
        # there. Twice a second a look costs a tenth of reading.
        self._keys_version: int | None = None
        self._downtimes_version: int | None = None
        self._usage_version: tuple[int, Periods] | None = None
        self._leased: _Leased | None = None

    @property
    def place(self) -> str:
        return self._database.place

    def open(self, known: Sequence[KeyRow] | None, *, create: bool = True) -> None:
        """Connect anew, and repair. `known`: the keys in memory; None at the start. Raises StartupError, too."""
        # Versions of two connections have nothing to do with each other.
        self._keys_version = self._downtimes_version = self._usage_version = self._leased = None
        self._database.open(known, create=create)

    def close(self) -> None:
        self._database.close()

    def changes(self, seen: State, known: Sequence[KeyRow]) -> tuple[list[KeyRow], State]:
        """Return the keys that have changed since, and what to ask with the next time. A database that is another one,
        or an older copy, first gets what it lacks of the known ones: a mishap with it must not refuse a user."""
        version = self._database.version()
        if version is not None and version == self._keys_version and seen != NOWHERE:
            return [], seen
        with self._database.transaction(write=False) as connection:
            now = state.read(connection)
            if now.identity != seen.identity or now.revision < seen.revision:
                seen = NOWHERE
            rows = keys.changed_after(connection, seen.revision)
        if seen == NOWHERE and known:
            with self._database.transaction(write=True) as connection:
                keys.restore(connection, known)
                rows = keys.changed_after(connection, 0)
        self._keys_version = version
        # Not `now.revision`: a change between the two statements would be missed.
        return rows, State(now.identity, max((row.revision for row in rows), default=seen.revision))

    def write(self, batch: Batch | None, periods: Periods, since: int | None) -> Totals:
        """Write the usage, once, and return what keys have used of which others may have written some since then."""
        version = self._database.version()
        here = None if version is None else (version, periods)
        if batch is None and since is not None and here is not None and here == self._usage_version:
            return Totals(periods, {}, since)
        with self._database.transaction(write=batch is not None) as connection:
            if batch:
                usage.write(connection, batch)
            totals = usage.totals(connection, periods, since)
        self._usage_version = here
        return totals

    def lease(self, writer: str, claims: Mapping[str, Claim], periods: Periods) -> tuple[dict[str, int], int]:
        """Renew a server's leases; return those that may have changed, and the number of servers."""
        version, last, now_s = self._database.version(), self._leased, time.monotonic()
        is_same = last is not None and version is not None and last.is_same(version, claims, periods)
        if last and is_same and now_s < last.at_s + leases.SIGN_S:
            return {}, len(last.servers)
        self._leased = None
        with self._database.transaction(write=True) as connection:
            leases.lock(connection)
            servers = leases.sign(connection, writer)
            changed = set(claims)
            if last and last.has_same_terms(servers, claims, periods):
                active = {key_id for key_id, claim in claims.items() if claim.in_use or claim.wanted}
                changed &= leases.touched(connection) | active
            tokens: dict[str, int] = {}
            for part in _parts(sorted(changed)):
                known = leases.of_keys(connection, part)
                used = usage.totals_of(connection, part, periods)
                rows = {
                    key_id: renewed(
                        left_of(claims[key_id].limits, *used.get(key_id, (0, 0))),
                        len(servers),
                        writer,
                        claims[key_id],
                        known.get(key_id, {}),
                    )
                    for key_id in part
                }
                tokens |= {key_id: lease.tokens for key_id, lease in rows.items()}
                leases.put(
                    connection, writer, {k: row for k, row in rows.items() if row != known.get(k, {}).get(writer)}
                )
        self._leased = _Leased(version, claims, periods, servers, now_s)
        return tokens, len(servers)

    def end(self, writer: str) -> None:
        """Give a server's leases back, and close. Leases that cannot be given back lapse."""
        with suppress(Unavailable):
            if self._leased:
                with self._database.transaction(write=True) as connection:
                    leases.remove(connection, writer)
        self.close()

    # Whoever asks for a change of keys may have given up before it is done: `changes` is to see it.

    def create(self, new: NewKey, now: int) -> Issued:
        secret = new_secret()
        row = KeyRow(
            id=new_key_id(),
            name=new.name,
            tenant=new.tenant,
            prefix=prefix_of(secret),
            digest=digest_of(secret).hex(),
            token_key=token_key_of(secret).hex(),
            scopes=new.scopes,
            created_at=now,
            limits=new.limits,
            models=new.models,
            expires_at=new.expires_at,
        )
        self._keys_version = None
        with self._database.transaction(write=True) as connection:
            row = keys.add(connection, row)
        return Issued(row, secret)

    def revoke(self, key_id: str, now: int) -> KeyRow | None:
        """Return the key, revoked now or earlier; None if there is none."""
        self._keys_version = None
        with self._database.transaction(write=True) as connection:
            row = keys.find(connection, key_id)
            if row is None or row.revoked_at is not None:
                return row
            return keys.change(connection, replace(row, revoked_at=now))

    def rotate(self, key_id: str, grace_s: int, now: int) -> Issued | None:
        """Give the key a new secret; the present one is good for the grace time. None if there is no such key, or it
        was revoked."""
        secret = new_secret()
        self._keys_version = None
        with self._database.transaction(write=True) as connection:
            row = keys.find(connection, key_id)
            if row is None or row.revoked_at is not None:
                return None
            changed = replace(
                row,
                digest=digest_of(secret).hex(),
                token_key=token_key_of(secret).hex(),
                prefix=prefix_of(secret),
                previous_digest=row.digest,
                previous_token_key=row.token_key,
                previous_until=now + grace_s,
            )
            return Issued(keys.change(connection, changed), secret)

    def learn(self, found: TokenKey) -> KeyRow | None:
        """Store what checks tokens of a secret; return the key, None if it has no such secret any more."""
        self._keys_version = None
        with self._database.transaction(write=True) as connection:
            row = keys.find(connection, found.key_id)
            if row is not None and row.digest == found.digest:
                return keys.change(connection, replace(row, token_key=found.token_key))
            if row is not None and row.previous_digest == found.digest:
                return keys.change(connection, replace(row, previous_token_key=found.token_key))
            return None

    def all_keys(self) -> list[KeyRow]:
        with self._database.transaction(write=False) as connection:
            return sorted(keys.changed_after(connection, 0), key=lambda row: (row.created_at, row.id))

    def downtimes(self, now: int) -> list[Downtime] | None:
        """Return those that are not over, in order of their begin; None if nobody has written since the last time."""
        version = self._database.version()
        if version is not None and version == self._downtimes_version:
            return None
        with self._database.transaction(write=False) as connection:
            found = downtimes.not_over(connection, now)
        self._downtimes_version = version
        return found

    def all_downtimes(self) -> list[Downtime]:
        """Return all, also those that are over, in order of their begin."""
        with self._database.transaction(write=False) as connection:
            return downtimes.all_of_them(connection)

    def add_downtime(self, downtime: Downtime) -> None:
        self._downtimes_version = None
        with self._database.transaction(write=True) as connection:
            downtimes.add(connection, downtime)

    def remove_downtime(self, downtime_id: str) -> bool:
        """Tell whether there was one of this id."""
        self._downtimes_version = None
        with self._database.transaction(write=True) as connection:
            return downtimes.remove(connection, downtime_id)

    def report(self, query: ReportQuery) -> list[ReportRow]:
        with self._database.transaction(write=False) as connection:
            return usage.report(connection, query)


def _parts(key_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (key_ids[start : start + _PART] for start in range(0, len(key_ids), _PART))
