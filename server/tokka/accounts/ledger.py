"""Database operations on keys, usage, leases and downtimes, in short transactions. All block, so threads run them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tokka.accounts.admin_views import Issued, NewKey
from tokka.accounts.credential import digest_of, new_key_id, new_secret, prefix_of
from tokka.accounts.leases import Claim, left_of, renewed
from tokka.accounts.tokens import token_key_of
from tokka.downtime import Downtime
from tokka.store import downtimes, keys, leases, responses, state, usage
from tokka.store.database import Database
from tokka.store.errors import Unavailable
from tokka.store.location import database_at
from tokka.store.rows import (
    NOWHERE,
    Batch,
    Ended,
    EventChunk,
    KeyRow,
    Periods,
    ReportQuery,
    ReportRow,
    ResponseRow,
    State,
    TokenKey,
    Totals,
)

# Maximum keys of one statement: databases limit a statement's parameters.
_PART = 1000


def open_ledger(database_url: str | None, state_dir: Path, busy_s: float, *, create: bool = True) -> Ledger:
    """Open the database that the settings name. Blocks. Raises StartupError.

    `busy_s`: seconds to wait for other programs. `create=False`: open only an existing database.
    """
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
    """The inputs of the last renewal of leases."""

    version: int | None
    claims: Mapping[str, Claim]
    periods: Periods
    servers: frozenset[str]
    at_s: float

    def is_same(self, version: int, claims: Mapping[str, Claim], periods: Periods) -> bool:
        """Tell whether all inputs are unchanged."""
        return (self.version, self.claims, self.periods) == (version, claims, periods)

    def has_same_terms(self, servers: frozenset[str], claims: Mapping[str, Claim], periods: Periods) -> bool:
        """Tell whether servers, periods and limits are unchanged: then only keys in use can have changed."""
        limits = [{key_id: claim.limits for key_id, claim in given.items()} for given in (self.claims, claims)]
        return (self.servers, self.periods, limits[0]) == (servers, periods, limits[1])


class Ledger:
    """The operations on one database. All methods block and raise Unavailable if the database cannot be used."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # The database's version at the last read of each kind. If it is unchanged, no other program has written, and
        # the read is skipped. Twice a second, asking for the version costs a tenth of a read.
        self._keys_version: int | None = None
        self._downtimes_version: int | None = None
        self._usage_version: tuple[int, Periods] | None = None
        self._leased: _Leased | None = None

    @property
    def place(self) -> str:
        return self._database.place

    def open(self, known: Sequence[KeyRow] | None, *, create: bool = True) -> None:
        """Reconnect, and repair the database. `known`: keys in memory; None at the start. Also raises StartupError."""
        # Versions of two connections cannot be compared.
        self._keys_version = self._downtimes_version = self._usage_version = self._leased = None
        self._database.open(known, create=create)

    def close(self) -> None:
        self._database.close()

    def changes(self, seen: State, known: Sequence[KeyRow]) -> tuple[list[KeyRow], State]:
        """Return the keys changed after `seen`, and the state to pass next time. `known`: the keys in memory.

        If the database was replaced, by a new one or an older copy, the keys it lacks are first written to it: valid
        keys must survive an accident with the database.
        """
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
        # Not `now.revision`: the rows may include a change that was made between the two statements.
        return rows, State(now.identity, max((row.revision for row in rows), default=seen.revision))

    def write(self, batch: Batch | None, periods: Periods, since: int | None) -> Totals:
        """Write a batch of usage once. Return the totals of keys whose usage any server may have written after `since`.

        `since`: the time of the last totals; None: return all keys' totals.
        """
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
        """Renew a server's leases. Return the leases that may have changed, in tokens, and the number of servers."""
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
        """Release a server's leases, and close. Leases that cannot be released lapse."""
        with suppress(Unavailable):
            if self._leased:
                with self._database.transaction(write=True) as connection:
                    leases.remove(connection, writer)
        self.close()

    # Each change of a key resets `_keys_version`: if its caller has stopped waiting, `changes` still returns the row.

    def create(self, new: NewKey, now: int) -> Issued:
        """Store a new key."""
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
        """End a key and return it, or None if it does not exist. A key revoked earlier is returned unchanged."""
        self._keys_version = None
        with self._database.transaction(write=True) as connection:
            row = keys.find(connection, key_id)
            if row is None or row.revoked_at is not None:
                return row
            return keys.change(connection, replace(row, revoked_at=now))

    def rotate(self, key_id: str, grace_s: int, now: int) -> Issued | None:
        """Give a key a new secret. The old one stays valid for `grace_s` seconds.

        Return None if the key does not exist or is revoked.
        """
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
        """Store the public key that verifies a secret's tokens. Return the row; None if no key has this secret."""
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
        """Return current and future downtimes, in order of their begin; None if the database is unchanged."""
        version = self._database.version()
        if version is not None and version == self._downtimes_version:
            return None
        with self._database.transaction(write=False) as connection:
            found = downtimes.not_over(connection, now)
        self._downtimes_version = version
        return found

    def all_downtimes(self) -> list[Downtime]:
        """Return all downtimes, past ones included, in order of their begin."""
        with self._database.transaction(write=False) as connection:
            return downtimes.all_of_them(connection)

    def add_downtime(self, downtime: Downtime) -> None:
        self._downtimes_version = None
        with self._database.transaction(write=True) as connection:
            downtimes.add(connection, downtime)

    def remove_downtime(self, downtime_id: str) -> bool:
        """Remove a downtime. Return False if the id does not exist."""
        self._downtimes_version = None
        with self._database.transaction(write=True) as connection:
            return downtimes.remove(connection, downtime_id)

    def save_responses(self, rows: Sequence[ResponseRow], most_bytes: int) -> None:
        with self._database.transaction(write=True) as connection:
            responses.save(connection, rows, most_bytes)

    def prune_responses(self, ttl_s: int, most_bytes: int) -> None:
        with self._database.transaction(write=True) as connection:
            responses.prune(connection, ttl_s, most_bytes)

    def response(self, tenant: str, response_id: str) -> ResponseRow | None:
        with self._database.transaction(write=False) as connection:
            return responses.find(connection, tenant, response_id)

    def response_events(self, response_id: str) -> list[EventChunk]:
        with self._database.transaction(write=False) as connection:
            return responses.events(connection, response_id)

    def advance_response(self, response_id: str, chunk: EventChunk | None) -> bool:
        with self._database.transaction(write=True) as connection:
            return responses.advance(connection, response_id, chunk)

    def finish_response(self, ended: Ended, chunk: EventChunk | None) -> bool:
        with self._database.transaction(write=True) as connection:
            return responses.finish(connection, ended, chunk)

    def remove_response(self, tenant: str, response_id: str) -> bool:
        with self._database.transaction(write=True) as connection:
            return responses.remove(connection, tenant, response_id)

    def report(self, query: ReportQuery) -> list[ReportRow]:
        with self._database.transaction(write=False) as connection:
            return usage.report(connection, query)


def _parts(key_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (key_ids[start : start + _PART] for start in range(0, len(key_ids), _PART))
