"""Fewer indexes to write: sizes of large entries only, and tags by their entry in the primary key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_SIZE = sa.text("(stored_bytes + blob_bytes)")
_IS_LARGE = sa.text("stored_bytes + blob_bytes >= 65536")
_TAG_COLUMNS = "namespace, key, tag, created_at"


def upgrade() -> None:
    """Change the indexes; in SQLite the table of tags becomes one with its primary key."""
    op.drop_index("ix_cache_blocks_entry_size", "cache_blocks_entry")
    op.create_index(
        "ix_cache_blocks_entry_large",
        "cache_blocks_entry",
        ["namespace", _SIZE, "key"],
        sqlite_where=_IS_LARGE,
        postgresql_where=_IS_LARGE,
    )
    op.drop_index("ix_cache_blocks_tag_key", "cache_blocks_tag")
    _change_key(["namespace", "key", "tag"], with_rowid=False)


def downgrade() -> None:
    """Put them back."""
    _change_key(["namespace", "tag", "key"], with_rowid=True)
    op.create_index("ix_cache_blocks_tag_key", "cache_blocks_tag", ["namespace", "key", "tag"])
    op.drop_index("ix_cache_blocks_entry_large", "cache_blocks_entry")
    op.create_index("ix_cache_blocks_entry_size", "cache_blocks_entry", ["namespace", _SIZE, "key"])


def _change_key(columns: list[str], *, with_rowid: bool) -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "ALTER TABLE cache_blocks_tag DROP CONSTRAINT cache_blocks_tag_pkey, "
            f"ADD CONSTRAINT cache_blocks_tag_pkey PRIMARY KEY ({', '.join(columns)})"
        )
        return
    # No renaming, with which SQLite would rename the table in the triggers that name it too.
    op.execute(f"CREATE TABLE cache_blocks_tag_before AS SELECT {_TAG_COLUMNS} FROM cache_blocks_tag")  # noqa: S608 - constants
    op.drop_table("cache_blocks_tag")
    lengths = {"namespace": 64, "tag": 200, "key": 220}
    op.create_table(
        "cache_blocks_tag",
        *(sa.Column(name, sa.String(lengths[name]), primary_key=True) for name in columns),
        sa.Column("created_at", sa.Float(53), nullable=False, server_default="0"),
        sqlite_with_rowid=with_rowid,
    )
    op.execute(
        f"INSERT INTO cache_blocks_tag ({_TAG_COLUMNS}) SELECT {_TAG_COLUMNS} FROM cache_blocks_tag_before "  # noqa: S608 - constants
        f"ORDER BY {', '.join(columns)}"
    )
    op.drop_table("cache_blocks_tag_before")
    op.create_index("ix_cache_blocks_tag_time", "cache_blocks_tag", ["namespace", "tag", "created_at", "key"])
    _describe_tags(primary="sqlite_autoindex_cache_blocks_tag_1" if with_rowid else "cache_blocks_tag")


def _describe_tags(primary: str) -> None:
    """Tell SQLite's planner again what the table is like when it is large; see revision 0002."""
    insert = sa.text("INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES ('cache_blocks_tag', :name, :stat)")
    for name, rows in ((primary, "2 1"), ("ix_cache_blocks_tag_time", "10 2 1")):
        op.get_bind().execute(insert, {"name": name, "stat": f"1000000 10000 {rows}"})
