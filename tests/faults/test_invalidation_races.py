"""Interleavings that only the order of steps decides, each step by step: a racing reseed, a return, two at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from cache_blocks import NO_VALUE, TRANSCRIPT, TieredCache
from cache_blocks.cli.app import app
from cache_blocks.errors import InvalidationIncompleteError, TierUnavailableError
from cache_blocks.schema import CacheTable
from cache_blocks.tiers import redis as redis_tier
from tests.faults.conftest import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from tests.faults.conftest import MakeCache
    from tests.servers.fixtures import StartRedis

KEY = "transcript:1"


def before(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, act: Callable[[], object]) -> None:
    """Let something happen right before a method runs, once."""
    real, pending = getattr(owner, name), [act]

    def first(*arguments: Any) -> Any:
        if pending:
            pending.pop()()
        return real(*arguments)

    monkeypatch.setattr(owner, name, first)


def evict_generations(client: Redis) -> None:
    for name in cast("list[bytes]", client.keys("*:generation:*")):
        client.delete(name)


def empty_sql(cache: TieredCache) -> None:
    with cache.parts.database.begin() as connection:
        for table in CacheTable.metadata.sorted_tables:
            connection.execute(sa.delete(table))


def racing_reseed(
    monkeypatch: pytest.MonkeyPatch, client: Redis, make_cache: MakeCache, url: str, *, evicted: bool
) -> object:
    """A reader has read SQL; an invalidation goes all its way; then the reader seeds Redis. What is served now?"""
    reader, other = make_cache(redis_url=url), make_cache(redis_url=url)
    other.put(KEY, "old", kind=TRANSCRIPT)
    reader.get(KEY)
    evict_generations(client)

    def overtake() -> None:
        other.invalidate(key=KEY)
        if evicted:
            evict_generations(client)

    before(monkeypatch, reader.parts.chain.tier("redis"), "seed", overtake)
    reader.get(KEY)
    return other.get(KEY)


@pytest.mark.parametrize("evicted", [False, True], ids=["kept", "evicted again"])
@pytest.mark.promise("An invalidated result is never served")
def test_a_reader_that_was_overtaken_revives_no_old_number(
    monkeypatch: pytest.MonkeyPatch, redis_url: str, redis_client: Redis, make_cache: MakeCache, *, evicted: bool
) -> None:
    assert racing_reseed(monkeypatch, redis_client, make_cache, redis_url, evicted=evicted) is NO_VALUE


@pytest.mark.parametrize("evicted", [False, True], ids=["kept", "evicted again"])
def test_without_compare_and_set_it_would(
    monkeypatch: pytest.MonkeyPatch, redis_url: str, redis_client: Redis, make_cache: MakeCache, *, evicted: bool
) -> None:
    compare = "if text(KEYS[1]) ~= ARGV[1] then return 0 end"
    real = cast("Any", redis_tier)._SEED_IF_RESERVED
    assert compare in real, "what is taken out has to be there"
    monkeypatch.setattr(redis_tier, "_SEED_IF_RESERVED", real.replace(compare, ""))
    assert racing_reseed(monkeypatch, redis_client, make_cache, redis_url, evicted=evicted) == "old"


@pytest.mark.parametrize("step", ["the mirror is told", "redis is told"])
@pytest.mark.promise("An invalidated result is never served")
def test_a_database_that_is_emptied_during_an_invalidation_knows_it_afterwards(
    monkeypatch: pytest.MonkeyPatch, redis_url: str, redis_client: Redis, make_cache: MakeCache, step: str
) -> None:
    """Emptied, and seeded by a reader from a mirror that has not been told yet."""
    cache, other = make_cache(redis_url=redis_url), make_cache(redis_url=redis_url)
    cache.put(KEY, "old", kind=TRANSCRIPT)
    tier = "object_store" if step == "the mirror is told" else "redis"

    def empty() -> None:
        empty_sql(other)
        other.get(KEY)

    tellers = cast("Any", cache.parts.invalidator)._tellers
    holder: Any = type("Holder", (), {"tell": staticmethod(tellers[tier])})()
    before(monkeypatch, holder, "tell", empty)
    monkeypatch.setitem(tellers, tier, holder.tell)
    cache.invalidate(key=KEY)
    redis_client.flushdb()
    assert other.get(KEY) is NO_VALUE
    assert cache.get(KEY) is NO_VALUE


@pytest.mark.promise("An invalidated result is never served")
def test_of_two_invalidations_at_once_the_slower_does_not_lower_the_mirror(make_cache: MakeCache) -> None:
    cache = make_cache()
    far = cast("Any", cache.parts.chain.tier("object_store"))
    far.mirror_generations({"all": 7})
    far.mirror_generations({"all": 6})
    assert far.mirrored_generations() == {"all": 7}


@pytest.mark.promise("An invalidated result is never served")
def test_a_probe_under_way_does_not_bring_back_a_tier_that_could_not_be_told(
    monkeypatch: pytest.MonkeyPatch, redis_server: StartRedis, make_cache: MakeCache
) -> None:
    """A thread's probe finds Redis well while another thread, to which it is still down, invalidates."""
    server = redis_server()
    cache = make_cache(redis_url=server.url, breaker_seconds=1e-9)
    cache.put(KEY, "old", kind=TRANSCRIPT)
    cache.parts.chain.breakers["redis"].trip("was down")
    incomplete: list[InvalidationIncompleteError] = []

    def invalidate() -> None:
        with pytest.raises(InvalidationIncompleteError) as error:
            cache.invalidate(key=KEY)
        incomplete.append(error.value)

    before(monkeypatch, cache.parts.chain.tier("redis"), "read", invalidate)
    cache.get(KEY)
    assert incomplete[0].untold == ("redis",)
    found = [cache.get(KEY)]
    until(lambda: found.append(cache.get(KEY)) or not cache.parts.generations.untold("redis"))
    assert set(found) == {NO_VALUE}


@pytest.mark.promise("An invalidated result is never served")
def test_a_tier_that_was_skipped_for_sqls_sake_does_not_count_as_told(
    monkeypatch: pytest.MonkeyPatch, redis_url: str, make_cache: MakeCache
) -> None:
    """SQL goes right after it has taken the invalidation: what Redis has missed cannot be learnt, nor Redis told."""
    cache = make_cache(redis_url=redis_url, breaker_seconds=1e-9)
    cache.put(KEY, "old", kind=TRANSCRIPT)
    cache.parts.chain.breakers["redis"].trip("was down")

    def gone(_tier: str) -> dict[str, int]:
        raise TierUnavailableError("sql", "has just gone")

    with monkeypatch.context() as patched:
        patched.setattr(cache.parts.generations, "untold", gone)
        with pytest.raises(InvalidationIncompleteError) as incomplete:
            cache.invalidate(key=KEY)
    assert "redis" in incomplete.value.untold
    assert cache.get(KEY) is NO_VALUE


@pytest.mark.promise("An invalidated result is never served")
def test_what_this_process_could_not_tell_outlasts_an_emptied_database(
    redis_server: StartRedis, make_cache: MakeCache
) -> None:
    server = redis_server()
    cache = make_cache(redis_url=server.url, breaker_seconds=0.001)
    cache.put(KEY, "old", kind=TRANSCRIPT)
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "default", "-eval")
        with pytest.raises(InvalidationIncompleteError):
            cache.invalidate(key=KEY)
        empty_sql(cache)
        admin.execute_command("ACL", "SETUSER", "default", "+eval")
    until(lambda: cache.get(KEY) is NO_VALUE and cache.parts.invalidator.retry() == [])
    assert cache.parts.chain.tier("redis").read([], [f"key:{KEY}"]).generations == {f"key:{KEY}": 1}


@pytest.mark.promise("An invalidated result is never served")
def test_the_command_line_fails_when_redis_could_not_be_told_and_gc_completes_it(
    redis_server: StartRedis, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = redis_server()
    monkeypatch.setenv("CACHE_BLOCKS_REDIS_URL", server.url)
    monkeypatch.setenv("CACHE_BLOCKS_BREAKER_SECONDS", "0.001")
    worker = make_cache(redis_url=server.url)
    worker.put(KEY, "old", kind=TRANSCRIPT)
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "default", "-eval")
        refused = CliRunner().invoke(app, ["invalidate", "--key", KEY, "--yes"])
        assert refused.exit_code == 1
        assert "redis could not be told" in refused.stderr
        admin.execute_command("ACL", "SETUSER", "default", "+eval")
    until(lambda: CliRunner().invoke(app, ["gc"]).exit_code == 0)
    assert worker.parts.generations.untold("redis") == {}
    assert worker.get(KEY) is NO_VALUE
