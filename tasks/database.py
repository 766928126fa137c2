"""SQL for the pipeline's own tables, in the database that the cache uses.

The tables carry the prefix ``pipeline_`` and a namespace column, and are made on first use. Connections are
opened for each piece of work and closed after it: the pipeline comes here once a file, and nothing is left
open in a process that forks.
"""

from __future__ import annotations

import functools
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, MetaData, NullPool, Table, create_engine, event, inspect, make_url, text
from sqlalchemy.dialects import postgresql, sqlite

from cache_blocks import CacheSettings

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from sqlalchemy import Engine

WAIT_SECONDS = 30
"""How long to wait for a connection, or for another process's write to a SQLite file."""

# Any number that no other program would pick; makes processes that create the tables at the same time queue
# up.
_SCHEMA_LOCK = 0x70697065_6C696E65 % 2**63
_WRITES = "pipeline_writes"


@dataclass(frozen=True)
class Database:
    """A database and the namespace in it that a caller works in."""

    engine: Engine
    namespace: str

    @classmethod
    def from_settings(cls, settings: CacheSettings | None = None) -> Database:
        """Return the database that the cache's settings name, by default those of the environment."""
        chosen = settings or CacheSettings()
        return cls(engine_for(chosen.database_url.get_secret_value()), chosen.namespace)

    @property
    def is_postgres(self) -> bool:
        """Whether this is PostgreSQL; otherwise it is SQLite."""
        return self.engine.dialect.name == "postgresql"

    @contextmanager
    def reading(self, metadata: MetaData) -> Generator[Connection]:
        """Open one read transaction in which the tables of `metadata` exist."""
        ensure_tables(self.engine, metadata)
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self, metadata: MetaData) -> Generator[Connection]:
        """Open one write transaction, committed at the end, in which the tables of `metadata` exist."""
        ensure_tables(self.engine, metadata)
        with _begin_write(self.engine) as connection:
            yield connection

    def truncate_log(self) -> None:
        """Empty SQLite's write-ahead log, which still holds pages as they were before a deletion.

        While somebody reads, SQLite leaves that to the next checkpoint.
        """
        if self.engine.dialect.name == "sqlite":
            with closing(self.engine.raw_connection()) as connection:
                connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")


@functools.cache
def engine_for(url: str) -> Engine:
    """Return this process's engine for an SQLAlchemy URL of SQLite or PostgreSQL.

    Raises:
        ValueError: it is another kind of database.
    """
    parsed = make_url(url)
    match parsed.get_backend_name():
        case "sqlite":
            if parsed.database and parsed.database != ":memory:":
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            engine = create_engine(parsed, poolclass=NullPool, connect_args={"timeout": WAIT_SECONDS})
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        case "postgresql":
            return create_engine(parsed, poolclass=NullPool, connect_args={"connect_timeout": WAIT_SECONDS})
        case other:
            raise ValueError(f"the pipeline's tables need SQLite or PostgreSQL, not {other}")


def ensure_tables(engine: Engine, metadata: MetaData) -> None:
    """Create the tables of `metadata` and what hangs on them, unless they exist.

    Any number of processes may do so at once.
    """
    if _existing(engine, metadata):
        return
    with _begin_write(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _SCHEMA_LOCK})
        metadata.create_all(connection)


def upsert(
    connection: Connection, table: Table, key: Mapping[str, Any], values: Mapping[str, Any]
) -> Any:  # a primary key is of any type
    """Insert the row named by `key`, or update it to `values`; return its first primary key."""
    insert = (postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert)(table)
    statement = insert.values({**key, **values}).on_conflict_do_update(index_elements=list(key), set_=dict(values))
    return connection.execute(statement.returning(table.primary_key.columns[0])).scalar_one()


def _existing(engine: Engine, metadata: MetaData) -> bool:
    with engine.connect() as connection:
        return set(metadata.tables) <= set(inspect(connection).get_table_names())


def _begin_write(engine: Engine) -> Any:  # SQLAlchemy's private context manager
    return engine.execution_options(**{_WRITES: True}).begin()


def _prepare_sqlite(connection: Any, _record: object) -> None:  # sqlite3 or a driver alike
    # The driver must not open transactions of its own: it would begin them without the write lock.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    # Deleted text is overwritten rather than left in free pages: recordings can be forgotten.
    cursor.execute("PRAGMA secure_delete = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads before it writes fails with "database is locked" at once, whatever the timeout,
    # when somebody has written in between; taking the write lock first waits instead.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
