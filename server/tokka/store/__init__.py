"""The database of keys, usage, quotas and downtimes: SQLite or PostgreSQL. All SQL lives here."""
