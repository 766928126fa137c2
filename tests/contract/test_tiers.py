"""The contract of tiers over every tier, every real server, and chains of them."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from redis.cluster import RedisCluster

from cache_blocks import codec
from cache_blocks.schema import EntryRow, table
from cache_blocks.testing import MakeTier, Plant, TierContract, entry_for
from cache_blocks.tiers.chain import Chain
from cache_blocks.tiers.memory import MemoryTier
from cache_blocks.tiers.object_store import ObjectStore, ObjectStoreTier
from cache_blocks.tiers.redis import RedisTier, connect
from cache_blocks.tiers.sql import SqlTier
from tests.servers.redis_fixtures import demand_expiries

if TYPE_CHECKING:
    from collections.abc import Generator

    from redis import Redis

    from cache_blocks.database import Database
    from cache_blocks.tiers.base import Tier
    from cache_blocks.tiers.redis_servers import RedisServers
    from tests.servers.redis_topologies import ClusterOfRedis, SentinelService

ROWS = table(EntryRow)


@pytest.fixture
def client(redis_url: str) -> Generator[RedisServers]:
    """A Redis reached as the product reaches it, with time for a busy machine."""
    with connect(redis_url, timeout_seconds=10) as servers:
        yield servers


def plant_in_memory(tier: MemoryTier, key: str, data: bytes) -> None:
    tier._envelopes[key] = (1, entry_for().expires_at, data)
    tier._bytes += len(data)


def plant_in_sql(tier: SqlTier, key: str, data: bytes) -> None:
    """Replace an envelope past the tier: a row is written in order, then its bytes are."""
    tier.write([entry_for(key, namespace=tier.namespace)])
    with tier.database.begin() as connection:
        where = (ROWS.c.namespace == tier.namespace) & (ROWS.c.key == key)
        assert connection.execute(sa.update(ROWS).where(where).values(envelope=data)).rowcount == 1


def plant_in_store(tier: ObjectStoreTier, key: str, data: bytes) -> None:
    path = tier._entry_path(key)
    tier.store.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    tier.store.fs.pipe_file(path, data)


class TestMemory(TierContract):
    keeps_manifest = False

    @pytest.fixture
    def make_tier(self) -> MakeTier:
        return MemoryTier

    @pytest.fixture
    def plant(self, tier: MemoryTier) -> Plant:
        return lambda key, data: plant_in_memory(tier, key, data)

    def test_over_its_budget_the_least_recently_used_goes(self) -> None:
        one = len(codec.pack(entry_for("transcript:a"), with_manifest=False))
        tier = MemoryTier(max_bytes=one * 2 + 10)
        tier.write([entry_for("transcript:a"), entry_for("transcript:b")])
        tier.read(["transcript:a"])
        tier.write([entry_for("transcript:c")])
        assert set(tier.keys()) == {"transcript:a", "transcript:c"}

    def test_what_is_larger_than_the_budget_is_not_kept(self) -> None:
        tier = MemoryTier(max_bytes=10)
        assert tier.write([entry_for()]) == set()
        assert list(tier.keys()) == []


class RedisContract(TierContract):
    """Every arrangement of servers; a test plants and looks through clients of their own."""

    keeps_manifest = False

    @pytest.fixture
    def make_tier(self, servers: RedisServers) -> MakeTier:
        return lambda namespace: RedisTier(servers, namespace)

    @pytest.fixture
    def plant(self, past_the_tier: Redis | RedisCluster, tier: Tier) -> Plant:
        def plant(key: str, data: bytes) -> None:
            past_the_tier.set(f"cache-blocks:{tier.namespace}:entry:{key}", data, ex=60)

        return plant

    def test_an_entry_ends_in_redis_when_it_ends(self, tier: Tier, past_the_tier: Redis | RedisCluster) -> None:
        entry = self.entry(tier, expires_in=500)
        tier.write([entry])
        ends_ms = past_the_tier.pexpiretime(f"cache-blocks:{tier.namespace}:entry:{entry.key}")
        assert abs(ends_ms / 1000 - entry.expires_at) < 1

    def test_a_seed_counts_only_where_its_token_still_stands(self, tier: RedisTier) -> None:
        token = tier.reserve(["all", "kind:transcript"])
        tier.raise_generations({"all": 5})
        tier.seed({"all": 4, "kind:transcript": 2}, token)
        assert tier.read([], ["all", "kind:transcript"]).generations == {"all": 5, "kind:transcript": 2}

    def test_a_reserved_generation_is_unknown(self, tier: RedisTier) -> None:
        tier.reserve(["all"])
        assert tier.read([], ["all", "kind:transcript"]).generations == {}

    def test_a_generation_never_falls(self, tier: RedisTier) -> None:
        tier.raise_generations({"all": 5})
        tier.raise_generations({"all": 3})
        assert tier.read([], ["all"]).generations == {"all": 5}


class TestRedis(RedisContract):
    @pytest.fixture
    def servers(self, client: RedisServers) -> RedisServers:
        return client

    @pytest.fixture
    def past_the_tier(self, redis_client: Redis) -> Redis:
        return redis_client


class TestRedisOfSentinels(RedisContract):
    @pytest.fixture
    def servers(self, shared_redis_sentinels: SentinelService) -> Generator[RedisServers]:
        with connect(shared_redis_sentinels.url, timeout_seconds=10) as servers:
            yield servers

    @pytest.fixture
    def past_the_tier(self, shared_redis_sentinels: SentinelService) -> Generator[Redis]:
        with shared_redis_sentinels.master.client() as client:
            client.flushdb()
            yield client
            demand_expiries([shared_redis_sentinels.master])


class TestRedisCluster(RedisContract):
    @pytest.fixture
    def servers(self, shared_redis_cluster: ClusterOfRedis) -> Generator[RedisServers]:
        with connect(shared_redis_cluster.url, timeout_seconds=10) as servers:
            yield servers

    @pytest.fixture
    def past_the_tier(self, shared_redis_cluster: ClusterOfRedis) -> Generator[RedisCluster]:
        with RedisCluster(host="127.0.0.1", port=shared_redis_cluster.servers[0].port) as client:
            client.flushdb(target_nodes=RedisCluster.PRIMARIES)
            yield client
            demand_expiries(shared_redis_cluster.masters)


class TestSqlite(TierContract):
    @pytest.fixture
    def make_tier(self, sqlite: Database) -> MakeTier:
        return lambda namespace: SqlTier(sqlite, namespace)

    @pytest.fixture
    def plant(self, tier: SqlTier) -> Plant:
        return lambda key, data: plant_in_sql(tier, key, data)


class TestPostgres(TierContract):
    @pytest.fixture
    def make_tier(self, postgres: Database) -> MakeTier:
        return lambda namespace: SqlTier(postgres, namespace)

    @pytest.fixture
    def plant(self, tier: SqlTier) -> Plant:
        return lambda key, data: plant_in_sql(tier, key, data)


class TestPostgresThroughPgBouncer(TierContract):
    @pytest.fixture
    def make_tier(self, pgbouncer: Database) -> MakeTier:
        return lambda namespace: SqlTier(pgbouncer, namespace)

    @pytest.fixture
    def plant(self, tier: SqlTier) -> Plant:
        return lambda key, data: plant_in_sql(tier, key, data)


class ObjectStoreContract(TierContract):
    fences = False

    @pytest.fixture
    def make_tier(self, store: ObjectStore) -> MakeTier:
        return lambda namespace: ObjectStoreTier(store, namespace)

    @pytest.fixture
    def plant(self, tier: ObjectStoreTier) -> Plant:
        return lambda key, data: plant_in_store(tier, key, data)

    def test_mirrored_generations_come_back(self, tier: ObjectStoreTier) -> None:
        assert tier.mirrored_generations() == {}
        numbers = {"all": 3, "tag:sprache:Äöü": 1, "key:transcript:1f2e": 2}
        tier.mirror_generations(numbers)
        assert tier.mirrored_generations() == numbers


class TestFolder(ObjectStoreContract):
    @pytest.fixture
    def store(self, folder: ObjectStore) -> ObjectStore:
        return folder


class TestS3CheckingSignatures(ObjectStoreContract):
    @pytest.fixture
    def store(self, rclone: ObjectStore) -> ObjectStore:
        return rclone


class TestS3WithConditionalWrites(ObjectStoreContract):
    @pytest.fixture
    def store(self, moto: ObjectStore) -> ObjectStore:
        return moto


class TestEmbeddedChain(TierContract):
    """Memory, SQLite and a folder: what there is without any server."""

    keeps_manifest = False

    @pytest.fixture
    def make_tier(self, sqlite: Database, folder: ObjectStore) -> MakeTier:
        return lambda namespace: Chain(
            [MemoryTier(namespace), SqlTier(sqlite, namespace), ObjectStoreTier(folder, namespace)]
        )

    @pytest.fixture(params=["memory", "sql", "object_store"])
    def plant(self, request: pytest.FixtureRequest, tier: Chain) -> Plant:
        return lambda key, data: plant_in_chain(tier, str(request.param), key, data)


class TestServerChain(TierContract):
    """Redis, PostgreSQL and S3."""

    keeps_manifest = False

    @pytest.fixture
    def make_tier(self, client: RedisServers, postgres: Database, rclone: ObjectStore) -> MakeTier:
        return lambda namespace: Chain(
            [RedisTier(client, namespace), SqlTier(postgres, namespace), ObjectStoreTier(rclone, namespace)]
        )

    @pytest.fixture(params=["sql", "object_store"])
    def plant(self, request: pytest.FixtureRequest, tier: Chain) -> Plant:
        return lambda key, data: plant_in_chain(tier, str(request.param), key, data)


def plant_in_chain(chain: Chain, name: str, key: str, data: bytes) -> None:
    tier = chain.tier(name)
    if isinstance(tier, MemoryTier):
        plant_in_memory(tier, key, data)
    elif isinstance(tier, SqlTier):
        plant_in_sql(tier, key, data)
    elif isinstance(tier, ObjectStoreTier):
        plant_in_store(tier, key, data)
