"""The tables as queries name them; `migrations/` makes them, and a test compares the two."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, String, Table, Text

METADATA = MetaData()

KEYS = Table(
    "keys",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("prefix", String(16), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("previous_digest", String(64)),
    Column("previous_until", BigInteger),
    # Public halves of the keys that sign tokens; NULL: the secret is older and has not been used to get a token.
    Column("token_key", String(64)),
    Column("previous_token_key", String(64)),
    # Separated by commas.
    Column("scopes", Text, nullable=False),
    # A JSON list; NULL: all models.
    Column("models", Text),
    Column("rpm", BigInteger),
    Column("tpm", BigInteger),
    Column("max_running", BigInteger),
    Column("max_completion_tokens", BigInteger),
    Column("daily_tokens", BigInteger),
    Column("monthly_tokens", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("revision", BigInteger, nullable=False, index=True),
)

USAGE = Table(
    "usage",
    METADATA,
    # When the hour began.
    Column("hour", BigInteger, primary_key=True),
    Column("key_id", Text, primary_key=True),
    Column("tenant", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    # By the database's clock: what other front ends have written lately is found by it.
    Column("written_at", BigInteger, nullable=False, index=True),
    Index("ix_usage_key_id_hour", "key_id", "hour"),
)

# One row. Whoever changes a key takes the next revision and holds this row until it is committed, so that a reader who
# has seen a revision has seen all before it.
STATE = Table(
    "state",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("identity", String(32), nullable=False),
    Column("revision", BigInteger, nullable=False),
)

# Windows without service, set by operators.
DOWNTIMES = Table(
    "downtimes",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("begin_at", BigInteger, nullable=False),
    Column("end_at", BigInteger, nullable=False, index=True),
    Column("reason", Text, nullable=False),
)

# The last batch of usage each server has written.
WRITERS = Table(
    "writers",
    METADATA,
    Column("writer", String(64), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("written_at", BigInteger, nullable=False),
)

# Servers that hold leases, and when each was last here.
SERVERS = Table(
    "servers",
    METADATA,
    Column("writer", String(64), primary_key=True),
    Column("seen_at", BigInteger, nullable=False),
)

# What a server may use of a key's quota beyond the usage that is written.
LEASES = Table(
    "leases",
    METADATA,
    Column("key_id", String(64), primary_key=True),
    Column("writer", String(64), primary_key=True),
    Column("tokens", BigInteger, nullable=False),
    # Of these: reserved by requests, or used and not written yet.
    Column("in_use", BigInteger, nullable=False),
    # Beyond them, by requests that were refused.
    Column("wanted", BigInteger, nullable=False),
    Column("changed_at", BigInteger, nullable=False, index=True),
)
