"""The tables, for queries. `migrations/` creates them, and a test compares both."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, String, Table, Text

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
    # Public halves of the keys that sign tokens; NULL: the secret is older, and nobody has requested a token with it.
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
    # By the database's clock. Servers find other servers' new usage by it.
    Column("written_at", BigInteger, nullable=False, index=True),
    Index("ix_usage_key_id_hour", "key_id", "hour"),
)

# One row. A transaction that changes a key takes the next revision and locks this row until its commit. A reader that
# has seen a revision has therefore seen all earlier ones.
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

# The last batch of usage of each server.
WRITERS = Table(
    "writers",
    METADATA,
    Column("writer", String(64), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("written_at", BigInteger, nullable=False),
)

# Servers that hold leases, and when each last gave a sign of life.
SERVERS = Table(
    "servers",
    METADATA,
    Column("writer", String(64), primary_key=True),
    Column("seen_at", BigInteger, nullable=False),
)

# Each server's part of a key's quota, in tokens, in addition to written usage.
LEASES = Table(
    "leases",
    METADATA,
    Column("key_id", String(64), primary_key=True),
    Column("writer", String(64), primary_key=True),
    Column("tokens", BigInteger, nullable=False),
    # Tokens that requests have reserved, or have used and are not written yet.
    Column("in_use", BigInteger, nullable=False),
    # Further tokens that refused requests need.
    Column("wanted", BigInteger, nullable=False),
    Column("changed_at", BigInteger, nullable=False, index=True),
)

# Responses that clients asked to keep. Documents are compressed JSON.
RESPONSES = Table(
    "responses",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("status", String(16), nullable=False),
    # The response object.
    Column("response", LargeBinary, nullable=False),
    # The conversation before it, as items.
    Column("items", LargeBinary, nullable=False),
    # Bytes of both documents and of the events, before compression.
    Column("size", BigInteger, nullable=False),
    # When the server that generates it last gave a sign of life. Times are milliseconds since 1970.
    Column("seen_at", BigInteger, nullable=False),
    # By the server's clock. The oldest responses go first.
    Column("created_at", BigInteger, nullable=False, index=True),
    # Each write sums the sizes of its tenants: the index alone answers that.
    Index("ix_responses_tenant_created_at", "tenant", "created_at", "size"),
)

# Events of responses that run in the background, many in each row.
RESPONSE_EVENTS = Table(
    "response_events",
    METADATA,
    Column("response_id", String(64), primary_key=True),
    # The number of the first event.
    Column("first", BigInteger, primary_key=True),
    Column("data", LargeBinary, nullable=False),
    # Bytes before compression.
    Column("size", BigInteger, nullable=False),
)
