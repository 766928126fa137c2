"""Alembic environment: runs on the connection that `cache_blocks.database` hands over."""

from alembic import context

from cache_blocks.schema import CacheTable

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=CacheTable.metadata,
    version_table="cache_blocks_schema",
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
