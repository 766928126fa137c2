"""Growth: lookups, writes, statistics and expiry with 10 thousand, 100 thousand and a million entries in SQL.

SQLite and PostgreSQL each get three databases at once, so that sizes are compared within one round. Rows are made by
the database itself, with 640 bytes of envelope (a million then take some 2 GB of SQLite file), a tag on every second
one, half as many events, and the oldest tenth expired; those that are looked up are real entries among them. The
collection of what has expired runs in a process of its own while this one goes on looking up.
"""

from __future__ import annotations

import multiprocessing
import random
import re
import secrets
import statistics
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from pydantic import SecretStr

from benchmarks.measuring import Bar, Bench, Timing, interleaved, milliseconds, ratio, seconds
from cache_blocks import CacheSettings, TieredCache, maintenance
from cache_blocks.entry import scopes_of
from cache_blocks.testing import entry_for

ORDER: Final = 6
_SIZES: Final = (10_000, 100_000, 1_000_000)
_SAMPLE: Final = 2_000
_LEAST: Final = 500
_ENVELOPE_BYTES: Final = 640
_DAY: Final = 86_400


@dataclass(frozen=True)
class _Grown:
    """A database with so many entries, as a cache; ``keys`` are those of real ones."""

    entries: int
    cache: TieredCache
    keys: list[str]

    @property
    def tier(self) -> Any:
        return self.cache.parts.chain.tier("sql")

    def read(self, number: int) -> None:
        """Look up keys at once, with all that decides whether they are valid."""
        keys = random.sample(self.keys, number)
        scopes = sorted({scope for key in keys for scope in scopes_of(key, ())})
        if len(self.tier.read(keys, scopes).entries) != number:
            raise AssertionError("entries are missing")

    def write(self, number: int) -> None:
        """Write new entries at once."""
        entries = [entry_for(f"transcript:{secrets.token_hex(32)}", "a" * 200) for _ in range(number)]
        if len(self.tier.write(entries)) != number:
            raise AssertionError("entries were not stored")


def measure(bench: Bench) -> list[Bar]:
    """Return the bars of both databases."""
    random.seed(0)
    bars: list[Bar] = []
    for name, open_databases in (("SQLite", _sqlite), ("PostgreSQL", _postgres)):
        with open_databases(bench) as urls:
            grown = [_grow(bench, name, count, url) for count, url in urls.items()]
            bars += _reading(bench, name, grown)
            bars += _looking(name, grown[-1])
            bars += _expiring(bench, name, grown[-1])
            for one in grown:
                one.cache.close()
    return bars


def _reading(bench: Bench, name: str, grown: list[_Grown]) -> list[Bar]:
    def timings(work: Callable[[_Grown], object], rounds: int) -> dict[str, Timing]:
        def turn(one: _Grown) -> Callable[[], object]:
            return lambda: work(one)

        return interleaved({f"{one.entries:,}": turn(one) for one in grown}, bench.rounds(rounds), warmup=2)

    small, large = f"{grown[0].entries:,}", f"{grown[-1].entries:,}"
    single = timings(lambda one: [one.read(1) for _ in range(50)], 60)
    batch = timings(lambda one: one.read(min(1000, len(one.keys))), 15)
    written = timings(lambda one: one.write(100), 20)
    grows = [
        Bar(
            f"{name}: {what} at {large} entries, against {small}",
            ratio(of[large], of[small]).median,
            1.5,
            "lower",
            detail=ratio(of[large], of[small]).spread | {"milliseconds": milliseconds(of)},
        )
        for what, of in (("50 lookups", single), ("writing 100 entries", written))
    ]
    thousand = Bar(
        f"{name}: 1,000 keys looked up at once at {large} entries",
        batch[large].median * 1000,
        50,
        "lower",
        "ms",
        {"low": batch[large].low * 1000, "high": batch[large].high * 1000, "milliseconds": milliseconds(batch)},
    )
    return [*grows, thousand]


def _looking(name: str, grown: _Grown) -> list[Bar]:
    """Statistics and listings, each as often as it takes to have a median."""
    cache = grown.cache
    middle = maintenance.ls(cache, limit=50)[-1].key
    listings: dict[str, Callable[[], object]] = {
        "ls": lambda: maintenance.ls(cache),
        "ls after a page": lambda: maintenance.ls(cache, after=middle),
        "ls of a kind": lambda: maintenance.ls(cache, kind="search-results"),
        "ls of a rare task": lambda: maintenance.ls(cache, task="rare"),
        "ls of a tag on a quarter of all": lambda: maintenance.ls(cache, tag="model:tiny"),
        "ls of what is larger than all": lambda: maintenance.ls(cache, larger_than=10**12),
        "ls of a kind, larger than all": lambda: maintenance.ls(cache, kind="transcript", larger_than=10**12),
        "ls of what is older than all": lambda: maintenance.ls(cache, older_than=10**9),
    }
    counts: dict[str, Callable[[], object]] = {
        "stats": lambda: maintenance.stats(cache),
        "count of all": lambda: maintenance.count(cache),
        "count of a kind": lambda: maintenance.count(cache, kind="transcript"),
        "count of a tag on a quarter of all": lambda: maintenance.count(cache, tag="model:tiny"),
    }
    bars: list[Bar] = []
    for what, contestants in (("stats and counts", counts), ("ls", listings)):
        timings = interleaved(contestants, 5)
        slowest = max(timings, key=lambda each: timings[each].median)
        figure = timings[slowest].median
        detail: dict[str, Any] = {"milliseconds": milliseconds(timings), "note": f"the slowest was: {slowest}"}
        bars.append(Bar(f"{name}: {what} at {grown.entries:,} entries, the slowest", figure, 1, "lower", "s", detail))
    return bars


def _expiring(bench: Bench, name: str, grown: _Grown) -> list[Bar]:
    bench.note(f"{name}: collecting {grown.entries // 10:,} expired entries of {grown.entries:,}")
    quiet = [seconds(lambda: grown.read(1)) for _ in range(bench.rounds(2000))]
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_collect, args=(grown.cache.settings, theirs))
    process.start()
    theirs.close()  # so that a process that dies is noticed
    ours.recv()  # it is about to begin
    lookups: list[float] = []
    while not ours.poll(0.001):
        lookups.append(seconds(lambda: grown.read(1)))
    taken, expired, megabytes = ours.recv()
    process.join()
    detail = {"expired": expired, "lookups": len(lookups)}
    during = {
        "median": statistics.median(lookups) * 1000 if lookups else 0.0,
        "longest without a collection": max(quiet) * 1000,
    }
    title = f"{name}: collecting {expired:,} expired entries"
    return [
        Bar(title, taken, 10, "lower", "s", detail),
        Bar(f"{title}, memory it takes", megabytes, 32, "lower", "MB", detail),
        Bar(f"{title}, longest lookup meanwhile", max(lookups, default=0) * 1000, 100, "lower", "ms", detail | during),
    ]


def _collect(settings: CacheSettings, told: Any) -> None:
    """Collect in a process of its own; tell how long it took, how many rows, and how much memory grew."""
    cache = TieredCache(settings)
    maintenance.stats(cache)
    before = _peak_megabytes()
    told.send("begin")
    began = time.perf_counter()
    collected = maintenance.collect(cache)
    taken = time.perf_counter() - began
    if collected.errors:
        raise AssertionError(collected.errors)
    told.send((taken, collected.expired, _peak_megabytes() - before))
    cache.close()


def _peak_megabytes() -> float:
    """Return the most memory that this process has had, without what its parent had when it started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


@contextmanager
def _sqlite(bench: Bench) -> Generator[dict[int, str]]:
    folder = bench.folder / "growth"
    folder.mkdir()
    files = {_scaled(bench, size): folder / f"{size}.db" for size in _SIZES}
    yield {count: f"sqlite:///{path}" for count, path in files.items()}
    for path in folder.iterdir():
        path.unlink()


@contextmanager
def _postgres(bench: Bench) -> Generator[dict[int, str]]:
    server = sa.create_engine(bench.postgres_url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    names = {_scaled(bench, size): f"growth_{size}" for size in _SIZES}
    with server.connect() as connection:
        for name in names.values():
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
    url = server.url
    yield {count: url.set(database=name).render_as_string(hide_password=False) for count, name in names.items()}
    with server.connect() as connection:
        for name in names.values():
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))


def _scaled(bench: Bench, size: int) -> int:
    return bench.rounds(size, least=_LEAST + size // 1000)


def _grow(bench: Bench, name: str, count: int, url: str) -> _Grown:
    home: Path = bench.folder / "growth-homes" / f"{name}-{count}"
    settings = CacheSettings(home=home, database_url=SecretStr(url), database_timeout_seconds=60)
    cache = TieredCache(settings)
    grown = _Grown(count, cache, [f"transcript:{secrets.token_hex(32)}" for _ in range(min(_SAMPLE, count // 4))])
    grown.tier.read([], ["all"])
    took = seconds(lambda: _plant(url, count - len(grown.keys), count // 10))
    bench.note(f"{name}: {count:,} entries planted in {took:.0f} s")
    payload = secrets.token_bytes(_ENVELOPE_BYTES // 2)
    grown.tier.write([replace(entry_for(key, expires_in=_DAY), payload=payload) for key in grown.keys])
    return grown


def _plant(url: str, count: int, expired: int) -> None:
    """Let the database make rows: the oldest tenth has expired, and is of the kinds that live a day."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    dialect: Mapping[str, str] = _DIALECTS[engine.dialect.name]
    values = {"now": time.time(), "count": count, "expired": expired, "bytes": _ENVELOPE_BYTES}
    with engine.connect() as connection:
        for pragma in ("cache_size = -400000", "synchronous = OFF") if engine.dialect.name == "sqlite" else ():
            connection.exec_driver_sql(f"PRAGMA {pragma}")
        for statement in (_ENTRIES, _TAGS, _EVENTS):
            connection.execute(sa.text(statement.format(**dialect)), values)
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("VACUUM ANALYZE")  # which its autovacuum does where there is time
    engine.dispose()


_DIALECTS: Final = {
    "sqlite": {
        "numbers": "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count) SELECT i FROM n)",
        "digest": "lower(hex(randomblob(32)))",
        "envelope": "randomblob(:bytes)",
        "id": "lower(hex(randomblob(16)))",
    },
    "postgresql": {
        "numbers": "generate_series(1, CAST(:count AS INTEGER)) AS numbers(i)",
        "digest": "md5(CAST(i AS TEXT)) || md5(CAST(-i AS TEXT))",
        "envelope": "decode(repeat(md5(CAST(i AS TEXT)), CAST(:bytes AS INTEGER) / 16), 'hex')",
        "id": "md5(CAST(i AS TEXT))",
    },
}
_KIND: Final = "CASE WHEN i <= :expired OR i % 3 = 0 THEN 'search-results' ELSE 'transcript' END"
_ENTRIES: Final = f"""
INSERT INTO cache_blocks_entry (namespace, key, kind, task, fence, created_at, expires_at, compute_seconds,
    stored_bytes, blob_bytes, placement, generations, manifest, envelope)
SELECT 'default', {_KIND} || ':' || {{digest}}, {_KIND}, CASE WHEN i % 100000 = 7 THEN 'rare' ELSE 'transcribe' END, i,
    CAST(:now AS FLOAT) - 90000.0 + i * 3000.0 / :count,
    CASE WHEN i <= :expired THEN CAST(:now AS FLOAT) - 3600.0 + i * 0.001 ELSE CAST(:now AS FLOAT) + 86400.0 + i END,
    12.5, :bytes - 300 + i % 300, 0, 'redis,sql', '[0, 0, 0]', '{{{{"task": "transcribe"}}}}', {{envelope}}
FROM {{numbers}}
"""  # noqa: S608 - constants
_TAGS: Final = """
INSERT INTO cache_blocks_tag (namespace, tag, key, created_at)
SELECT namespace, CASE WHEN fence % 4 = 0 THEN 'model:tiny' ELSE 'recording:' || fence / 10 END, key, created_at
FROM cache_blocks_entry WHERE fence % 2 = 0
"""
_EVENTS: Final = f"""
INSERT INTO cache_blocks_event (id, namespace, at, action, kind, key, outcome, tier, reason, subject, task, flow,
    flow_run_id, task_run_id, stored_bytes, seconds, seconds_saved)
SELECT {{id}}, 'default', CAST(:now AS FLOAT) - 20 * 86400.0 + i * 20 * 86400.0 / :count, 'lookup', {_KIND},
    {_KIND} || ':' || {{digest}}, CASE WHEN i % 5 = 0 THEN 'miss' ELSE 'hit' END,
    CASE WHEN i % 5 = 0 THEN '' ELSE 'redis' END, '', 'call.mp3', 'transcribe', 'nightly',
    'run-' || i / 1000, '', 640, 0.001, 12.4
FROM {{numbers}} WHERE i % 2 = 0
"""  # noqa: S608 - constants
