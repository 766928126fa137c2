"""Maintenance takes no lock of a table that keeps a reader or a writer out, and no row that it need not."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from cache_blocks import SEARCH_RESULTS, TRANSCRIPT
from cache_blocks.database import Database
from cache_blocks.events import LOOKUP, CacheEvent
from cache_blocks.fingerprint import digest_bytes
from cache_blocks.maintenance import collect, count, forget, ls, stats, verify
from cache_blocks.maintenance.forgetting import scrub
from cache_blocks.maintenance.tracing import TAG_PREFIX
from cache_blocks.schema import CacheTable, EntryRow, table
from cache_blocks.testing import entry_for

if TYPE_CHECKING:
    from collections.abc import Generator

    from cache_blocks import TieredCache
    from tests.faults.conftest import MakeCache

ENTRIES = table(EntryRow)
RECORDING = digest_bytes(b"a recording")
YEAR = 365 * 86400


@pytest.fixture
def cache(make_cache: MakeCache, postgres_url: str) -> TieredCache:
    """A cache with something for every step of maintenance to do, and one connection: nothing may want a second."""
    cache = make_cache(database_url=postgres_url, database_timeout_seconds=10, database_connections=1)
    for number in range(30):
        cache.put(f"transcript:{number}", number, kind=TRANSCRIPT, tags=("a", f"{TAG_PREFIX}{RECORDING}"))
        cache.put(f"search-results:{number}", number, kind=SEARCH_RESULTS, tags=("b",))
    cache.parts.chain.tier("sql").write([entry_for(f"transcript:old-{number}", expires_in=-1) for number in range(30)])
    cache.invalidate(tag="b")
    cache.parts.events.record([CacheEvent(LOOKUP, "transcript", at=time.time() - YEAR)] * 10)
    cache.parts.events.flush()
    return cache


@pytest.fixture
def writer(cache: TieredCache, postgres_url: str) -> Generator[sa.Connection]:
    """A writer in the middle of a transaction that has written to every table: what keeps it out waits for it."""
    engine = sa.create_engine(postgres_url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        names = ", ".join(CacheTable.metadata.tables)
        connection.execute(sa.text(f"LOCK TABLE {names} IN ROW EXCLUSIVE MODE"))
        yield connection
    engine.dispose()
    del cache


@pytest.mark.promise(
    "maintenance on PostgreSQL keeps no reader or writer out of a table",
    tries="all of maintenance beside a transaction that has every table open for writing",
)
@pytest.mark.usefixtures("writer")
def test_maintenance_waits_for_no_writer_and_so_none_for_it(cache: TieredCache) -> None:
    collected = collect(cache)
    assert (collected.expired, collected.invalidated, collected.errors) == (30, 30, [])
    assert collected.events == 10
    assert stats(cache).entries == count(cache) == len(ls(cache)) == 30
    assert verify(cache).sound
    forgotten = forget(cache, RECORDING)
    assert len(forgotten.entries) == 30
    assert forgotten.complete, dict(forgotten.left)


@pytest.mark.usefixtures("writer")
def test_a_lock_that_keeps_writers_out_would_have_been_noticed(cache: TieredCache) -> None:
    """The test above would fail if a step asked for the weakest of them."""
    with cache.parts.database.begin() as connection, pytest.raises(OperationalError, match="lock timeout"):
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = 50; LOCK TABLE {ENTRIES.name} IN SHARE MODE")


def test_forgetting_cuts_no_file_for_which_it_would_lock_everybody_out(cache: TieredCache) -> None:
    database = cache.parts.database
    with database.begin() as connection:
        connection.execute(sa.delete(ENTRIES))
        pages: Any = connection.execute(sa.func.pg_relation_size(ENTRIES.name).select()).scalar_one()
    scrub(database)
    with database.read() as connection:
        assert connection.execute(sa.func.pg_relation_size(ENTRIES.name).select()).scalar_one() == pages > 0


def test_compacting_may_take_longer_than_a_statement(cache: TieredCache, postgres_url: str) -> None:
    """Somebody else compacts the table already, and is at it for longer than the time limit."""
    cache.close()
    database = Database(postgres_url, timeout_seconds=3)
    engine = sa.create_engine(postgres_url, poolclass=sa.NullPool)
    scrubbing = threading.Thread(target=scrub, args=(database,))
    with engine.connect() as other:
        other.execute(sa.text(f"LOCK TABLE {ENTRIES.name} IN SHARE UPDATE EXCLUSIVE MODE"))
        scrubbing.start()
        scrubbing.join(5)
        assert scrubbing.is_alive()
    scrubbing.join(60)
    assert not scrubbing.is_alive()
    database.close()
    engine.dispose()
