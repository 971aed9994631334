"""Public halves of the keys that sign tokens: what is stored checks tokens and makes none."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("keys", sa.Column("token_key", sa.String(64)))
    op.add_column("keys", sa.Column("previous_token_key", sa.String(64)))
