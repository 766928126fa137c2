"""First tables."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "cache_blocks_entry",
        _key("namespace", 64),
        _key("key", 220),
        _text("kind", 48),
        _text("task", 255),
        _whole("fence"),
        _real("created_at"),
        _real("expires_at"),
        _real("compute_seconds"),
        _whole("stored_bytes"),
        _whole("blob_bytes"),
        _text("placement", 64),
        sa.Column("generations", sa.JSON, nullable=False),
        sa.Column("manifest", sa.JSON, nullable=False),
        sa.Column("envelope", sa.LargeBinary, nullable=True),
    )
    op.create_index("ix_cache_blocks_entry_expiry", "cache_blocks_entry", ["namespace", "expires_at"])
    op.create_index("ix_cache_blocks_entry_kind", "cache_blocks_entry", ["namespace", "kind", "created_at"])
    op.create_table("cache_blocks_tag", _key("namespace", 64), _key("tag", 200), _key("key", 220))
    op.create_index("ix_cache_blocks_tag_key", "cache_blocks_tag", ["namespace", "key"])
    op.create_table("cache_blocks_blob", _key("namespace", 64), _key("digest", 64), _key("key", 220))
    op.create_index("ix_cache_blocks_blob_key", "cache_blocks_blob", ["namespace", "key"])
    op.create_table("cache_blocks_generation", _key("namespace", 64), _key("scope", 240), _whole("number"))
    op.create_table(
        "cache_blocks_untold", _key("namespace", 64), _key("tier", 16), _key("scope", 240), _whole("number")
    )
    op.create_table("cache_blocks_fence", _key("namespace", 64), _whole("number"))
    op.create_table(
        "cache_blocks_lease",
        _key("namespace", 64),
        _key("key", 220),
        _text("token", 64),
        sa.Column("failed", sa.Boolean, nullable=False),
        _real("expires_at"),
    )
    _create_events()


def _create_events() -> None:
    op.create_table(
        "cache_blocks_event",
        _key("id", 32),
        _text("namespace", 64),
        _real("at"),
        _text("action", 16),
        _text("kind", 48),
        _text("key", 220),
        _text("outcome", 16),
        _text("tier", 16),
        _text("reason", 400),
        _text("subject", 200),
        _text("task", 255),
        _text("flow_run_id", 36),
        _text("task_run_id", 36),
        _whole("stored_bytes"),
        _real("seconds"),
        _real("seconds_saved"),
    )
    op.create_index("ix_cache_blocks_event_run", "cache_blocks_event", ["namespace", "flow_run_id"])
    op.create_index("ix_cache_blocks_event_time", "cache_blocks_event", ["namespace", "at"])
    op.create_index("ix_cache_blocks_event_key", "cache_blocks_event", ["namespace", "key"])


def downgrade() -> None:
    """Drop the tables."""
    for name in ("entry", "tag", "blob", "generation", "untold", "fence", "lease", "event"):
        op.drop_table(f"cache_blocks_{name}")


def _key(name: str, length: int) -> sa.Column[Any]:
    return sa.Column(name, sa.String(length), primary_key=True)


def _text(name: str, length: int) -> sa.Column[Any]:
    return sa.Column(name, sa.String(length), nullable=False)


def _whole(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger, nullable=False)


def _real(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Float(53), nullable=False)
