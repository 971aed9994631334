"""Create the table of downtimes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "downtimes",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("begin_at", sa.BigInteger, nullable=False),
        sa.Column("end_at", sa.BigInteger, nullable=False, index=True),
        sa.Column("reason", sa.Text, nullable=False),
    )
