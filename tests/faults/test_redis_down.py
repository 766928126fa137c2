"""Redis is killed, frozen, emptied: results stay right, the outage is told once, and little time is lost."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

import pytest

from cache_blocks import NO_VALUE, SEARCH_RESULTS, TRANSCRIPT, TieredCache, events
from cache_blocks.errors import InvalidationIncompleteError
from tests.faults.conftest import until

if TYPE_CHECKING:
    from redis import Redis

    from tests.faults.conftest import MakeCache
    from tests.servers.fixtures import StartRedis


def client_of(cache: TieredCache) -> Redis:
    return cast("Any", cache.parts.chain.tier("redis")).servers.client


def compute_some(cache: TieredCache, start: int, count: int) -> None:
    for number in range(start, start + count):
        value = cache.get_or_compute(f"search-results:{number}", lambda n=number: n, kind=SEARCH_RESULTS)
        assert value == number


def test_killed_in_the_middle_every_result_is_right(
    redis_server: StartRedis, make_cache: MakeCache, caplog: pytest.LogCaptureFixture
) -> None:
    server = redis_server()
    cache = make_cache(redis_url=server.url, breaker_seconds=600)
    with caplog.at_level(logging.INFO, "cache_blocks"):
        compute_some(cache, 0, 10)
        server.kill()
        compute_some(cache, 0, 40)
    assert cache.metrics.by_tier["sql"] == 10
    assert cache.metrics.misses == 40
    assert cache.metrics.outages == {"redis": 1}
    assert [record.message for record in caplog.records if "is down" in record.message or "is back" in record.message][
        1:
    ] == []


def test_what_redis_did_not_take_is_counted(redis_server: StartRedis, make_cache: MakeCache) -> None:
    server = redis_server()
    cache = make_cache(redis_url=server.url, breaker_seconds=600)
    server.kill()
    for number in range(5):
        cache.put(f"transcript:{number}", "text", kind=TRANSCRIPT)
    assert cache.metrics.lost_writes == {"redis": 5}
    lost = [event for event in cache.parts.events.since(0) if event.action == events.LOST]
    assert [event.tier for event in lost] == ["redis"] * 5
    assert cache.get("transcript:3") == "text", "SQL has it"


@pytest.mark.promise("A tier that hangs costs a timeout a probe, not one a lookup", tries="200 lookups")
def test_frozen_it_costs_its_timeout_a_few_times_and_not_once_a_lookup(
    redis_server: StartRedis, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = redis_server()
    cache = make_cache(redis_url=server.url, breaker_seconds=600, redis_timeout_seconds=0.2)
    compute_some(cache, 0, 2)
    pool = client_of(cache).connection_pool
    attempts: list[object] = []
    connect: Any = cast("Any", pool).get_connection

    def counted(*arguments: Any, **options: Any) -> Any:
        attempts.append(arguments)
        return connect(*arguments, **options)

    monkeypatch.setattr(pool, "get_connection", counted)
    server.freeze()
    compute_some(cache, 0, 200)
    server.thaw()
    assert len(attempts) <= 3, "each attempt to reach it costs the timeout"
    assert cache.metrics.unleased > 0, "computed without a lease, and said so"


def test_its_going_and_its_return_are_one_line_each(
    redis_server: StartRedis, make_cache: MakeCache, caplog: pytest.LogCaptureFixture
) -> None:
    server = redis_server()
    cache = make_cache(redis_url=server.url)
    with caplog.at_level(logging.INFO, "cache_blocks"):
        compute_some(cache, 0, 3)
        server.kill()
        compute_some(cache, 3, 20)
        server.start()
        until(lambda: cache.get("search-results:0") == 0 and cache.lookup("search-results:0").tier == "redis")
        compute_some(cache, 0, 30)
    told = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 2, told
    assert told[0].startswith("redis is down (")
    assert told[1] == "redis is back"
    changes = [event.action for event in cache.parts.events.since(0) if event.action.startswith("tier-")]
    assert changes == [events.TIER_DOWN, events.TIER_UP]


def test_emptied_it_is_filled_again_from_sql(redis_url: str, redis_client: Redis, make_cache: MakeCache) -> None:
    cache = make_cache(redis_url=redis_url)
    for number in range(5):
        cache.put(f"search-results:{number}", number, kind=SEARCH_RESULTS)
    redis_client.flushall()
    keys = [f"search-results:{number}" for number in range(5)]
    assert [cache.lookup(key).tier for key in keys] == ["sql"] * 5
    assert [cache.lookup(key).tier for key in keys] == ["redis"] * 5


@pytest.mark.promise("An invalidation that could not be told says so, and is completed")
def test_an_invalidation_that_did_not_reach_it_says_so_and_is_completed_before_it_is_trusted(
    redis_server: StartRedis, make_cache: MakeCache
) -> None:
    """Redis answers, keeps what it has, but takes no writes, as one that was cut off from its primary does."""
    server = redis_server()
    cache = make_cache(redis_url=server.url)
    cache.put("transcript:1", "old", kind=TRANSCRIPT)
    assert cache.lookup("transcript:1").tier == "redis"
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "default", "-eval")
        with pytest.raises(InvalidationIncompleteError) as incomplete:
            cache.invalidate(key="transcript:1")
        assert incomplete.value.untold == ("redis",)
        assert set(incomplete.value.told) == {"sql", "object_store"}
        assert cache.get("transcript:1") is NO_VALUE
        assert cache.parts.generations.untold("redis") == {"key:transcript:1": 1}
        admin.execute_command("ACL", "SETUSER", "default", "+eval")
        found: list[object] = []
        until(lambda: found.append(cache.get("transcript:1")) or not cache.parts.generations.untold("redis"))
        assert set(found) == {NO_VALUE}, "not even the probe that found Redis well may serve what it holds"
        assert cache.get("transcript:1") is NO_VALUE


def test_an_invalidation_while_it_was_dead_is_told_when_it_is_back(
    redis_server: StartRedis, make_cache: MakeCache
) -> None:
    server = redis_server()
    cache = make_cache(redis_url=server.url)
    cache.put("transcript:1", "old", kind=TRANSCRIPT, tags=["recording:a"])
    server.kill()
    with pytest.raises(InvalidationIncompleteError, match="redis could not be told"):
        cache.invalidate(tag="recording:a")
    assert cache.get("transcript:1") is NO_VALUE
    server.start()
    until(lambda: cache.parts.invalidator.retry() == [])
    assert cache.parts.generations.untold("redis") == {}
    assert cache.parts.chain.tier("redis").read([], ["tag:recording:a"]).generations == {"tag:recording:a": 1}
    assert cache.get("transcript:1") is NO_VALUE


@pytest.mark.promise("An invalidated result is never served")
def test_when_redis_evicts_generations_sql_is_asked(redis_url: str, redis_client: Redis, make_cache: MakeCache) -> None:
    cache = make_cache(redis_url=redis_url)
    cache.put("transcript:1", "old", kind=TRANSCRIPT)
    cache.get("transcript:1")
    cache.invalidate(key="transcript:1")
    for name in cast("list[bytes]", redis_client.keys("*generation*")):
        redis_client.delete(name)
    assert cache.lookup("transcript:1").outcome == "invalidated"


def test_a_full_redis_that_refuses_writes_breaks_nothing(redis_server: StartRedis, make_cache: MakeCache) -> None:
    server = redis_server("--maxmemory", "1", "--maxmemory-policy", "noeviction")
    cache = make_cache(redis_url=server.url, breaker_seconds=600)
    compute_some(cache, 0, 5)
    compute_some(cache, 0, 5)
    assert cache.metrics.hits == 5
    assert cache.metrics.by_tier["sql"] == 5
