"""PostgreSQL: few connections a process, with or without a pooler between, none of which waits for ever.

Nothing is asked of a session beyond the transaction, so that PgBouncer may give each transaction another one: limits
are set as it begins, no statement is prepared (which gained nothing measurable), locks end with it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final

import psycopg
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

_PATIENCE: Final = 1.25
"""How much longer than a statement may take we wait for the server to say so."""
_SHARE_SECONDS: Final = 30.0
_PAUSE: Final = (0.2, 1.0)
"""Seconds after which a server without a connection to spare is asked again: refusing costs it a process each time."""
_LOOK_SECONDS: Final = 0.01
_KEPT: Final = 2
"""What a process uses at once, for lookups and for writing events. To open one anew costs more than a lookup."""
_CROWDED: Final = ("too many", "connection slots", "no more connections")
"""What servers and poolers without a connection to spare say; libpq tells no code of what fails while connecting."""


def postgres_engine(url: sa.URL, timeout_seconds: float, connections: int) -> Engine:
    """Return an engine that keeps two connections and opens up to ``connections``, giving the others back when idle.

    Args:
        url: Address.
        timeout_seconds: Limit of connecting and of one statement.
        connections: Most connections of this process.
    """
    milliseconds = int(timeout_seconds * 1000)
    kept = min(connections, _KEPT)
    engine = sa.create_engine(
        url,
        connect_args={"connect_timeout": max(int(timeout_seconds), 2), "tcp_user_timeout": milliseconds},
        pool_size=kept,
        max_overflow=connections - kept,
        pool_timeout=_SHARE_SECONDS,
        pool_recycle=600,
    )
    # One message to the server, as a plain BEGIN would be.
    begin = f"BEGIN; SET LOCAL statement_timeout = {milliseconds}; SET LOCAL lock_timeout = {milliseconds}"

    def connect(_dialect: Any, _record: Any, arguments: Any, options: Any) -> PatientConnection:
        ours = {"autocommit": True, "prepare_threshold": None}  # SQLAlchemy's own begin replaces the driver's
        connection = PatientConnection.connect(*arguments, **(options | ours))
        connection.patience = timeout_seconds * _PATIENCE
        return connection

    def do_begin(dbapi_connection: Any) -> None:
        dbapi_connection.execute(begin)

    event.listen(engine, "do_connect", connect)
    # Not listening to "begin", whose errors SQLAlchemy passes on as they are, keeping a connection that is lost.
    engine.dialect.do_begin = do_begin
    return engine


def connect_in_turn(engine: Engine, timeout_seconds: float) -> Connection:
    """Return a connection; where the server has none to spare, as soon as it has, or as this process has one.

    Args:
        engine: Engine.
        timeout_seconds: How long to wait for the first connection of this process.
    """
    pool: Any = engine.pool
    began = time.monotonic()
    while True:
        try:
            return engine.connect()
        except OperationalError as error:
            shares = pool.checkedin() + pool.checkedout() > 0
            limit = max(timeout_seconds, _SHARE_SECONDS) if shares else timeout_seconds
            if time.monotonic() - began > limit or not _is_crowded(error):
                raise
        ask_again = time.monotonic() + random.uniform(*_PAUSE)  # noqa: S311 - so that not all ask at once
        while time.monotonic() < ask_again and not pool.checkedin():
            time.sleep(_LOOK_SECONDS)


def _is_crowded(error: OperationalError) -> bool:
    return any(words in str(error.orig) for words in _CROWDED)


class PatientConnection(psycopg.Connection[Any]):
    """Gives up, and closes itself, when the server does not answer a statement in time.

    ``statement_timeout`` is the server's own and ``tcp_user_timeout`` is the kernel's: neither ends when the machine
    answers packets but its PostgreSQL hangs.

    Attributes:
        patience: Seconds that one answer may take.
    """

    patience: float = 60.0

    def wait(self, gen: Generator[Any, Any, Any], interval: float = 0.1, *args: Any, **kwargs: Any) -> Any:
        """See `psycopg.Connection.wait`; raises `psycopg.OperationalError` when it takes too long."""
        try:
            return super().wait(self._until(gen, time.monotonic() + self.patience), interval, *args, **kwargs)
        except _SilentServerError:
            self.pgconn.finish()  # whatever it answers later belongs to nobody
            raise

    def _until(self, gen: Generator[Any, Any, Any], deadline: float) -> Generator[Any, Any, Any]:
        """Pass on what the driver asks for and is told; it is told nothing once an interval."""
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() >= deadline:
                    raise _SilentServerError(f"no answer within {self.patience:g} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value


class _SilentServerError(psycopg.OperationalError):
    """The server has accepted a statement and says nothing."""
