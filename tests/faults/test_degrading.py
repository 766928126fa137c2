"""Each tier is killed, hangs, fills up or slows down in the middle of a batch: nobody notices but the report."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import orjson
import pytest
import sqlalchemy as sa
from sqlalchemy import event, make_url
from sqlalchemy.exc import OperationalError

from cache_blocks import AI_ENHANCEMENT, TRANSCRIPT, TieredCache
from cache_blocks.database import Database
from cache_blocks.errors import InvalidationIncompleteError, TierUnavailableError
from cache_blocks.tiers.s3 import ATTEMPTS
from tests.faults.conftest import MakeCache, until
from tests.servers.postgres import postgres_server
from tests.servers.proxy import Proxy, proxy_to, proxy_to_postgres
from tests.servers.s3 import S3Bucket

if TYPE_CHECKING:
    from tests.faults.conftest import Notes, Spawn
    from tests.servers.fixtures import StartRedis

Change = Callable[[], object]
EVERY_CALL = pytest.mark.promise("A tier that is down, slow or full breaks no call", tries="120 calls")
ONE_TIMEOUT = pytest.mark.promise("A tier that hangs costs a timeout a probe, not one a lookup", tries="200 lookups")
NEVER = 600.0


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each tier was asked in vain; being skipped is no attempt."""
    counted = Counter[str]()
    real = TierUnavailableError.__init__

    def counting(self: TierUnavailableError, tier: str, why: str) -> None:
        counted[tier] += not why.startswith(("skipped", "does not say"))
        real(self, tier, why)

    monkeypatch.setattr(TierUnavailableError, "__init__", counting)
    return counted


def compute_some(cache: TieredCache, first: int, count: int) -> None:
    """Ask for results, some of them twice; a transcript has a place in every tier."""
    for number in (*range(first, first + count), *range(first, first + count)):
        assert cache.get_or_compute(f"transcript:{number}", lambda n=number: f"text {n}", kind=TRANSCRIPT) == (
            f"text {number}"
        )


def let_probe(cache: TieredCache, seconds: float = 2 * NEVER) -> None:
    """Let the time pass after which a failed tier is tried again."""
    for breaker in cache.parts.chain.breakers.values():
        cast("Any", breaker)._clock = lambda: time.monotonic() + seconds


def told(caplog: pytest.LogCaptureFixture, tier: str) -> list[str]:
    """Lines in the log on the going and returning of a tier, each without its reason."""
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [line.partition(" (")[0] for line in lines if line.startswith(tier)]


def go_and_return(
    cache: TieredCache, tier: str, go: Change, come_back: Change, caplog: pytest.LogCaptureFixture
) -> None:
    """Run a batch in the middle of which a tier goes, and another one after which it is back."""
    with caplog.at_level(logging.INFO, "cache_blocks"):
        compute_some(cache, 0, 20)
        go()
        compute_some(cache, 15, 20)
        with cast("Any", cache.parts.events)._flushing:
            come_back()  # after what was under way in the background has failed, too
        let_probe(cache)
        compute_some(cache, 40, 20)
    assert told(caplog, tier) == [f"{tier} is down", f"{tier} is back"]
    assert cache.metrics.outages[tier] == 1
    assert not cache.parts.chain.breakers[tier].is_open
    cache.get_or_compute("transcript:after", lambda: "text", kind=TRANSCRIPT)
    copies = cache.parts.chain.tier(tier).read(["transcript:after"]).entries
    assert "transcript:after" in copies, "it takes writes again"


def fill_and_free(
    cache: TieredCache, tier: str, fill: Change, free: Change, caplog: pytest.LogCaptureFixture
) -> Counter[str]:
    """Run batches while a tier is full; return where the lookups of what it had kept before were answered."""
    hits = Counter[str]()
    with caplog.at_level(logging.INFO, "cache_blocks"):
        compute_some(cache, 0, 20)
        fill()
        for _ in range(3):  # and after the time has passed after which a tier that failed would be probed
            compute_some(cache, 15, 20)
            hits.update(cache.lookup(f"transcript:{number}").tier for number in range(15))
            let_probe(cache)
        with cast("Any", cache.parts.events)._flushing:
            free()
        let_probe(cache, 4 * NEVER)
        compute_some(cache, 40, 20)
    assert told(caplog, tier) == [f"{tier} has no room", f"{tier} takes writes again"]
    assert cache.metrics.outages[tier] == 0, "full is not down"
    assert not cache.parts.chain.breakers[tier].is_open
    cache.get_or_compute("transcript:after", lambda: "text", kind=TRANSCRIPT)
    assert "transcript:after" in cache.parts.chain.tier(tier).read(["transcript:after"]).entries
    return hits


# Redis


@pytest.fixture(params=["killed", "frozen", "slow"])
def redis_trouble(request: pytest.FixtureRequest, redis_server: StartRedis) -> Generator[tuple[str, Change, Change]]:
    """Address of a Redis, what makes it go, and what brings it back."""
    server = redis_server()
    with proxy_to(("127.0.0.1", server.port)) as proxy:
        through = f"redis://127.0.0.1:{proxy.port}/0"
        yield {
            "killed": (server.url, server.kill, server.start),
            "frozen": (server.url, server.freeze, server.thaw),
            "slow": (through, lambda: setattr(proxy, "delay", 1.0), lambda: setattr(proxy, "delay", 0.0)),
        }[request.param]


@EVERY_CALL
def test_redis_goes_in_the_middle_of_a_batch_and_returns(
    redis_trouble: tuple[str, Change, Change],
    make_cache: MakeCache,
    attempts: Counter[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    url, go, come_back = redis_trouble
    cache = make_cache(redis_url=url, breaker_seconds=NEVER, redis_timeout_seconds=0.5)
    go_and_return(cache, "redis", go, come_back, caplog)
    assert attempts["redis"] <= 3
    assert cache.metrics.lost_writes["redis"] >= 15, "each result that it did not take"
    assert cache.metrics.lost_writes.keys() == {"redis"}


@pytest.mark.promise("A tier that is full is read on, and said to be full once", tries="3 batches of 40 calls")
def test_redis_is_full_and_is_read_on(
    redis_server: StartRedis, make_cache: MakeCache, caplog: pytest.LogCaptureFixture
) -> None:
    server = redis_server()
    cache = make_cache(redis_url=server.url, breaker_seconds=NEVER, redis_timeout_seconds=10)
    with closing(server.client()) as admin:
        hits = fill_and_free(
            cache,
            "redis",
            lambda: admin.config_set("maxmemory", "1"),
            lambda: admin.config_set("maxmemory", "0"),
            caplog,
        )
    assert hits == {"redis": 45}
    assert cache.metrics.lost_writes["redis"] >= 15, "each result that it did not take"
    assert cache.metrics.unstored == 0, "SQL took them"


@pytest.mark.promise("A tier that is full is read on, and said to be full once", tries="an invalidation meanwhile")
def test_an_invalidation_that_a_full_redis_cannot_take_is_loud_and_nothing_stale_is_served(
    redis_server: StartRedis, make_cache: MakeCache
) -> None:
    server = redis_server()
    cache = make_cache(redis_url=server.url, breaker_seconds=NEVER, redis_timeout_seconds=10)
    compute_some(cache, 0, 3)
    with closing(server.client()) as admin:
        admin.config_set("maxmemory", "1")
        with pytest.raises(InvalidationIncompleteError, match="redis"):
            cache.invalidate(kind=TRANSCRIPT)
        for _ in range(2):
            assert not cache.lookup("transcript:0").is_hit
            let_probe(cache)  # probing does not help: it could not be told yet
        admin.config_set("maxmemory", "0")
    let_probe(cache, 4 * NEVER)
    assert cache.lookup("transcript:0").outcome == "invalidated"
    assert not cache.parts.chain.breakers["redis"].is_open, "it has been told, and is trusted again"


@ONE_TIMEOUT
def test_eight_threads_and_a_frozen_redis_cost_a_timeout_each_at_most(
    redis_server: StartRedis, make_cache: MakeCache, attempts: Counter[str]
) -> None:
    server = redis_server()
    cache = make_cache(redis_url=server.url, breaker_seconds=NEVER, redis_timeout_seconds=0.5)
    compute_some(cache, 0, 5)
    server.freeze()
    threads = [threading.Thread(target=compute_some, args=(cache, 100 * number, 13)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.thaw()
    assert cache.metrics.total >= 200
    assert attempts["redis"] <= 8


# SQL


@pytest.fixture
def readable_folder() -> Generator[Path]:
    """A folder that is not pytest's: as root, PostgreSQL runs as another user, whom every new session shuts out."""
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(params=["killed", "frozen", "slow"])
def postgres_trouble(request: pytest.FixtureRequest, readable_folder: Path) -> Generator[tuple[str, Change, Change]]:
    """Address of a PostgreSQL, what makes it go, and what brings it back."""
    with postgres_server(readable_folder) as url, proxy_to_postgres(url) as proxy:
        stopped: list[int] = []

        def freeze() -> None:
            stopped.extend(processes_of(url))
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)

        def thaw() -> None:
            while stopped:
                os.kill(stopped.pop(), signal.SIGCONT)

        def recover() -> None:
            proxy.admit()
            until(lambda: processes_of(url))

        def crash() -> None:
            for pid in processes_of(url)[1:]:
                with contextlib.suppress(ProcessLookupError):  # killing one ends the others
                    os.kill(pid, signal.SIGKILL)  # PostgreSQL then recovers by itself
            proxy.refuse()

        yield {
            "killed": (proxy.url, crash, recover),
            "frozen": (url, freeze, thaw),
            "slow": (proxy.url, lambda: setattr(proxy, "delay", 2.0), lambda: setattr(proxy, "delay", 0.0)),
        }[request.param]
        thaw()


def processes_of(url: str) -> list[int]:
    """The server that accepts connections, and those that serve them."""
    folder = make_url(url).query["host"]
    clients = "SELECT pid FROM pg_stat_activity WHERE client_port IS NOT NULL AND pid != pg_backend_pid()"
    try:
        with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
            serving = [int(row[0]) for row in connection.execute(sa.text(clients))]
    except OperationalError:
        return []  # it recovers from a crash
    return [int(Path(f"{folder}/postmaster.pid").read_text().split()[0]), *serving]


@EVERY_CALL
def test_postgres_goes_in_the_middle_of_a_batch_and_returns(
    postgres_trouble: tuple[str, Change, Change],
    make_cache: MakeCache,
    attempts: Counter[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    url, go, come_back = postgres_trouble
    cache = make_cache(database_url=url, breaker_seconds=NEVER, database_timeout_seconds=1)
    go_and_return(cache, "sql", go, come_back, caplog)
    assert attempts["sql"] <= 3
    assert cache.metrics.unleased + cache.metrics.unstored >= 30, "what was computed without a lease, and not kept"


@pytest.mark.parametrize("step", ["begin", "statement", "commit", "driver"])
@pytest.mark.parametrize("way", ["hangs", "is cut"])
def test_whatever_postgres_leaves_unanswered_is_an_outage_and_the_connection_is_given_up(
    way: str, step: str, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with proxy_to_postgres(postgres_url) as proxy, closing(Database(proxy.url, timeout_seconds=1)) as database:
        go, come_back = {"hangs": (proxy.hold, proxy.flow), "is cut": (proxy.refuse, proxy.admit)}[way]
        assert answers(database)
        with pytest.raises(TierUnavailableError):
            lose(database, go, step)
        come_back()
        assert answers(database), "by another connection"
    assert [record.getMessage() for record in caplog.records if record.name.startswith("sqlalchemy")] == []


def answers(database: Database) -> bool:
    """Whether a transaction is possible."""
    with database.begin() as connection:
        return connection.execute(sa.select(1)).scalar() == 1


def lose(database: Database, go: Change, step: str) -> None:
    """Make the server go before a step of a transaction, or before a statement by the driver's own connection."""
    if step == "driver":
        with database.unhurried() as driver:
            driver.patience = 1
            go()
            driver.execute("SELECT 1")
    if step == "begin":
        go()
    with database.begin() as connection:
        if step == "statement":
            go()
        connection.execute(sa.select(1))
        go()


@ONE_TIMEOUT
def test_threads_that_open_a_hanging_database_do_not_wait_for_it_one_after_another(
    postgres_url: str, make_cache: MakeCache
) -> None:
    with proxy_to_postgres(postgres_url) as proxy:
        proxy.hold()
        cache = make_cache(database_url=proxy.url, breaker_seconds=NEVER, database_timeout_seconds=1)
        threads = [threading.Thread(target=compute_some, args=(cache, 100 * number, 13)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert cache.metrics.total >= 200
        assert proxy.accepted <= 3


@pytest.mark.promise("A tier that is full is read on, and said to be full once", tries="3 batches of 40 calls")
def test_sqlite_is_full_and_is_read_on(make_cache: MakeCache, caplog: pytest.LogCaptureFixture) -> None:
    cache = make_cache(breaker_seconds=NEVER)
    database: Any = cache.parts.database

    def limit(pages: int) -> None:
        def set_limit(connection: Any, _record: Any) -> None:
            connection.execute(f"PRAGMA max_page_count = {pages}")

        engine = database._ready_engine()
        event.listen(engine, "connect", set_limit)
        engine.dispose()  # the limit is a connection's own

    def fill() -> None:
        limit(1)
        cache.parts.chain.tier("memory").delete([f"transcript:{number}" for number in range(20)])

    hits = fill_and_free(cache, "sql", fill, lambda: limit(1_000_000), caplog)
    assert hits["sql"] >= 1, "it was read while it was full"
    assert sum(hits.values()) == 45
    assert cache.metrics.lost_writes["sql"] + cache.metrics.unstored >= 15


# The object store


@pytest.fixture(params=["cut off", "hanging", "slow"])
def s3_trouble(request: pytest.FixtureRequest, s3: S3Bucket) -> Generator[tuple[S3Bucket, Proxy, Change, Change]]:
    """A bucket, what it is reached through, what makes it go, and what brings it back."""
    host, port = s3.endpoint.removeprefix("http://").split(":")
    with proxy_to((host, int(port))) as proxy:
        changes: dict[str, tuple[Change, Change]] = {
            "cut off": (proxy.refuse, proxy.admit),
            "hanging": (proxy.hold, proxy.flow),
            "slow": (lambda: setattr(proxy, "delay", 3.0), lambda: setattr(proxy, "delay", 0.0)),
        }
        yield replace(s3, endpoint=f"http://127.0.0.1:{proxy.port}"), proxy, *changes[request.param]
        proxy.flow()


@EVERY_CALL
def test_s3_goes_in_the_middle_of_a_batch_and_returns(
    s3_trouble: tuple[S3Bucket, Proxy, Change, Change],
    make_cache: MakeCache,
    attempts: Counter[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    bucket, proxy, go, come_back = s3_trouble
    tried: list[int] = []

    def note_and(change: Change) -> None:
        tried.append(proxy.accepted)
        change()

    options = orjson.dumps(bucket.options).decode()
    cache = make_cache(
        object_store_url=bucket.url,
        object_store_options=options,
        breaker_seconds=NEVER,
        object_store_timeout_seconds=1,
    )
    go_and_return(cache, "object_store", lambda: note_and(go), lambda: note_and(come_back), caplog)
    assert tried[1] - tried[0] <= 3 * ATTEMPTS, "botocore's attempts are all: no library underneath has more"
    assert attempts["object_store"] <= 3
    assert cache.metrics.lost_writes["object_store"] >= 15


@pytest.mark.parametrize("environment", ["sqlite"], indirect=True)
@pytest.mark.parametrize("limit", [2_000_000, 65_536], ids=["large results do not fit", "nothing fits"])
@EVERY_CALL
def test_the_disk_is_full_in_the_middle_of_a_batch(limit: int, spawn: Spawn, notes: Notes) -> None:
    assert spawn("fill", "all", WORKER_LIMIT=str(limit), CACHE_BLOCKS_BREAKER_SECONDS="600").wait(90) == 0
    assert notes.count()["right"] == 30
    (lost,) = [int(line.partition(": ")[2]) for line in notes.count() if line.startswith("counted")]
    assert lost >= 20
    (outages,) = [line.partition(": ")[2] for line in notes.count() if line.startswith("outages")]
    assert "object_store" in outages or "sql" in outages


# Everything


@pytest.mark.promise("With every tier down the work is done as if uncached", tries="200 calls")
def test_with_every_tier_hanging_every_call_computes(
    redis_server: StartRedis, postgres_url: str, s3: S3Bucket, make_cache: MakeCache, attempts: Counter[str]
) -> None:
    host, port = s3.endpoint.removeprefix("http://").split(":")
    redis = redis_server()
    with proxy_to((host, int(port))) as store, proxy_to_postgres(postgres_url) as sql:
        bucket = replace(s3, endpoint=f"http://127.0.0.1:{store.port}")
        cache = make_cache(
            redis_url=redis.url,
            redis_timeout_seconds=0.5,
            database_url=sql.url,
            database_timeout_seconds=1,
            object_store_url=bucket.url,
            object_store_options=orjson.dumps(bucket.options).decode(),
            object_store_timeout_seconds=1,
            breaker_seconds=NEVER,
        )
        compute_some(cache, 0, 3)
        trouble: list[Proxy] = [store, sql]
        for proxy in trouble:
            proxy.hold()
        redis.freeze()
        computed: list[int] = []
        for number in range(200):
            key, kind = (f"transcript:{number % 3}", TRANSCRIPT) if number % 2 else ("ai-enhancement:1", AI_ENHANCEMENT)
            value = cache.get_or_compute(key, lambda n=number: computed.append(n) or n, kind=kind)
            assert value == number
        assert computed == list(range(200))
        assert set(cache.metrics.outages.values()) == {1}
        assert max(attempts.values()) <= 3, attempts
        assert cache.metrics.unleased == 200
        assert cache.metrics.unstored == 200
        redis.thaw()
        for proxy in trouble:
            proxy.flow()
