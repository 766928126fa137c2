"""A master that Sentinels replace: in the middle of a batch, and by a replica that has not heard everything."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

import pytest
from redis import Redis

from cache_blocks import NO_VALUE, TRANSCRIPT
from cache_blocks.errors import InvalidationIncompleteError
from cache_blocks.tiers import redis_sentinel
from cache_blocks.tiers.redis import connect
from tests.faults.conftest import MakeCache, until
from tests.faults.redis_batches import Batch

if TYPE_CHECKING:
    from cache_blocks import TieredCache
    from tests.servers.redis import RedisServer
    from tests.servers.redis_fixtures import StartSentinels
    from tests.servers.redis_topologies import SentinelService

KEY = "transcript:1"
FAILOVER = pytest.mark.promise("A failover of Redis fails no task and revives nothing", tries="3 workers, Sentinels")


def end_like(way: str, server: RedisServer) -> None:
    server.kill() if way == "killed" else server.freeze()


@FAILOVER
@pytest.mark.parametrize("way", ["killed", "frozen"])
def test_the_master_goes_in_the_middle_of_a_batch(
    way: str, redis_sentinels: StartSentinels, make_cache: MakeCache
) -> None:
    service = redis_sentinels()
    caches = [make_cache(redis_url=service.url) for _ in range(4)]
    batch = Batch(caches[:3], caches[3])
    with batch.running():
        former = service.master
        end_like(way, former)
        batch_goes_on_without_redis(batch)
        service.await_failover(former)
        until(lambda: is_used(caches[0], service.master))
        batch.go_on()
        if way == "frozen":
            former.thaw()
        else:
            former.start()
        batch.go_on()
    assert batch.failures == []


def batch_goes_on_without_redis(batch: Batch) -> None:
    """Calls go on; an invalidation cannot be completed, and says so."""
    before = batch.incomplete
    until(lambda: batch.incomplete > before)


def is_used(cache: TieredCache, server: RedisServer) -> bool:
    """Whether a cache keeps something in a server."""
    cache.get_or_compute(KEY, lambda: 0, kind=TRANSCRIPT)
    with closing(server.client()) as client:
        return client.exists(f"cache-blocks:default:entry:{KEY}") == 1


@FAILOVER
def test_a_former_master_that_wakes_up_serves_nothing_that_was_invalidated_meanwhile(
    redis_sentinels: StartSentinels, make_cache: MakeCache
) -> None:
    assert served_by_a_former_master(redis_sentinels(), make_cache) is NO_VALUE


def test_without_asking_the_sentinels_again_it_would(
    redis_sentinels: StartSentinels, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_sentinel, "RECHECK_SECONDS", 600)
    assert served_by_a_former_master(redis_sentinels(), make_cache) == "old"


def served_by_a_former_master(service: SentinelService, make_cache: MakeCache) -> object:
    """What a cache is served that has slept through a failover, by a former master that has, too."""
    reader, other = (make_cache(redis_url=service.url) for _ in range(2))
    reader.put(KEY, "old", kind=TRANSCRIPT)
    assert reader.lookup(KEY).tier == "redis"
    former = service.master
    former.freeze()
    service.await_failover(former)
    complete(other, KEY)
    former.thaw()  # Sentinels will tell it in a moment
    return reader.get(KEY)


def complete(cache: TieredCache, key: str) -> None:
    """Invalidate, and see that everybody who can be told has been."""
    try:
        cache.invalidate(key=key)
    except InvalidationIncompleteError:
        until(lambda: cache.parts.invalidator.retry() == [])


@FAILOVER
def test_a_replica_that_has_not_heard_the_last_and_becomes_master_is_not_believed(
    redis_sentinels: StartSentinels, make_cache: MakeCache
) -> None:
    service = redis_sentinels()
    cache = make_cache(redis_url=service.url)
    cache.put(KEY, "old", kind=TRANSCRIPT)
    assert cache.lookup(KEY).tier == "redis"
    former, (replica,) = service.master, service.replicas
    with closing(replica.client()) as client:
        until(lambda: client.get(f"cache-blocks:default:generation:key:{KEY}"))
    replica.freeze()
    with closing(former.client()) as client:
        client.client_kill_filter(_type="replica")
        until(lambda: client.info("replication")["connected_slaves"] == 0)
    assert "redis" in cache.invalidate(key=KEY).told
    former.kill()
    replica.thaw()
    assert service.await_failover(former) is replica
    with closing(replica.client()) as client:
        assert client.exists(f"cache-blocks:default:entry:{KEY}"), "it has the entry, and an old number for it"
    later = make_cache(redis_url=service.url)
    assert [later.get(KEY), cache.get(KEY)] == [NO_VALUE, NO_VALUE]


def test_a_former_master_that_does_not_know_it_yet_is_told_as_well(
    redis_sentinels: StartSentinels, make_cache: MakeCache
) -> None:
    """Sentinels promote a replica; the former master is well, and is asked on until they have told it."""
    service = redis_sentinels()
    cache = make_cache(redis_url=service.url)
    cache.put(KEY, "old", kind=TRANSCRIPT)
    former = service.master
    with closing(Redis(port=service.sentinels[0].port)) as sentinel, closing(former.client()) as at_former:
        at_former.execute_command("ACL", "SETUSER", "default", "-replicaof", "-slaveof")  # pyright: ignore[reportUnknownMemberType]
        sentinel.execute_command("SENTINEL FAILOVER", "mymaster")  # pyright: ignore[reportUnknownMemberType]
        service.await_failover(former)
        assert at_former.info("replication")["role"] == "master", "nobody could tell it"
        complete(make_cache(redis_url=service.url), KEY)
        known = cast("bytes", at_former.get(f"cache-blocks:default:generation:key:{KEY}"))
        assert known.startswith(b"1@")


def test_most_of_the_sentinels_must_answer(redis_sentinels: StartSentinels) -> None:
    service = redis_sentinels()
    with connect(service.url, 0.5) as servers:
        assert servers.describe().startswith(f"master of mymaster at 127.0.0.1:{service.master.port} by 3 Sentinels")
        service.sentinels[0].kill()
        assert cast("Any", servers).kept.ask("PING") == b"PONG"
        service.sentinels[1].kill()
        servers.close()
        with pytest.raises(redis_sentinel.MasterNotFoundError, match="1 of 3 Sentinels"):
            cast("Any", servers).kept.ask("PING")
