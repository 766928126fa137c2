"""The index: transcripts and their segments as plain tables, and what each database adds for searching them.

SQLite searches FTS5 tables that triggers keep equal to the plain ones; PostgreSQL a generated ``tsvector``
column. Writers therefore only ever write the plain tables. Both keep the most frequent words ("to be or not
to be"), and both stem words as English does, which leaves other languages searchable by whole words.
"""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
)

METADATA = MetaData()

# SQLite numbers rows by itself only for a column declared INTEGER.
_RowId = BigInteger().with_variant(Integer(), "sqlite")

TRANSCRIPTS = Table(
    "pipeline_transcripts",
    METADATA,
    Column("id", _RowId, primary_key=True),
    Column("namespace", String(128), nullable=False),
    Column("recording", String(128), nullable=False),
    Column("name", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("announced", Boolean, nullable=False),
    Column("indexed_at", DateTime(timezone=True), nullable=False),
    UniqueConstraint("namespace", "recording"),
)

SEGMENTS = Table(
    "pipeline_segments",
    METADATA,
    Column("id", _RowId, primary_key=True),
    Column("transcript_id", _RowId, ForeignKey(TRANSCRIPTS.c.id, ondelete="CASCADE"), nullable=False, index=True),
    Column("position", Integer, nullable=False),
    Column("start_seconds", Double, nullable=False),
    Column("end_seconds", Double, nullable=False),
    Column("body", Text, nullable=False),
)

POSTGRES_CONFIGURATION = "pipeline_english"
"""PostgreSQL's configuration for English, but without its list of words to ignore."""

_CONFIGURE_POSTGRES = f"""
DO $$ BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_ts_config WHERE cfgname = '{POSTGRES_CONFIGURATION}' AND pg_ts_config_is_visible(oid)
    ) THEN
        CREATE TEXT SEARCH DICTIONARY pipeline_english_stem (TEMPLATE = snowball, LANGUAGE = english);
        CREATE TEXT SEARCH CONFIGURATION {POSTGRES_CONFIGURATION} (COPY = pg_catalog.english);
        ALTER TEXT SEARCH CONFIGURATION {POSTGRES_CONFIGURATION}
            ALTER MAPPING REPLACE english_stem WITH pipeline_english_stem;
    END IF;
END $$"""

# The text search parser takes "austen-870.mp3" for a file and "3.5" for a number; as words they can be found.
_PLAIN = "translate({}, './@_-:+<>&;', '           ')"


def _fts5(table: Table, columns: tuple[str, ...]) -> list[str]:
    """Statements that give `table` an FTS5 index, in SQLite's documented form for external content."""
    name, index, listed = table.name, f"{table.name}_fts", ", ".join(columns)
    old, new = (", ".join(f"{row}.{column}" for column in columns) for row in ("old", "new"))
    # The names are constants of this module.
    remove = f"INSERT INTO {index}({index}, rowid, {listed}) VALUES ('delete', old.id, {old});"  # noqa: S608
    add = f"INSERT INTO {index}(rowid, {listed}) VALUES (new.id, {new});"  # noqa: S608
    return [
        f"""CREATE VIRTUAL TABLE {index} USING fts5({listed}, content='{name}', content_rowid='id',
            tokenize='porter unicode61 remove_diacritics 2')""",
        f"CREATE TRIGGER {name}_added AFTER INSERT ON {name} BEGIN {add} END",
        f"CREATE TRIGGER {name}_removed AFTER DELETE ON {name} BEGIN {remove} END",
        f"CREATE TRIGGER {name}_changed AFTER UPDATE OF {listed} ON {name} BEGIN {remove} {add} END",
    ]


def _tsvector(table: Table, columns: tuple[str, ...]) -> list[str]:
    """Statements that give `table` a ``document`` column, weighing earlier columns more, and a GIN index."""
    weighted = (
        f"setweight(to_tsvector('{POSTGRES_CONFIGURATION}', {_PLAIN.format(column)}), '{weight}')"
        for column, weight in zip(columns, "ABCD", strict=False)
    )
    return [
        f"""ALTER TABLE {table.name} ADD COLUMN document tsvector
            GENERATED ALWAYS AS ({" || ".join(weighted)}) STORED""",
        f"CREATE INDEX {table.name}_document ON {table.name} USING gin (document)",
    ]


def _add_index(table: Table, columns: tuple[str, ...]) -> None:
    for dialect, statements in (("sqlite", _fts5(table, columns)), ("postgresql", _tsvector(table, columns))):
        for statement in statements:
            event.listen(table, "after_create", DDL(statement).execute_if(dialect=dialect))


event.listen(TRANSCRIPTS, "before_create", DDL(_CONFIGURE_POSTGRES).execute_if(dialect="postgresql"))
_add_index(TRANSCRIPTS, ("name", "body"))
_add_index(SEGMENTS, ("body",))
