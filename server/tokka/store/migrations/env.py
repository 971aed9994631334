"""Run the migrations, called by Alembic, on the connection and in the transaction of `store/migration.py`."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
