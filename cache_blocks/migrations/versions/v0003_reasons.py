"""What a miss is explained by (what an entry is about, when something was invalidated), and what a plan goes by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns; entries of before have nothing in them, and explain no miss."""
    op.add_column("cache_blocks_entry", sa.Column("subject", sa.String(200), nullable=False, server_default=""))
    op.add_column("cache_blocks_entry", sa.Column("main_input", sa.String(64), nullable=False, server_default=""))
    op.add_column("cache_blocks_entry", sa.Column("usage", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("cache_blocks_generation", sa.Column("raised_at", sa.Float(53), nullable=False, server_default="0"))
    for name, column in (("subject", "subject"), ("input", "main_input")):
        columns = ["namespace", "task", column, "created_at"]
        op.create_index(f"ix_cache_blocks_entry_{name}", "cache_blocks_entry", columns)
    op.create_table(
        "cache_blocks_plan",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("namespace", sa.String(64), nullable=False),
        sa.Column("flow", sa.String(255), nullable=False),
        sa.Column("made_at", sa.Float(53), nullable=False),
        sa.Column("parameters", sa.JSON, nullable=False),
        sa.Column("stages", sa.JSON, nullable=False),
    )
    op.create_index("ix_cache_blocks_plan_flow", "cache_blocks_plan", ["namespace", "flow", "made_at"])


def downgrade() -> None:
    """Take them away again."""
    op.drop_table("cache_blocks_plan")
    for name in ("subject", "input"):
        op.drop_index(f"ix_cache_blocks_entry_{name}", "cache_blocks_entry")
    for column in ("subject", "main_input", "usage"):
        op.drop_column("cache_blocks_entry", column)
    op.drop_column("cache_blocks_generation", "raised_at")
