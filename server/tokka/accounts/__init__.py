"""API keys, tokens (JWT), usage, quotas and downtimes: the copies in memory, and their exchange with the database."""
