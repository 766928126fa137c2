"""Alembic migrations of the cache's tables, run by `cache_blocks.database` at first use."""
