"""The connection to the SQL tier: engine, time limits, schema. Everything SQL goes through one `Database`."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import orjson
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from cache_blocks import forking
from cache_blocks.errors import ConfigurationError, TierUnavailableError
from cache_blocks.tiers.base import unavailable
from cache_blocks.upgrading import upgrade

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

_UNHURRIED_SECONDS: Final = 3600.0
_OUTAGES: Final[tuple[type[Exception], ...]] = (DBAPIError, PoolTimeoutError, OSError)


class Database:
    """One database, opened and migrated at first use.

    Args:
        url: SQLAlchemy URL; ``sqlite:///…`` and ``postgresql+psycopg://…`` are supported.
        timeout_seconds: Limit of one statement and of connecting.
        connections: Most connections of this process to PostgreSQL; further threads wait for one. No thread holds two.
    """

    def __init__(self, url: str, timeout_seconds: float = 2.0, connections: int = 4) -> None:
        try:
            self._url = sa.make_url(url)
        except (ArgumentError, ValueError):  # whose text may show a part of the password
            raise ConfigurationError(
                "CACHE_BLOCKS_DATABASE_URL is no SQLAlchemy URL, such as sqlite:////data/cache.db"
            ) from None
        if "@" in (self._url.host or ""):
            raise ConfigurationError("CACHE_BLOCKS_DATABASE_URL: write an '@' in the password as %40")
        if self._url.get_backend_name() not in ("sqlite", "postgresql"):
            msg = f"database {self._url.get_backend_name()!r} is not supported; use sqlite:/// or postgresql+psycopg://"
            raise ConfigurationError(msg)
        self._timeout = timeout_seconds
        self._connections = connections
        self._engine: Engine | None = None
        self._ready = False
        self._failures = 0
        self._lock = forking.lock()
        # A fork would copy what SQLite knows of locks, which is true in one process only (https://sqlite.org/howtocorrupt.html).
        self._inside = forking.Gate(self.close).inside if self.is_sqlite else nullcontext
        forking.forget_parent_of(self)

    @property
    def is_sqlite(self) -> bool:
        """Whether this is SQLite rather than PostgreSQL."""
        return self._url.get_backend_name() == "sqlite"

    @property
    def label(self) -> str:
        """The URL without its password, for people."""
        return self._url.render_as_string(hide_password=True)

    @contextmanager
    def begin(self) -> Generator[Connection]:
        """Give a connection in a transaction that commits at the end.

        Raises:
            TierUnavailableError: The database is down, slow or full.
        """
        try:
            with self._inside(), self._connected(self._ready_engine()) as connection, connection.begin():
                yield connection
        except _OUTAGES as error:
            raise unavailable("sql", error) from error

    @contextmanager
    def read(self) -> Generator[Connection]:
        """Give a connection for reading; it blocks no writer. Each statement sees what is there when it begins.

        Raises as `begin` does.
        """
        try:
            with self._inside(), self._connected(self._ready_engine()) as connection:
                yield connection.execution_options(only_reads=True)
        except _OUTAGES as error:
            raise unavailable("sql", error) from error

    @contextmanager
    def unhurried(self) -> Generator[Any]:
        """Give the driver's own connection, outside of any transaction, for what takes its time, such as compacting.

        Raises:
            TierUnavailableError: As `begin`, or the driver says why not.
        """
        driver_error = cast("Any", self._url.get_dialect()).import_dbapi().Error
        try:
            with self._inside(), self._connected(self._ready_engine()) as connection:
                driver: Any = connection.connection.driver_connection
                connection.detach()  # from the pool, whose connections have less patience
                if not self.is_sqlite:
                    driver.patience = _UNHURRIED_SECONDS
                try:
                    yield driver
                except driver_error as error:
                    connection.invalidate(error)  # it may be lost, and is not asked to roll back
                    raise
        except (*_OUTAGES, driver_error) as error:
            raise unavailable("sql", error) from error

    def now(self) -> sa.ColumnElement[float]:
        """Return the database's own clock as an expression, in seconds since the epoch."""
        if self.is_sqlite:
            return sa.literal_column("((julianday('now') - 2440587.5) * 86400.0)", sa.Float)
        return sa.literal_column("extract(epoch from clock_timestamp())::double precision", sa.Float)

    def upsert(self, table: sa.Table) -> Any:
        """Return the dialect's ``INSERT`` with ``on_conflict_do_update``."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def among(self, column: sa.ColumnElement[str], values: Iterable[str] | str) -> sa.ColumnElement[bool]:
        """Return whether a column is one of these values.

        They are one parameter, however many they are, so that the statement is prepared once.

        Args:
            column: The column.
            values: The values; or the name of a parameter, which takes a list of them when the statement is executed.
        """
        listed: Any = (
            sa.bindparam(values, type_=_Texts()) if isinstance(values, str) else sa.literal(list(values), _Texts())
        )
        if self.is_sqlite:
            return column.in_(sa.select(sa.func.json_each(listed).table_valued("value").c.value))
        return column == sa.any_(listed)

    def close(self) -> None:
        """Give back pooled connections."""
        if self._engine is not None:
            self._engine.dispose()

    def forget_parent(self) -> None:
        """Drop what a fork has copied: connections of the parent must not be used, nor closed, here."""
        if self._engine is not None:
            self._engine.dispose(close=False)

    def _ready_engine(self) -> Engine:
        if self._engine is None or not self._ready:
            failures = self._failures
            with self._lock:
                if self._failures != failures:  # several waited, and need not each wait for a dead server in turn
                    raise TierUnavailableError("sql", "it did not answer who asked first")
                if self._engine is None:
                    self._engine = self._connect()
                if not self._ready:
                    self._prepare(self._engine)
        return self._engine

    def _prepare(self, engine: Engine) -> None:
        try:
            upgrade(lambda: self._connected(engine))
        except BaseException:
            self._failures += 1
            raise
        self._ready = True

    def _connect(self) -> Engine:
        if self.is_sqlite:
            if self._url.database and self._url.database != ":memory:":
                Path(self._url.database).expanduser().parent.mkdir(parents=True, exist_ok=True)
            engine = sa.create_engine(self._url, connect_args={"timeout": self._timeout})
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        from cache_blocks.postgres import postgres_engine

        return postgres_engine(self._url, self._timeout, self._connections)

    def _connected(self, engine: Engine) -> Connection:
        if self.is_sqlite:
            return engine.connect()
        from cache_blocks.postgres import connect_in_turn

        return connect_in_turn(engine, self._timeout)


class _Texts(sa.TypeDecorator[list[str]]):
    """Several texts as one parameter: an array in PostgreSQL, JSON in SQLite."""

    impl = sa.JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> Any:
        """Return what a database has for it."""
        native: Any = postgresql.ARRAY(sa.Text) if dialect.name == "postgresql" else sa.Text()
        return dialect.type_descriptor(native)

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        """Return the parameter's value."""
        return list(value) if dialect.name == "postgresql" else orjson.dumps(list(value)).decode()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    """Readers go on while one process writes (WAL); SQLAlchemy's own begin replaces the driver's."""
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    # Deleting rows need not write the pages it frees; forgetting compacts the file anyway.
    cursor.execute("PRAGMA secure_delete=FAST")
    # A batch touches an index page for almost every key: what several batches touch is written once (16 MB of log).
    cursor.execute("PRAGMA wal_autocheckpoint=4000")
    cursor.execute("PRAGMA cache_size=-4000")  # of each thread's connection
    # A statement keeps what it may have to undo, which triggers make it do for each page; else in a file.
    cursor.execute("PRAGMA temp_store=MEMORY")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    """Take the write lock at once where a transaction will write: upgrading a read lock fails without waiting.

    Reading needs no transaction: PostgreSQL shows each statement of one what has been committed, too.
    """
    if not connection.get_execution_options().get("only_reads"):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
