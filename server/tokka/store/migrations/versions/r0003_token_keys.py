"""Add the public halves of the keys that sign tokens. They can check tokens, but not make them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("keys", sa.Column("token_key", sa.String(64)))
    op.add_column("keys", sa.Column("previous_token_key", sa.String(64)))
