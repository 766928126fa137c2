"""Writing a 46 KB transcript through all tiers: Redis, SQLite, and the replica in a local object store.

The bare pipeline makes the same three writes and nothing else: the payload as JSON in an LZ4 frame, made once; one SET
with an expiry; one row in a transaction of its own, in WAL mode and with the same ``synchronous``; one temporary file,
renamed. Ours also numbers the write, asks SQL before and after what has been invalidated, and keeps an entry's digest,
indexes and tallies.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import orjson
import sqlalchemy as sa
from redis import Redis
from sqlalchemy import event

from benchmarks.environment import cache_in_environment
from benchmarks.measuring import Bar, Bench, Timing, interleaved, milliseconds, ratio
from benchmarks.payloads import transcript
from cache_blocks import TRANSCRIPT, TieredCache
from cache_blocks.codec import compress

ORDER: Final = 7

_BYTES: Final = 46_000
_BATCH: Final = 100
_THIRTY_DAYS_MS: Final = 30 * 86_400_000


def measure(bench: Bench) -> list[Bar]:
    """Return what one write and one of a batch cost against the bare pipeline, and the transactions of a batch."""
    payloads = [transcript(_BYTES, seed=seed) for seed in range(10)]
    with cache_in_environment(bench, f"writing-{uuid4().hex[:8]}") as cache, Redis.from_url(bench.redis_url) as redis:
        folder = bench.folder / f"bare-{uuid4().hex}"
        bare = _Bare(redis, folder, _synchronous(cache, payloads[0]))
        ours, theirs = (_Turns(write, payloads) for write in (partial(_put, cache), bare.put))
        bench.note("putting transcripts of 46 KB one by one")
        one = interleaved({"ours": ours.one, "bare": theirs.one}, bench.rounds(400), warmup=10)
        bench.note(f"putting them in batches of {_BATCH}")
        many = interleaved(
            {"ours": partial(_put_batch, cache, payloads), "bare": theirs.batch}, bench.rounds(15), warmup=1
        )
        commits = _commits(cache, partial(_put_batch, cache, payloads))
    return [
        _bar("A 46 KB transcript put through all tiers, against a bare pipeline", one, len(orjson.dumps(payloads[0]))),
        _bar(f"{_BATCH} transcripts put at once, against a bare pipeline", many, len(orjson.dumps(payloads[0]))),
        Bar(f"SQL transactions that write, for {_BATCH} transcripts put at once", commits, 2, "lower", "transactions"),
    ]


def _bar(name: str, timings: dict[str, Timing], size: int) -> Bar:
    found = ratio(timings["ours"], timings["bare"])
    detail: dict[str, Any] = found.spread | {"milliseconds": milliseconds(timings), "payload_bytes": size}
    return Bar(name, found.median, 3.0, "lower", detail=detail | {"rounds": len(timings["ours"].samples)})


class _Turns:
    """Writes payloads in turn, each under a key of its own."""

    def __init__(self, write: Callable[[str, Any], object], payloads: list[Any]) -> None:
        self._write = write
        self._payloads = itertools.cycle(payloads)

    def one(self) -> None:
        self._write(_key(), next(self._payloads))

    def batch(self) -> None:
        for _ in range(_BATCH):
            self.one()


class _Bare:
    """The three writes, and nothing else."""

    def __init__(self, redis: Redis, folder: Path, synchronous: int) -> None:
        folder.mkdir()
        self._redis = redis
        self._folder = str(folder)
        self._sql = sqlite3.connect(folder / "bare.db", isolation_level=None)
        self._sql.execute("PRAGMA journal_mode=WAL")
        self._sql.execute(f"PRAGMA synchronous={synchronous}")
        self._sql.execute("CREATE TABLE entry (key TEXT PRIMARY KEY, payload BLOB)")

    def put(self, key: str, value: object) -> None:
        data = compress(orjson.dumps(value))
        self._redis.set(f"bare:{key}", data, px=_THIRTY_DAYS_MS)
        self._sql.execute("BEGIN IMMEDIATE")
        self._sql.execute("INSERT OR REPLACE INTO entry VALUES (?, ?)", (key, data))
        self._sql.execute("COMMIT")
        path = f"{self._folder}/{key.partition(':')[2]}"
        with open(f"{path}.tmp", "wb") as file:  # noqa: PTH123 - the least that it takes
            file.write(data)
        os.replace(f"{path}.tmp", path)  # noqa: PTH105 - likewise


def _put(cache: TieredCache, key: str, value: object) -> None:
    cache.put(key, value, kind=TRANSCRIPT, compute_seconds=60.0)


def _put_batch(cache: TieredCache, payloads: list[Any]) -> None:
    values = dict(zip((_key() for _ in range(_BATCH)), itertools.cycle(payloads), strict=False))
    cache.put_many(values, kind=TRANSCRIPT, compute_seconds=60.0)


def _key() -> str:
    return f"transcript:{uuid4().hex}"


def _synchronous(cache: TieredCache, payload: object) -> int:
    """Write once, so that everything is connected and migrated; return the setting of ours."""
    key = _key()
    _put(cache, key, payload)
    assert cache.get(key) == payload
    with cache.parts.database.read() as connection:
        return int(connection.execute(sa.text("PRAGMA synchronous")).scalar_one())


def _commits(cache: TieredCache, work: Callable[[], object]) -> int:
    """Return how many transactions that write are committed meanwhile."""
    begun: list[str] = []

    def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        begun.append(statement)

    with cache.parts.database.begin() as connection:
        engine = connection.engine
    event.listen(engine, "before_cursor_execute", count)
    try:
        work()
    finally:
        event.remove(engine, "before_cursor_execute", count)
    return sum(statement == "BEGIN IMMEDIATE" for statement in begun)
