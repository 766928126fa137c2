"""First tables."""

from __future__ import annotations

from alembic import op

from cache_blocks.schema import CacheTable

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    CacheTable.metadata.create_all(op.get_bind())


def downgrade() -> None:
    """Drop the tables."""
    CacheTable.metadata.drop_all(op.get_bind())
