"""What stands in Redis in a generation's place: nonsense, other types, numbers from an older snapshot or a replica."""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

import pytest

from cache_blocks import NO_VALUE, TRANSCRIPT, TieredCache
from cache_blocks.errors import InvalidationIncompleteError
from cache_blocks.leases import LeaseState
from cache_blocks.tiers import redis_history
from tests.faults.conftest import MakeCache, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from tests.servers.fixtures import StartRedis
    from tests.servers.redis import RedisServer

KEY = "transcript:1"
NEVER = pytest.mark.promise(
    "An invalidated result is never served", tries="Redis comes back with what it had forgotten"
)


def names(client: Redis, what: str) -> list[bytes]:
    return sorted(cast("Iterator[bytes]", client.scan_iter(f"cache-blocks:*:{what}:*")))


def plants() -> dict[str, Callable[[Redis, bytes], object]]:
    """What to put in the place of a key, by what it is; none of it has an end."""
    texts = (
        "9" * 19,
        "9" * 400,
        "7",
        "",
        "-1@a",
        "1.5@a",
        "1e3@a",
        "12@",
        "12@another",
        "?",
        "?not-hexadecimal",
        "\x00",
    )
    found: dict[str, Callable[[Redis, bytes], object]] = {
        repr(text[:20]): lambda client, name, text=text: client.set(name, text) for text in texts
    }
    found["bytes that are no text"] = lambda client, name: client.set(name, bytes(range(128, 256)))
    found["a number with our mark that is too long"] = lambda client, name: client.set(
        name, f"{'9' * 16}@{history(client)}"
    )
    found["a hash"] = lambda client, name: client.hset(name, "1", "1")
    found["a list"] = lambda client, name: client.rpush(name, "1")
    found["a set"] = lambda client, name: client.sadd(name, "1")
    found["a stream"] = lambda client, name: client.xadd(name, {"1": "1"})
    return found


def history(client: Redis) -> str:
    return str(client.info("replication")["master_replid"])[:12]


@pytest.fixture(params=plants())
def plant(request: pytest.FixtureRequest) -> Callable[[Redis, bytes], object]:
    """Puts something strange in the place of a key."""

    def put(client: Redis, name: bytes) -> None:
        client.delete(name)
        plants()[str(request.param)](client, name)

    return put


@pytest.fixture
def cache(make_cache: MakeCache, redis_url: str) -> TieredCache:
    """A cache whose Redis has an entry and the generations that it hangs on."""
    cache = make_cache(redis_url=redis_url, redis_timeout_seconds=10, breaker_seconds=600)
    cache.put(KEY, "text", kind=TRANSCRIPT)
    assert cache.get(KEY) == "text"
    return cache


@pytest.mark.promise("Nonsense in Redis is replaced, and is no outage", tries="18 kinds of it, as generations")
def test_a_generation_that_is_no_number_of_ours_is_asked_from_sql_and_replaced(
    cache: TieredCache, redis_client: Redis, plant: Callable[[Redis, bytes], object], make_cache: MakeCache
) -> None:
    for name in names(redis_client, "generation"):
        plant(redis_client, name)

    assert cache.get(KEY) == "text"

    sane = f"0@{history(redis_client)}".encode()
    assert {redis_client.get(name) for name in names(redis_client, "generation")} == {sane}, "what SQL says"
    assert cache.metrics.outages == {}
    for name in names(redis_client, "generation"):
        plant(redis_client, name)
    assert cache.invalidate(key=KEY).told == ("sql", "object_store", "redis")
    other = make_cache(redis_url=cache.settings.redis_url.get_secret_value())
    assert other.get(KEY) is NO_VALUE
    assert cache.get(KEY) is NO_VALUE


@pytest.mark.promise("Nonsense in Redis is replaced, and is no outage", tries="18 kinds of it, as entries and leases")
def test_an_entry_or_a_lease_of_another_kind_is_none_and_replaced(
    cache: TieredCache, redis_client: Redis, plant: Callable[[Redis, bytes], object]
) -> None:
    (entry,) = names(redis_client, "entry")
    plant(redis_client, entry)
    assert cache.lookup(KEY).tier in ("sql", "redis")
    assert cache.get(KEY) == "text"
    assert cache.lookup(KEY).tier == "redis"

    cache.invalidate(key=KEY)
    plant(redis_client, entry)
    plant(redis_client, b"cache-blocks:default:lease:" + KEY.encode())
    assert cast("Any", cache.parts.leases).view(KEY).state is LeaseState.FREE
    assert cache.get_or_compute(KEY, lambda: "new", kind=TRANSCRIPT) == "new"
    assert cache.lookup(KEY).tier == "redis"
    assert names(redis_client, "lease") == []
    assert (dict(cache.metrics.outages), cache.metrics.unleased) == ({}, 0)


def test_a_lease_without_an_end_is_none(cache: TieredCache, redis_client: Redis) -> None:
    cache.invalidate(key=KEY)
    redis_client.set(f"cache-blocks:default:lease:{KEY}", "hsomebody")
    assert cache.get_or_compute(KEY, lambda: "new", kind=TRANSCRIPT) == "new"
    assert cache.metrics.unleased == 0


# A Redis that has forgotten what it was told last


def come_back_with_an_old_snapshot(server: RedisServer, make_cache: MakeCache) -> list[object]:
    """Save, invalidate, crash, start from the snapshot; return what is served from then on."""
    caches = [make_cache(redis_url=server.url, redis_timeout_seconds=10) for _ in range(2)]
    caches[0].put(KEY, "old", kind=TRANSCRIPT)
    assert [cache.get(KEY) for cache in caches] == ["old", "old"]
    with closing(server.client()) as client:
        client.save()
    caches[0].invalidate(key=KEY)
    server.kill()
    server.start()
    with closing(server.client()) as client:
        assert names(client, "entry"), "it has started from the snapshot"
    caches.append(make_cache(redis_url=server.url, redis_timeout_seconds=10))
    served = [cache.get(KEY) for cache in caches]
    for cache in caches:
        until(lambda cache=cache: is_trusted_again(cache))
    return served + [cache.get(KEY) for cache in caches]


def is_trusted_again(cache: TieredCache) -> bool:
    cache.lookup(KEY)
    return not cache.parts.chain.breakers["redis"].is_open


@NEVER
def test_numbers_of_an_older_snapshot_count_for_nothing(redis_server: StartRedis, make_cache: MakeCache) -> None:
    assert come_back_with_an_old_snapshot(redis_server(), make_cache) == [NO_VALUE] * 6


def test_without_the_name_of_the_history_they_would(
    redis_server: StartRedis, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_history, "_REPLICATION_ID", re.compile(rb"(connected)_slaves"))  # the same for each
    assert "old" in come_back_with_an_old_snapshot(redis_server(), make_cache)


# Replicas


@pytest.fixture
def pair(redis_server: StartRedis) -> tuple[RedisServer, RedisServer]:
    """A Redis, and one that follows it."""
    master = redis_server()
    replica = redis_server("--replicaof", f"127.0.0.1 {master.port}", "--repl-timeout", "600")
    with closing(replica.client()) as client:
        until(lambda: client.info("replication")["master_link_status"] == "up")
    return master, replica


def generation(server: RedisServer) -> bytes | None:
    with closing(server.client()) as client:
        return cast("bytes | None", client.get(f"cache-blocks:default:generation:key:{KEY}"))


@pytest.mark.promise("Redis counts as told when its replicas know, and not before", tries="20 invalidations")
def test_a_replica_knows_when_an_invalidation_returns(
    pair: tuple[RedisServer, RedisServer], make_cache: MakeCache
) -> None:
    master, replica = pair
    cache = make_cache(redis_url=master.url, redis_timeout_seconds=10)
    for number in range(1, 21):
        assert "redis" in cache.invalidate(key=KEY).told
        known = generation(replica)
        assert known is not None
        assert known.startswith(b"%d@" % number)


@pytest.mark.promise("Redis counts as told when its replicas know, and not before", tries="a replica that stands still")
def test_a_replica_that_does_not_confirm_is_heard_of_and_told_later(
    pair: tuple[RedisServer, RedisServer], make_cache: MakeCache
) -> None:
    master, replica = pair
    cache = make_cache(redis_url=master.url, redis_timeout_seconds=10)
    cache.put(KEY, "old", kind=TRANSCRIPT)
    replica.freeze()
    with pytest.raises(InvalidationIncompleteError) as heard:
        cache.invalidate(key=KEY)
    assert heard.value.untold == ("redis",)
    assert cache.get(KEY) is NO_VALUE
    assert cache.parts.generations.untold("redis") != {}
    replica.thaw()
    until(lambda: cache.parts.invalidator.retry() == [])
    assert cache.parts.generations.untold("redis") == {}
    known = generation(replica)
    assert known is not None
    assert known.startswith(b"1@")


@NEVER
def test_a_replica_that_was_cut_off_and_becomes_master_serves_nothing_that_it_did_not_hear_of(
    pair: tuple[RedisServer, RedisServer], make_cache: MakeCache
) -> None:
    master, replica = pair
    cache = make_cache(redis_url=master.url, redis_timeout_seconds=10)
    cache.put(KEY, "old", kind=TRANSCRIPT)
    assert cache.get(KEY) == "old"
    with closing(replica.client()) as client:
        until(lambda: names(client, "entry") and len(names(client, "generation")) == 3)
        client.replicaof("NO", "ONE")
    with closing(master.client()) as client:
        until(lambda: client.info("replication")["connected_slaves"] == 0)
    assert "redis" in cache.invalidate(key=KEY).told, "it has no replica any more"
    assert make_cache(redis_url=replica.url, redis_timeout_seconds=10).get(KEY) is NO_VALUE


@NEVER
def test_a_former_master_that_is_master_again_serves_nothing_that_its_successor_had_not_heard_of(
    pair: tuple[RedisServer, RedisServer], make_cache: MakeCache
) -> None:
    """The process is the same as before, and so is the mark of its own on the old number that comes back to it."""
    master, replica = pair
    cache = make_cache(redis_url=master.url, redis_timeout_seconds=10)
    cache.put(KEY, "old", kind=TRANSCRIPT)
    assert cache.lookup(KEY).tier == "redis"
    with closing(replica.client()) as at_replica, closing(master.client()) as at_master:
        until(lambda: generation(replica))
        at_replica.replicaof("NO", "ONE")
        until(lambda: at_master.info("replication")["connected_slaves"] == 0)
        assert "redis" in cache.invalidate(key=KEY).told
        at_master.replicaof("127.0.0.1", str(replica.port))
        until(lambda: at_master.info("replication")["master_link_status"] == "up")
        at_master.replicaof("NO", "ONE")
        until(lambda: at_master.info("replication")["role"] == "master")
    assert (generation(master) or b"").startswith(b"0@"), "it has the old number again"
    assert make_cache(redis_url=master.url, redis_timeout_seconds=10).get(KEY) is NO_VALUE


def test_a_history_that_goes_on_under_another_name_costs_one_question_to_sql(
    redis_server: StartRedis, make_cache: MakeCache
) -> None:
    """The first replica of a server begins a new history of it; connections that know the old one learn."""
    server = redis_server()
    cache = make_cache(redis_url=server.url, redis_timeout_seconds=10)
    cache.put(KEY, "text", kind=TRANSCRIPT)
    assert cache.lookup(KEY).tier == "redis"
    with closing(server.client()) as client:
        before = history(client)
        redis_server("--replicaof", f"127.0.0.1 {server.port}")
        until(lambda: history(client) != before)
        later = make_cache(redis_url=server.url, redis_timeout_seconds=10)
        for _ in range(2):  # asks SQL, and puts numbers in the place of those from before
            later.lookup(KEY)
        marked = f"0@{history(client)}".encode()
        assert {client.get(name) for name in names(client, "generation")} == {marked}
        cache.lookup(KEY)
        cache.lookup(KEY)
        assert {client.get(name) for name in names(client, "generation")} == {marked}, "the two agree"
