"""A Redis that makes room while it is used: entries, generations, tokens and leases go, and nothing stale is served."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

import pytest

from cache_blocks import NO_VALUE, TRANSCRIPT
from cache_blocks.cli.checks import memory_of
from cache_blocks.tiers.redis_servers import Seen
from tests.faults.conftest import MakeCache, until
from tests.faults.redis_batches import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from tests.servers.fixtures import StartRedis

KEY = "transcript:1"
POLICIES = ("allkeys-lru", "allkeys-lfu", "volatile-ttl", "allkeys-random")
EVICTED = pytest.mark.promise(
    "Eviction costs a recomputation at most, and revives nothing", tries="each policy, a batch"
)


@EVICTED
@pytest.mark.parametrize("policy", POLICIES)
def test_a_batch_while_redis_makes_room_all_the_time(
    policy: str, redis_server: StartRedis, make_cache: MakeCache
) -> None:
    server = redis_server("--maxmemory", "3mb", "--maxmemory-policy", policy)
    caches = [make_cache(redis_url=server.url, redis_timeout_seconds=10) for _ in range(4)]
    batch = Batch(caches[:3], caches[3])
    end = threading.Event()
    with closing(server.client()) as client:
        crowd = threading.Thread(target=fill, args=(client, end))
        crowd.start()
        try:
            until(lambda: evicted(client) > 0)
            with batch.running():
                before = evicted(client)
                until(lambda: evicted(client) > before + 1000)
                batch.go_on()
        finally:
            end.set()
            crowd.join()
    assert batch.failures == []
    assert [dict(cache.metrics.outages) for cache in caches] == [{}] * 4


def fill(client: Redis, end: threading.Event) -> None:
    """Write more than there is room for, as others do who share the server."""
    number = 0
    while not end.is_set():
        pipeline = client.pipeline(transaction=False)
        for _ in range(100):
            number += 1
            pipeline.set(f"others:{number}", b"x" * 2000, ex=600)
        pipeline.execute()


def evicted(client: Redis) -> int:
    return int(client.info("stats")["evicted_keys"])


@pytest.mark.promise("Eviction costs a recomputation at most, and revives nothing", tries="a lease in the middle")
def test_when_a_lease_is_evicted_two_may_compute_and_the_later_wins(
    redis_url: str, redis_client: Redis, make_cache: MakeCache
) -> None:
    first, second = (make_cache(redis_url=redis_url, redis_timeout_seconds=10) for _ in range(2))
    computing, go_on = threading.Event(), threading.Event()

    def slowly() -> str:
        computing.set()
        go_on.wait(30)
        return "first"

    results: list[object] = []
    slow = threading.Thread(target=lambda: results.append(first.get_or_compute(KEY, slowly, kind=TRANSCRIPT)))
    slow.start()
    computing.wait(30)
    assert redis_client.delete(f"cache-blocks:default:lease:{KEY}") == 1
    assert second.get_or_compute(KEY, lambda: "second", kind=TRANSCRIPT) == "second"
    go_on.set()
    slow.join()
    assert results == ["first"]
    assert [cache.get(KEY) for cache in (first, second)] == ["second", "second"], "it began later"


@pytest.mark.promise("Eviction costs a recomputation at most, and revives nothing", tries="a token in the middle")
def test_when_a_token_is_evicted_the_number_is_not_put_back(
    redis_url: str, redis_client: Redis, make_cache: MakeCache
) -> None:
    cache = make_cache(redis_url=redis_url, redis_timeout_seconds=10)
    tier: Any = cache.parts.chain.tier("redis")
    token = tier.reserve(["all"])
    for name in cast("Iterator[bytes]", redis_client.scan_iter("*generation*")):
        redis_client.delete(name)
    tier.seed({"all": 0}, token)
    assert tier.read([], ["all"]).generations == {}


@pytest.mark.promise("Eviction costs a recomputation at most, and revives nothing", tries="all but the entry")
def test_when_only_the_entry_is_left_sql_is_asked(redis_url: str, redis_client: Redis, make_cache: MakeCache) -> None:
    reader, other = (make_cache(redis_url=redis_url, redis_timeout_seconds=10) for _ in range(2))
    reader.put(KEY, "old", kind=TRANSCRIPT)
    assert reader.lookup(KEY).tier == "redis"
    other.invalidate(kind=TRANSCRIPT)
    for name in cast("Iterator[bytes]", redis_client.scan_iter("*generation*")):
        redis_client.delete(name)
    assert redis_client.exists(f"cache-blocks:default:entry:{KEY}")
    assert reader.get(KEY) is NO_VALUE


@pytest.mark.parametrize(
    "limit, policy, forever, state, way_out",
    [
        (0, "allkeys-lru", 0, "advice", "set maxmemory"),
        (1, "allkeys-lru", 5, "ok", ""),
        (1, "allkeys-lfu", 0, "ok", ""),
        (1, "volatile-lru", 0, "ok", ""),
        (1, "volatile-lru", 5, "advice", "only ours makes room"),
        (1, "volatile-ttl", 0, "advice", "evicts leases and generations"),
        (1, "allkeys-random", 0, "advice", "evicts leases and generations"),
        (1, "noeviction", 0, "advice", "refuses writes"),
    ],
)
def test_the_doctor_says_what_does_not_fit(limit: int, policy: str, forever: int, state: str, way_out: str) -> None:
    databases = {"db0": {"keys": 20 + forever, "expires": 20, "avg_ttl": 7}}
    seen = Seen("127.0.0.1:6379", {"maxmemory": limit, "maxmemory_policy": policy, "redis_version": "8", **databases})
    check = memory_of(seen)
    assert check.state == state
    assert way_out in check.way_out
    assert policy in check.found
