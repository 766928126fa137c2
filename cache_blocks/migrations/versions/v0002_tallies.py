"""Tallies kept by triggers, sums of flow runs, indexes for listings and expiry, how far collections are, flows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_SIZE = sa.text("(stored_bytes + blob_bytes)")
_MONEY = ("money", "money_saved")
_WHOLE = ("events", "entries", "stored_bytes", "blob_bytes")
_SIDES = ("cache_blocks_tag", "cache_blocks_blob")


class _Tally(NamedTuple):
    """A table of sums over another one: what is added up, and by what. ``{r}`` stands for a row of the other one."""

    name: str
    source: str
    keys: Mapping[str, str]
    sums: Mapping[str, str]


_ENTRIES = _Tally(
    "cache_blocks_entry_tally",
    "cache_blocks_entry",
    {name: f"{{r}}.{name}" for name in ("namespace", "kind")},
    {"entries": "1"} | {name: f"{{r}}.{name}" for name in ("stored_bytes", "blob_bytes", "compute_seconds")},
)
_EVENTS = _Tally(
    "cache_blocks_event_tally",
    "cache_blocks_event",
    {"namespace": "{r}.namespace", "day": "{day}"}
    | {name: f"{{r}}.{name}" for name in ("action", "kind", "outcome", "tier", "task", "flow", "cause")},
    {"events": "1"} | {name: f"{{r}}.{name}" for name in ("stored_bytes", "seconds", "seconds_saved", *_MONEY)},
)
_DAY = {"sqlite": "CAST({r}.at / 86400 AS INTEGER)", "postgresql": "CAST(floor({r}.at / 86400) AS INTEGER)"}


_ROWS_PER_VALUE = {
    "entry": {
        "PRIMARY": "1",
        "expiry": "2000 2 1",
        "time": "2 1 1",
        "kind": "2000 2 1 1",
        "task": "1000 2 1 1",
        "subject": "1000 2 1",
        "input": "1000 2 1",
    },
    "tag": {"PRIMARY": "10 1", "key": "2 1", "time": "10 2 1"},
    "blob": {"PRIMARY": "2 1", "key": "1 1"},
    "event": {"run": "100", "time": "1", "key": "10"},
}
"""For each index, how many rows there are with the same namespace and second column, and third, and so on.

Indexes that a later revision makes are told of here too: SQLite passes over those that are not there yet.
"""


def upgrade() -> None:
    """Add everything, and fill the tallies with what is there."""
    dialect = op.get_bind().dialect.name
    if dialect == "postgresql":  # others may be writing, and what they write must be in the sums too
        op.execute("LOCK TABLE cache_blocks_entry, cache_blocks_tag, cache_blocks_event IN SHARE ROW EXCLUSIVE MODE")
    _add_columns()
    _change_indexes()
    _create_tallies()
    _create_runs()
    for side in _SIDES:
        op.execute(
            f"DELETE FROM {side} WHERE NOT EXISTS (SELECT 1 FROM cache_blocks_entry e "  # noqa: S608 - constants
            f"WHERE e.namespace = {side}.namespace AND e.key = {side}.key)"
        )
    op.execute(
        "UPDATE cache_blocks_tag SET created_at = (SELECT e.created_at FROM cache_blocks_entry e "
        "WHERE e.namespace = cache_blocks_tag.namespace AND e.key = cache_blocks_tag.key)"
    )
    op.create_index("ix_cache_blocks_tag_time", "cache_blocks_tag", ["namespace", "tag", "created_at", "key"])
    for tally in (_ENTRIES, _EVENTS):
        op.execute(_sum(tally, dialect, tally.source, shard="0"))
    for statement in _triggers(dialect):
        op.execute(statement)
    if dialect == "sqlite":
        _describe_large_tables()


def _describe_large_tables() -> None:
    """Tell SQLite's planner what large tables are like: else it takes a namespace for ten rows, and reads them all.

    Were a namespace said to be all of the table, it would sort it rather than follow an index to the first page.
    """
    op.execute("ANALYZE cache_blocks_schema")  # makes the table
    insert = sa.text("INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES (:of, :name, :stat)")
    for table, indexes in _ROWS_PER_VALUE.items():
        for index, rows in indexes.items():
            primary = f"sqlite_autoindex_cache_blocks_{table}_1"
            name = primary if index == "PRIMARY" else f"ix_cache_blocks_{table}_{index}"
            stat = f"1000000 10000 {rows}"
            op.get_bind().execute(insert, {"of": f"cache_blocks_{table}", "name": name, "stat": stat})


def downgrade() -> None:
    """Take everything away again."""
    if op.get_bind().dialect.name == "postgresql":
        for function in ("entry", "event"):
            op.execute(f"DROP FUNCTION cache_blocks_tally_{function}() CASCADE")
    else:
        for trigger in ("entry_added", "entry_changed", "entry_gone", "event_added"):
            op.execute(f"DROP TRIGGER cache_blocks_{trigger}")
    for tally in (_ENTRIES, _EVENTS):
        op.drop_table(tally.name)
    op.drop_table("cache_blocks_run")
    for name in ("time", "task", "kind", "expiry", "size"):
        op.drop_index(f"ix_cache_blocks_entry_{name}", "cache_blocks_entry")
    op.drop_index("ix_cache_blocks_tag_time", "cache_blocks_tag")
    op.create_index("ix_cache_blocks_entry_expiry", "cache_blocks_entry", ["namespace", "expires_at"])
    op.create_index("ix_cache_blocks_entry_kind", "cache_blocks_entry", ["namespace", "kind", "created_at"])
    for side in ("tag", "blob"):
        op.drop_index(f"ix_cache_blocks_{side}_key", f"cache_blocks_{side}")
        op.create_index(f"ix_cache_blocks_{side}_key", f"cache_blocks_{side}", ["namespace", "key"])
    op.drop_column("cache_blocks_tag", "created_at")
    for name in ("flow", "cause", *_MONEY):
        op.drop_column("cache_blocks_event", name)
    for name in ("swept", "settled"):
        op.drop_column("cache_blocks_generation", name)


def _add_columns() -> None:
    op.add_column("cache_blocks_tag", sa.Column("created_at", sa.Float(53), nullable=False, server_default="0"))
    for name, length in (("flow", 255), ("cause", 120)):
        op.add_column("cache_blocks_event", sa.Column(name, sa.String(length), nullable=False, server_default=""))
    for name in _MONEY:
        op.add_column("cache_blocks_event", sa.Column(name, sa.Float(53), nullable=False, server_default="0"))
    for name in ("swept", "settled"):
        op.add_column("cache_blocks_generation", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))


def _change_indexes() -> None:
    for name in ("expiry", "kind"):
        op.drop_index(f"ix_cache_blocks_entry_{name}", "cache_blocks_entry")
    for side, column in (("tag", "tag"), ("blob", "digest")):
        op.drop_index(f"ix_cache_blocks_{side}_key", f"cache_blocks_{side}")
        op.create_index(f"ix_cache_blocks_{side}_key", f"cache_blocks_{side}", ["namespace", "key", column])
    indexes: dict[str, list[Any]] = {
        "expiry": ["namespace", "kind", "expires_at", "key"],
        "time": ["namespace", "created_at", "key", _SIZE],
        "kind": ["namespace", "kind", "created_at", "key", _SIZE],
        "size": ["namespace", _SIZE, "key"],
        "task": ["namespace", "task", "created_at", "key", _SIZE],
    }
    for name, columns in indexes.items():
        op.create_index(f"ix_cache_blocks_entry_{name}", "cache_blocks_entry", columns)


def _create_tallies() -> None:
    lengths = {"namespace": 64, "kind": 48, "task": 255, "flow": 255, "cause": 120}
    lengths |= dict.fromkeys(("action", "outcome", "tier"), 16)
    for tally in (_ENTRIES, _EVENTS):
        keys = [
            sa.Column(name, sa.String(lengths[name]) if name in lengths else sa.Integer, primary_key=True)
            for name in (*tally.keys, "shard")
        ]
        sums = [
            sa.Column(name, sa.BigInteger if name in _WHOLE else sa.Float(53), nullable=False) for name in tally.sums
        ]
        op.create_table(tally.name, *keys, *sums)


def _create_runs() -> None:
    op.create_table(
        "cache_blocks_run",
        sa.Column("namespace", sa.String(64), primary_key=True),
        sa.Column("flow_run_id", sa.String(36), primary_key=True),
        sa.Column("flow", sa.String(255), nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("lookups", "hits")),
        *(
            sa.Column(name, sa.Float(53), nullable=False)
            for name in ("at", "seconds_saved", "money_saved", "compute_seconds", "money_spent")
        ),
    )
    op.create_index("ix_cache_blocks_run_flow", "cache_blocks_run", ["namespace", "flow", "at"])


def _triggers(dialect: str) -> Iterator[str]:
    """Yield what keeps the tallies, and takes an entry's side rows with it when it goes or another takes its place.

    SQLite calls a trigger for each row, PostgreSQL, which can show it all rows of a statement, for each statement.
    """
    added, gone = _ENTRIES, " ".join(_delete_sides(dialect))
    if dialect == "sqlite":
        more, less = _add(added, dialect, "NEW"), _add(added, dialect, "OLD", sign="-")
        yield f"CREATE TRIGGER cache_blocks_entry_added AFTER INSERT ON cache_blocks_entry BEGIN {more} END"
        changed = f"{less} {more} {gone}"
        yield f"CREATE TRIGGER cache_blocks_entry_changed AFTER UPDATE ON cache_blocks_entry BEGIN {changed} END"
        yield f"CREATE TRIGGER cache_blocks_entry_gone AFTER DELETE ON cache_blocks_entry BEGIN {less} {gone} END"
        event = _add(_EVENTS, dialect, "NEW")
        yield f"CREATE TRIGGER cache_blocks_event_added AFTER INSERT ON cache_blocks_event BEGIN {event} END"
        return
    more, less = _add(added, dialect, "added"), _add(added, dialect, "gone", sign="-")
    yield _function(
        "entry",
        f"IF TG_OP <> 'INSERT' THEN {less} END IF; "
        f"IF TG_OP <> 'DELETE' THEN {more} END IF; "
        f"IF TG_OP <> 'INSERT' THEN {gone} END IF;",
    )
    yield _function("event", _add(_EVENTS, dialect, "added"))
    news, olds = "NEW TABLE AS added", "OLD TABLE AS gone"
    for when, what, rows in (
        ("added", "INSERT", news),
        ("changed", "UPDATE", f"{olds} {news}"),
        ("gone", "DELETE", olds),
    ):
        yield _statement_trigger("entry", when, what, rows)
    yield _statement_trigger("event", "added", "INSERT", news)


def _function(about: str, body: str) -> str:
    return (
        f"CREATE FUNCTION cache_blocks_tally_{about}() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN {body} RETURN NULL; END $$"
    )


def _statement_trigger(about: str, when: str, what: str, rows: str) -> str:
    return (
        f"CREATE TRIGGER cache_blocks_{about}_{when} AFTER {what} ON cache_blocks_{about} REFERENCING {rows} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION cache_blocks_tally_{about}()"
    )


def _delete_sides(dialect: str) -> Iterator[str]:
    for side in _SIDES:
        if dialect == "sqlite":
            yield f"DELETE FROM {side} WHERE namespace = OLD.namespace AND key = OLD.key;"  # noqa: S608 - constants
        else:
            yield f"DELETE FROM {side} s USING gone WHERE s.namespace = gone.namespace AND s.key = gone.key;"  # noqa: S608 - constants


def _add(tally: _Tally, dialect: str, rows: str, sign: str = "") -> str:
    """Return the statement that adds rows to a tally, or with ``-`` takes them away.

    Args:
        tally: The tally.
        dialect: Database.
        rows: Name of the row, in PostgreSQL of the rows.
        sign: ``-`` to take away.
    """
    shard = "0" if dialect == "sqlite" else "pg_backend_pid()"
    conflict = f"ON CONFLICT ({', '.join((*tally.keys, 'shard'))}) DO UPDATE SET " + ", ".join(
        f"{name} = {tally.name}.{name} + excluded.{name}" for name in tally.sums
    )
    if dialect == "postgresql":
        return f"{_sum(tally, dialect, rows, shard=shard, sign=sign)} {conflict};"
    values = [_of(part, dialect, rows) for part in tally.keys.values()]
    values += [shard, *(sign + _of(part, dialect, rows) for part in tally.sums.values())]
    return f"INSERT INTO {tally.name} ({_columns(tally)}) VALUES ({', '.join(values)}) {conflict};"  # noqa: S608 - constants


def _sum(tally: _Tally, dialect: str, rows: str, shard: str, sign: str = "") -> str:
    """Return the statement that adds up rows and inserts the sums."""
    keys = [_of(part, dialect, "r") for part in tally.keys.values()]
    values = [*keys, shard, *(f"{sign}sum({_of(part, dialect, 'r')})" for part in tally.sums.values())]
    return (
        f"INSERT INTO {tally.name} ({_columns(tally)}) SELECT {', '.join(values)} FROM {rows} r "  # noqa: S608 - constants
        f"GROUP BY {', '.join(keys)}"
    )


def _columns(tally: _Tally) -> str:
    return ", ".join((*tally.keys, "shard", *tally.sums))


def _of(part: str, dialect: str, row: str) -> str:
    return part.replace("{day}", _DAY[dialect]).replace("{r}", row)
