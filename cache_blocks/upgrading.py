"""Bringing the schema up to date, once, however many processes start at once.

The whole upgrade is one transaction, and whoever comes second waits for it: in PostgreSQL by a lock that ends with the
transaction, as a pooler wants it, in SQLite by the write lock.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import sqlalchemy as sa

from cache_blocks import forking
from cache_blocks.errors import TierUnavailableError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

SCHEMA_VERSION: Final = "0004"
_VERSION_TABLE: Final = "cache_blocks_schema"
_LOCK: Final = 0x63616368
_SECONDS: Final = 600.0

_upgrading = forking.lock()  # Alembic keeps the connection that it works on in a module, for all threads


def upgrade(connect: Callable[[], Connection]) -> None:
    """Bring the schema up to date, if it is not. Alembic is imported only when needed.

    Args:
        connect: Returns a connection.

    Raises:
        TierUnavailableError: The schema is a later version's.
    """
    with connect() as connection:
        if _version(connection.execution_options(only_reads=True)) == SCHEMA_VERSION:
            return
    with connect() as connection:
        driver = cast("Any", connection.connection.driver_connection)
        connection.detach()  # from the pool, whose connections have less patience
        if connection.dialect.name == "sqlite":
            driver.execute(f"PRAGMA busy_timeout = {int(_SECONDS * 1000)}")
        else:
            driver.patience = _SECONDS
        connection.begin()
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text("SET LOCAL lock_timeout = 0"))
            connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        if _version(connection) != SCHEMA_VERSION:  # nobody else has meanwhile
            _run_migrations(connection)
            connection.commit()


def _version(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table(_VERSION_TABLE):
        return None
    return connection.execute(sa.text(f"SELECT version_num FROM {_VERSION_TABLE}")).scalar()  # noqa: S608 - a constant


def _run_migrations(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        with _upgrading:
            command.upgrade(config, "head")
    except CommandError as error:
        raise TierUnavailableError("sql", f"the schema is not this version's ({error}); upgrade the package") from error
