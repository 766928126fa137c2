"""One end for every copy, whatever the kind, the tiers and the times: no tier ever outlives the record."""

from __future__ import annotations

import itertools
import time
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache_blocks import NO_VALUE, CacheKind, CacheSettings, TieredCache
from cache_blocks.plan import Request
from cache_blocks.tiers.chain import Chain

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from cache_blocks.entry import Entry

EXAMPLES = 25
ON_THE_WAY = 2.0
"""Seconds that the write may take to reach Redis, which counts from then; what is late by them is judged expired."""
_names = itertools.count()


@st.composite
def kinds(draw: st.DrawFn) -> CacheKind:
    places = draw(st.sets(st.sampled_from(["redis", "object_store"])))
    lifetime = timedelta(seconds=draw(st.floats(60, 90 * 86400)))
    replica = "object_store" in places and draw(st.booleans())
    return CacheKind("lived", ttl=lifetime, tiers=frozenset({"sql", *places}), replica=replica)


def at(clock: dict[str, float]) -> Callable[[], float]:
    return lambda: clock["now"]


def copies(cache: TieredCache, key: str) -> dict[str, Entry]:
    """What each tier holds, valid or not."""
    found = {tier.name: tier.read([key]).entries.get(key) for tier in cache.parts.chain.tiers}
    return {name: entry for name, entry in found.items() if entry is not None}


@pytest.mark.parametrize("hot", ["redis", "memory"])
@given(kind=kinds(), passed=st.floats(0.0, 0.95), lost=st.sets(st.sampled_from(["memory", "redis", "sql"])))
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.promise("No copy outlives the one end of its entry")
def test_no_tier_outlives_the_record(
    request: pytest.FixtureRequest, hot: str, kind: CacheKind, passed: float, lost: set[str]
) -> None:
    """Stored some time ago, lost by some tiers since, promoted by a hit; then the clock goes past the end."""
    there = {"redis_url": cast("str", request.getfixturevalue("redis_url"))} if hot == "redis" else {}
    own = CacheSettings(namespace=f"lifetime-{next(_names)}", **there)  # pyright: ignore[reportArgumentType]
    clock = {"now": time.time() - passed * kind.ttl.total_seconds()}
    end = clock["now"] + kind.ttl.total_seconds()
    cache = TieredCache(own, clock=at(clock))
    cache.put("lived:1", "text", kind=kind)
    clock["now"] = time.time()
    for tier in cache.parts.chain.tiers:
        if tier.name in lost:
            tier.delete(["lived:1"])

    promoted = cache.get("lived:1") == "text"
    assert promoted or not copies(cache, "lived:1") or "sql" in lost
    held = copies(cache, "lived:1")
    assert {entry.expires_at for entry in held.values()} <= {end}, "a promotion hands on the record's end"
    if hot == "redis":
        demand_redis_ends(cast("Redis", request.getfixturevalue("redis_client")), own.namespace, end)

    for late in (0.0, 1.0, 86400.0 * 365):
        clock["now"] = end + late
        for tier in cache.parts.chain.tiers:
            chain = Chain([tier, cache.parts.chain.tier("sql")], cache.parts.chain.breakers)
            found = chain.lookup([Request("lived:1")], clock["now"])["lived:1"]
            assert not found.is_hit, f"{tier.name} has outlived the record"
        assert cache.get("lived:1") is NO_VALUE
    cache.close()


def demand_redis_ends(client: Redis, namespace: str, end: float) -> None:
    """Every key of the namespace has an end, and an entry's is not later than the record's."""
    for name in cast("list[bytes]", client.keys(f"cache-blocks:{namespace}:*")):
        now, left = time.time(), client.pttl(name)
        assert left != -1, f"{name!r} would stay for ever"
        if b":entry:" in name:
            assert left / 1000 <= end - now + ON_THE_WAY, f"{name!r} outlives its record"


@pytest.mark.parametrize("lost", [(), ("redis",), ("redis", "sql")], ids=["nothing", "redis", "redis and sql"])
@pytest.mark.promise("No copy outlives the one end of its entry")
def test_a_promotion_takes_what_is_left(redis_url: str, redis_client: Redis, lost: tuple[str, ...]) -> None:
    """Of thirty days twenty-nine have passed: whichever tier still has it, Redis gets one day and not thirty."""
    day = 86400.0
    kind = CacheKind("lived", ttl=timedelta(days=30), replica=True)
    clock = {"now": time.time() - 29 * day}
    cache = TieredCache(CacheSettings(redis_url=redis_url), clock=at(clock))  # pyright: ignore[reportArgumentType]
    cache.put("lived:1", "text", kind=kind)
    clock["now"] = time.time()
    for tier in lost:
        cache.parts.chain.tier(tier).delete(["lived:1"])
    assert cache.get("lived:1") == "text"
    assert cache.lookup("lived:1").tier == "redis"
    (name,) = cast("list[bytes]", redis_client.keys("*:entry:*"))
    assert 0 < redis_client.pttl(name) <= day * 1000
    cache.close()
