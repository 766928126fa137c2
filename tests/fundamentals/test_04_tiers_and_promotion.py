"""Lesson 4: hits move to the faster tiers, with the lifetime that is left to them."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from cache_blocks import AI_ENHANCEMENT, SEARCH_RESULTS, TRANSCRIPT, CacheSettings, TieredCache

if TYPE_CHECKING:
    from collections.abc import Generator

    from redis import Redis

DAY = 86400
ENTRY = "cache-blocks:default:entry:"


@pytest.fixture
def servers(redis_url: str) -> CacheSettings:
    return CacheSettings(redis_url=redis_url)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def shared(servers: CacheSettings) -> Generator[TieredCache]:
    cache = TieredCache(servers)
    yield cache
    cache.close()


def test_a_lookup_goes_from_fast_to_slow_and_copies_upwards(shared: TieredCache, redis_client: Redis) -> None:
    shared.put("transcript:1", "text", kind=TRANSCRIPT)
    assert shared.lookup("transcript:1").tier == "redis"
    redis_client.flushdb()
    assert shared.lookup("transcript:1").tier == "sql"
    assert shared.lookup("transcript:1").tier == "redis"
    redis_client.flushdb()
    shared.parts.chain.tier("sql").delete(["transcript:1"])
    assert shared.lookup("transcript:1").tier == "object_store"
    assert set(shared.parts.chain.tier("sql").keys()) == {"transcript:1"}
    assert shared.lookup("transcript:1").tier == "redis"


@pytest.mark.parametrize("from_tier", ["sql", "object_store"])
def test_a_promoted_copy_gets_what_is_left_of_its_lifetime(
    servers: CacheSettings, shared: TieredCache, redis_client: Redis, from_tier: str
) -> None:
    twenty_days_ago = TieredCache(servers, clock=lambda: time.time() - 20 * DAY)
    twenty_days_ago.put("transcript:1", "text", kind=TRANSCRIPT)
    twenty_days_ago.close()
    redis_client.flushdb()
    if from_tier == "object_store":
        shared.parts.chain.tier("sql").delete(["transcript:1"])
    assert shared.lookup("transcript:1").tier == from_tier
    assert shared.lookup("transcript:1").tier == "redis"
    left = redis_client.ttl(f"{ENTRY}transcript:1")
    assert 9.9 * DAY < left <= 10 * DAY


@pytest.mark.promise("No copy outlives the one end of its entry")
def test_no_copy_outlives_the_entry(servers: CacheSettings, shared: TieredCache, redis_client: Redis) -> None:
    long_ago = TieredCache(servers, clock=lambda: time.time() - 31 * DAY)
    long_ago.put("transcript:1", "text", kind=TRANSCRIPT)
    long_ago.close()
    assert shared.lookup("transcript:1").outcome == "expired"
    assert shared.lookup("transcript:1").outcome == "expired", "nothing promoted it"
    assert redis_client.keys(f"{ENTRY}*") == []


def test_large_results_stay_out_of_redis(shared: TieredCache, redis_client: Redis) -> None:
    medium, large = os.urandom(200_000).hex(), os.urandom(3_000_000).hex()
    shared.put("ai-enhancement:medium", medium, kind=AI_ENHANCEMENT)
    shared.put("ai-enhancement:large", large, kind=AI_ENHANCEMENT)
    assert redis_client.keys(f"{ENTRY}*") == []
    assert shared.lookup("ai-enhancement:medium").tier == "sql"
    assert shared.lookup("ai-enhancement:large").tier == "object_store", "SQL keeps a pointer"
    assert shared.get("ai-enhancement:large") == large


def test_search_results_never_reach_the_object_store(shared: TieredCache) -> None:
    shared.put("search-results:1", [1], kind=SEARCH_RESULTS)
    assert list(shared.parts.chain.tier("object_store").keys()) == []


def test_read_only_promotes_nothing(servers: CacheSettings, shared: TieredCache, redis_client: Redis) -> None:
    shared.put("transcript:1", "text", kind=TRANSCRIPT)
    redis_client.flushdb()
    reader = TieredCache(servers.model_copy(update={"mode": "read-only"}))
    assert reader.lookup("transcript:1").tier == "sql"
    assert reader.lookup("transcript:1").tier == "sql"
    reader.close()
