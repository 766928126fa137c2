"""Many processes that start at once share what SQL there is: they upgrade it once, and wait for its connections."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import psycopg
import pytest
import sqlalchemy as sa

from cache_blocks.database import Database
from cache_blocks.schema import CacheTable, EntryRow, table
from cache_blocks.upgrading import SCHEMA_VERSION
from tests.faults.swarm import SHARED
from tests.unit.test_tallies import check_tallies, fill_first_version

if TYPE_CHECKING:
    from collections.abc import Generator

CONNECTIONS = 10
ENTRIES = table(EntryRow)


def swarm(url: str, processes: int, threads: int, **settings: str) -> list[dict[str, Any]]:
    """Let processes ask for their keys, all at once; return what each says."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "CACHE_BLOCKS_DATABASE_URL": url}  # noqa: PTH109
    environment |= {f"CACHE_BLOCKS_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "tests.faults.swarm", str(processes), str(threads)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=500)
    answers: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == processes
    return answers


def failures(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [answer for answer in answers if "error" in answer or answer["wrong"]]


def without_sql(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [answer for answer in answers if answer["outages"] or answer["lost"]]


@pytest.fixture(params=["sqlite", "postgres_url", "pgbouncer_url"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path_factory.mktemp('swarm') / 'cache.db'}"
    return cast("str", request.getfixturevalue(str(request.param)))


@pytest.fixture
def crowded_url(postgres_url: str) -> Generator[str]:
    """A PostgreSQL that has so many connections and not one more."""
    role = f"crowd_{uuid.uuid4().hex}"
    parts = sa.make_url(postgres_url)
    engine = sa.create_engine(postgres_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT {CONNECTIONS}"))
        connection.execute(sa.text(f"ALTER DATABASE {parts.database} OWNER TO {role}"))
    yield parts.set(username=role).render_as_string(hide_password=False)
    with engine.begin() as connection:
        connection.execute(sa.text(f"REASSIGN OWNED BY {role} TO CURRENT_USER"))
        connection.execute(sa.text(f"DROP OWNED BY {role}"))
        connection.execute(sa.text(f"DROP ROLE {role}"))
    engine.dispose()


@contextmanager
def taken(url: str, connections: int) -> Generator[None]:
    """Hold so many connections, idle."""
    with ExitStack() as stack:
        for _ in range(connections):
            plain = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
            stack.enter_context(psycopg.connect(plain))
        yield


@pytest.mark.promise("20 workers that start at once upgrade the schema once", tries="20 processes, twice, 3 databases")
@pytest.mark.parametrize("older", [True, False], ids=["older", "new"])
def test_workers_that_start_at_once_upgrade_the_schema_once(url: str, *, older: bool) -> None:
    if older:
        fill_first_version(url)
    answers = swarm(url, 20, 2, database_timeout_seconds="60")
    assert not failures(answers)
    assert not without_sql(answers)
    database = Database(url, timeout_seconds=60)
    with database.read() as connection:
        versions = connection.execute(sa.text("SELECT version_num FROM cache_blocks_schema")).scalars().all()
        assert versions == [SCHEMA_VERSION]
        assert set(CacheTable.metadata.tables) <= set(sa.inspect(connection).get_table_names())
        stored = connection.execute(sa.select(sa.func.count()).select_from(ENTRIES)).scalar_one()
    assert stored == 20 + SHARED + 3 * older
    check_tallies(database)
    database.close()


@pytest.mark.promise("50 workers share few connections", tries="50 processes of 4 threads, 10 connections")
def test_more_processes_than_connections_wait_for_their_turn(crowded_url: str) -> None:
    answers = swarm(crowded_url, 50, 4, database_timeout_seconds="120")
    assert not failures(answers)
    assert not without_sql(answers)


def test_a_process_that_gets_no_connection_in_time_goes_on_without_sql(crowded_url: str) -> None:
    """All connections are taken, and stay so."""
    with taken(crowded_url, CONNECTIONS):
        answers = swarm(crowded_url, 3, 4, database_timeout_seconds="0.2")
    assert not failures(answers)
    assert len(without_sql(answers)) == 3


def test_a_process_shares_the_connections_it_has_when_the_server_has_no_more(crowded_url: str) -> None:
    """One is left; four threads take turns with it, however short the time limit."""
    with taken(crowded_url, CONNECTIONS - 1):
        answers = swarm(crowded_url, 1, 4, database_timeout_seconds="10")
    assert not failures(answers)
    assert not without_sql(answers)


def test_fifty_processes_through_a_pooler_with_two_sessions(pgbouncer_url: str) -> None:
    answers = swarm(pgbouncer_url, 50, 4, database_timeout_seconds="120")
    assert not failures(answers)
    assert not without_sql(answers)
