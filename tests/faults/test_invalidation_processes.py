"""Four processes read and compute while a fifth invalidates, on real servers: of 10,000 reads none is stale.

The same run over a build that does not look at generations finds stale ones, so this test would find them too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, cast

import orjson
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from cache_blocks.schema import CacheTable
from tests.faults.invalidation_worker import FILE_BYTES, FINISHED, Truth

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis


READERS = 4
OVERLAPPING_EACH = 2_500
STALE_IN_A_MUTANT = 100


@pytest.fixture(params=["postgres_url", "pgbouncer_url"])
def environment(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str) -> dict[str, str]:
    (tmp_path / "truth").write_bytes(bytes(FILE_BYTES))
    here = {
        "PYTHONPATH": os.getcwd(),  # noqa: PTH109
        "WORKER_TRUTH": str(tmp_path / "truth"),
        "CACHE_BLOCKS_REDIS_URL": redis_url,
        "CACHE_BLOCKS_DATABASE_URL": cast("str", request.getfixturevalue(str(request.param))),
    }
    # Several processes share two cores with the rest of the suite: slow is not down here.
    here |= {f"CACHE_BLOCKS_{tier}_TIMEOUT_SECONDS": "60" for tier in ("REDIS", "DATABASE", "OBJECT_STORE")}
    return {**os.environ, **here}


class Run:
    """The processes of one run; whatever happens, none of them stays."""

    def __init__(self, environment: dict[str, str], overlapping: int) -> None:
        self.truth = Truth(environment["WORKER_TRUTH"])
        self._environment = environment
        self._readers = [self._start("read", number, overlapping) for number in range(READERS)]
        self._invalidator = self._start("invalidate", READERS, READERS)

    def _start(self, verb: str, seed: int, amount: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.faults.invalidation_worker", verb, str(seed), str(amount)]
        return subprocess.Popen(command, env=self._environment, stdout=subprocess.PIPE)

    @property
    def reading(self) -> bool:
        return any(reader.poll() is None for reader in self._readers)

    def counts(self) -> Counter[str]:
        """Wait for the end and return what all readers have counted."""
        total: Counter[str] = Counter()
        try:
            for reader in self._readers:
                total.update(self._answer(reader))
                self.truth.numbers[FINISHED] += 1
            total.update(self._answer(self._invalidator))
        finally:
            for process in (*self._readers, self._invalidator):
                process.kill()
                process.communicate()
        return total

    @staticmethod
    def _answer(process: subprocess.Popen[bytes]) -> dict[str, int]:
        answer, _ = process.communicate(timeout=240)
        assert process.returncode == 0
        return cast("dict[str, int]", orjson.loads(answer))


@pytest.mark.promise(
    "An invalidated result is never served", tries="at least 10,000 reads that overlap one, 4 processes"
)
def test_no_read_that_overlaps_an_invalidation_is_stale(environment: dict[str, str]) -> None:
    counts = Run(environment, OVERLAPPING_EACH).counts()
    assert counts["overlapping"] >= READERS * OVERLAPPING_EACH, counts
    assert counts["served"] > STALE_IN_A_MUTANT, f"a cache that never serves is never stale: {counts}"
    assert counts["stale"] == 0, counts


def test_without_the_check_of_generations_stale_reads_are_found(environment: dict[str, str]) -> None:
    counts = Run({**environment, "WORKER_MUTANT": "1"}, OVERLAPPING_EACH // 10).counts()
    assert counts["stale"] >= STALE_IN_A_MUTANT, counts


@pytest.mark.promise("An invalidated result is never served", tries="about 2,000 reads that overlap one, 4 processes")
def test_nor_when_redis_and_sql_lose_what_they_know_meanwhile(
    environment: dict[str, str], redis_client: Redis, postgres_url: str
) -> None:
    """Generations are evicted, Redis is flushed, the database is emptied, again and again while all go on."""
    engine = sa.create_engine(postgres_url)
    run = Run(environment, OVERLAPPING_EACH // 5)
    emptied, seen = 0, 0
    while run.reading:
        if (invalidations := run.truth.invalidations()) < seen + 5:
            time.sleep(0.005)
            continue
        seen = invalidations
        for name in cast("list[bytes]", redis_client.keys("*:generation:*")):
            redis_client.delete(name)
        if seen % 2:
            redis_client.flushdb()
        else:
            emptied += empty(engine)
    engine.dispose()
    counts = run.counts()
    assert emptied > 0
    assert counts["served"] > 0, counts
    assert counts["stale"] == 0, counts


def empty(engine: sa.Engine) -> bool:
    """Empty all tables at once; return False when PostgreSQL has chosen this side of a deadlock with a writer."""
    try:
        with engine.begin() as connection:
            for table in CacheTable.metadata.sorted_tables:
                connection.execute(sa.delete(table))
    except OperationalError:
        return False
    return True
