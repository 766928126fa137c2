"""PostgreSQL: one server per test process, one database per test."""

from __future__ import annotations

import sys
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import NullPool, create_engine, make_url, text

from tests.servers.process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Generator

DRIVER = "postgresql+psycopg"
HOST_SCRIPT = Path(__file__).with_name("postgres_host.py")


@contextmanager
def postgres_server(directory: Path) -> Generator[str]:
    """A PostgreSQL out of its wheel; gives its SQLAlchemy URL, with rights to create databases.

    A `postgres` on PATH is left alone, unlike the other servers' binaries: distributions patch it to keep its
    sockets in folders that need rights, and it refuses to run as root, as most containers do. To test against
    another server, name its address.
    """
    command = [sys.executable, str(HOST_SCRIPT), str(directory / "data")]
    process = ServerProcess(command, directory / "postgres.log")
    uri = process.start(r"ready: (\S+)\n")[1]
    try:
        yield _render(uri)
    finally:
        process.stop()


@contextmanager
def fresh_database(server_url: str) -> Generator[str]:
    """An empty database on the server, dropped afterwards; gives its SQLAlchemy URL."""
    name = f"test_{uuid.uuid4().hex}"
    _execute(server_url, f"CREATE DATABASE {name}")
    try:
        yield _render(server_url, name)
    finally:
        _execute(server_url, f"DROP DATABASE {name} WITH (FORCE)")  # pools of the tested code may still be open


def _render(url: str, database: str | None = None) -> str:
    parts = make_url(url)
    parts = parts.set(drivername=DRIVER, database=database or parts.database)
    return parts.render_as_string(hide_password=False)


def _execute(url: str, statement: str) -> None:
    engine = create_engine(_render(url), isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()
