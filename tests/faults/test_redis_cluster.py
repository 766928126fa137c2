"""A cluster of three masters loses one in the middle of a batch: with a replica that takes over, and without."""

from __future__ import annotations

import logging
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

import pytest
from redis import Redis
from redis.crc import key_slot

from cache_blocks import NO_VALUE, SEARCH_RESULTS, TRANSCRIPT
from cache_blocks.errors import InvalidationIncompleteError
from cache_blocks.tiers import redis_cluster as routing
from tests.faults.conftest import MakeCache, until
from tests.faults.redis_batches import Batch

if TYPE_CHECKING:
    from cache_blocks import TieredCache
    from tests.servers.redis import RedisServer
    from tests.servers.redis_fixtures import StartCluster
    from tests.servers.redis_topologies import ClusterOfRedis

KEY = "transcript:1"
PARTIAL = ("--cluster-require-full-coverage", "no")
FAILOVER = pytest.mark.promise("A failover of Redis fails no task and revives nothing", tries="3 workers, a cluster")
LOST = pytest.mark.promise("A cluster that has lost a part of its slots fails no task and revives nothing")


def entry(key: str) -> str:
    return f"cache-blocks:default:entry:{key}"


def generation(scope: str) -> str:
    return f"cache-blocks:default:generation:{scope}"


def end_like(way: str, server: RedisServer) -> None:
    server.kill() if way == "killed" else server.freeze()


@FAILOVER
@pytest.mark.parametrize("way", ["killed", "frozen"])
def test_a_master_goes_in_the_middle_of_a_batch_and_its_replica_takes_over(
    way: str, redis_cluster: StartCluster, make_cache: MakeCache
) -> None:
    cluster = redis_cluster(3, 1)
    caches = [make_cache(redis_url=cluster.url) for _ in range(4)]
    batch = Batch(caches[:3], caches[3])
    with batch.running():
        former = cluster.owner_of(generation("kind:search-results"))
        before = batch.incomplete
        end_like(way, former)
        until(lambda: batch.incomplete > before)
        cluster.await_failover(former)
        batch.go_on()
        if way == "frozen":
            former.thaw()
        else:
            former.start()
        batch.go_on()
    assert batch.failures == []
    caches[0].get_or_compute("search-results:after", lambda: 1, kind=SEARCH_RESULTS)
    until(lambda: caches[0].lookup("search-results:after").tier == "redis")


@LOST
@pytest.mark.parametrize("options", [(), PARTIAL], ids=["whole cluster stops", "other slots are served"])
def test_a_master_without_a_replica_goes_in_the_middle_of_a_batch_and_comes_back(
    options: tuple[str, ...], redis_cluster: StartCluster, make_cache: MakeCache
) -> None:
    cluster = redis_cluster(3, options=options)
    caches = [make_cache(redis_url=cluster.url) for _ in range(4)]
    batch = Batch(caches[:3], caches[3])
    with batch.running():
        lost = cluster.owner_of(generation("kind:search-results"))
        before = batch.incomplete
        lost.kill()
        until(lambda: batch.incomplete > before)
        lost.start()
        batch.go_on()
    assert batch.failures == []


@LOST
def test_what_other_nodes_have_is_served_and_what_is_lost_is_missed_and_said_once(
    redis_cluster: StartCluster, make_cache: MakeCache, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = redis_cluster(3, options=PARTIAL)
    cache = make_cache(redis_url=cluster.url, breaker_seconds=600)
    lost = next(server for server in cluster.masters if server is not cluster.owner_of(generation("all")))
    keys = [f"search-results:{number}" for number in range(30)]
    for key in keys:
        cache.put(key, "text", kind=SEARCH_RESULTS)
    assert {cache.lookup(key).tier for key in keys} == {"redis"}
    gone = {key for key in keys if cluster.owner_of(entry(key)) is lost}
    lost.kill()
    with caplog.at_level(logging.INFO, "cache_blocks"):
        tiers = {key: cache.lookup(key).tier for key in keys + keys}
        for number in range(30):
            assert (
                cache.get_or_compute(f"search-results:new-{number}", lambda n=number: n, kind=SEARCH_RESULTS) == number
            )
    assert {key for key, tier in tiers.items() if tier == "sql"} == gone
    assert {tiers[key] for key in keys if key not in gone} == {"redis"}, "it is asked on"
    lines = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line.partition(" (")[0] for line in lines] == [f"redis node 127.0.0.1:{lost.port} is down"]
    assert 0 < cache.metrics.unleased < 30, "leases are with their keys"
    assert 0 < cache.metrics.lost_writes["redis"] < 30


@LOST
def test_an_invalidation_that_a_lost_node_cannot_take_is_loud_and_nothing_stale_is_served(
    redis_cluster: StartCluster, make_cache: MakeCache
) -> None:
    cluster = redis_cluster(3, options=PARTIAL)
    reader, other = (make_cache(redis_url=cluster.url) for _ in range(2))
    reader.put(KEY, "old", kind=TRANSCRIPT)
    assert reader.get(KEY) == "old"
    lost = cluster.owner_of(generation(f"key:{KEY}"))
    lost.freeze()
    with pytest.raises(InvalidationIncompleteError, match="redis"):
        other.invalidate(key=KEY)
    assert other.get(KEY) is NO_VALUE
    lost.thaw()
    until(lambda: other.parts.invalidator.retry() == [])
    assert [cache.get(KEY) for cache in (reader, other, make_cache(redis_url=cluster.url))] == [NO_VALUE] * 3


@FAILOVER
def test_a_former_master_that_wakes_up_serves_nothing_that_was_invalidated_meanwhile(
    redis_cluster: StartCluster, make_cache: MakeCache
) -> None:
    cluster = redis_cluster(3, 1)
    reader, other = (make_cache(redis_url=cluster.url) for _ in range(2))
    reader.put(KEY, "old", kind=TRANSCRIPT)
    assert reader.lookup(KEY).tier == "redis"
    former = cluster.owner_of(generation(f"key:{KEY}"))
    former.freeze()
    cluster.await_failover(former)
    invalidate(other)
    former.thaw()
    assert reader.get(KEY) is NO_VALUE


@FAILOVER
def test_a_replica_that_has_not_heard_the_last_and_takes_over_is_not_believed(
    redis_cluster: StartCluster, make_cache: MakeCache
) -> None:
    cluster = redis_cluster(3, 1, options=("--cluster-replica-validity-factor", "0"))
    cache = make_cache(redis_url=cluster.url)
    cache.put(KEY, "old", kind=TRANSCRIPT)
    assert cache.lookup(KEY).tier == "redis"
    former = cluster.owner_of(generation(f"key:{KEY}"))
    replica = cluster.servers[3 + cluster.masters.index(former)]
    with closing(Redis(port=replica.port)) as at_replica, closing(Redis(port=former.port)) as at_former:
        until(lambda: at_replica.dbsize() == at_former.dbsize())
        replica.freeze()
        at_former.client_kill_filter(_type="replica")
        until(lambda: at_former.info("replication")["connected_slaves"] == 0)
        assert "redis" in cache.invalidate(key=KEY).told
        former.kill()
        replica.thaw()
        cluster.await_failover(former)
        at_replica.execute_command("READONLY")  # pyright: ignore[reportUnknownMemberType]
        assert at_replica.exists(generation(f"key:{KEY}")), "it has an old number"
    later = make_cache(redis_url=cluster.url)
    assert [later.get(KEY), cache.get(KEY)] == [NO_VALUE, NO_VALUE]


def invalidate(cache: TieredCache) -> None:
    try:
        cache.invalidate(key=KEY)
    except InvalidationIncompleteError:
        until(lambda: cache.parts.invalidator.retry() == [])


@pytest.mark.promise("A slot that moves loses no result", tries="half moved, and moved")
def test_a_slot_moves_to_another_node_while_it_is_used(redis_cluster: StartCluster, make_cache: MakeCache) -> None:
    cluster = redis_cluster(3)
    cache = make_cache(redis_url=cluster.url, redis_timeout_seconds=10, breaker_seconds=600)
    cache.put(KEY, "text", kind=TRANSCRIPT)
    source = cluster.owner_of(entry(KEY))
    target = next(server for server in cluster.masters if server is not source)
    slot = key_slot(entry(KEY).encode())
    move = Move(cluster, slot, source, target)
    move.begin()
    assert cache.lookup(KEY).tier == "redis", "it has not moved yet"
    move.keys([entry(KEY)])
    assert cache.lookup(KEY).tier == "redis", "the old node has pointed to the new one"
    assert cache.get_or_compute(KEY, lambda: "other", kind=TRANSCRIPT) == "text"
    move.end()
    assert cache.lookup(KEY).tier == "redis"
    cache.invalidate(key=KEY)
    assert cache.get_or_compute(KEY, lambda: "new", kind=TRANSCRIPT) == "new"
    assert cache.lookup(KEY).tier == "redis"
    assert (dict(cache.metrics.outages), cache.metrics.unleased) == ({}, 0)


class Move:
    """The steps in which an operator moves a slot."""

    def __init__(self, cluster: ClusterOfRedis, slot: int, source: RedisServer, target: RedisServer) -> None:
        self._cluster = cluster
        self._slot = slot
        self._source = source
        self._target = target
        self._ids = {one: self._do(one, "CLUSTER", "MYID") for one in (source, target)}

    def begin(self) -> None:
        self._do(self._target, "CLUSTER", "SETSLOT", self._slot, "IMPORTING", self._ids[self._source])
        self._do(self._source, "CLUSTER", "SETSLOT", self._slot, "MIGRATING", self._ids[self._target])

    def keys(self, names: list[str]) -> None:
        self._do(self._source, "MIGRATE", "127.0.0.1", self._target.port, "", 0, 5000, "KEYS", *names)

    def end(self) -> None:
        for server in (self._target, self._source, *self._cluster.servers):
            self._do(server, "CLUSTER", "SETSLOT", self._slot, "NODE", self._ids[self._target])

    def _do(self, server: RedisServer, *command: object) -> Any:
        with closing(Redis(port=server.port)) as client:
            return cast("Any", client).execute_command(*command)


@pytest.mark.promise("A lookup in a cluster is one round trip a node", tries="50 keys")
def test_a_lookup_asks_each_node_once(
    redis_cluster: StartCluster, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = redis_cluster(3)
    cache = make_cache(redis_url=cluster.url, redis_timeout_seconds=10)
    keys = [f"search-results:{number}" for number in range(50)]
    for key in keys:
        cache.put(key, "text", kind=SEARCH_RESULTS)
    cache.get_many(keys)
    monkeypatch.setattr(routing, "RECHECK_SECONDS", 600)
    sent: list[str] = []
    real: Any = routing.Node.send

    def counting(node: Any, commands: Any) -> Any:
        sent.append(node.name)
        return real(node, commands)

    monkeypatch.setattr(routing.Node, "send", counting)
    assert len(cache.get_many(keys)) == 50
    assert sorted(sent) == sorted(f"redis node 127.0.0.1:{server.port}" for server in cluster.masters)
    owners = {cluster.owner_of(entry(key)) for key in keys}
    assert owners == set(cluster.masters), "no node has it all"
