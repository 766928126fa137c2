"""The fixtures by which tests reach Sentinels, clusters and TLS. Each server belongs to the test, or to its process."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Protocol

import pytest
from redis import Redis

from tests.servers.redis import RedisServer, keys_without_expiry
from tests.servers.redis_topologies import Certificates, ClusterOfRedis, SentinelService

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence


class StartSentinels(Protocol):
    """The `redis_sentinels` fixture: starts a master, replicas and Sentinels of the test's own."""

    def __call__(
        self, replicas: int = 1, *, options: Sequence[str] = (), sentinel_lines: Sequence[str] = ()
    ) -> SentinelService: ...


class StartCluster(Protocol):
    """The `redis_cluster` fixture: starts a cluster of the test's own."""

    def __call__(self, masters: int = 3, replicas: int = 0, *, options: Sequence[str] = ()) -> ClusterOfRedis: ...


@pytest.fixture
def redis_sentinels(tmp_path_factory: pytest.TempPathFactory) -> Generator[StartSentinels]:
    """Starts masters with replicas and Sentinels. Every key in those that still run must have an expiry."""
    services: list[SentinelService] = []

    def start(replicas: int = 1, *, options: Sequence[str] = (), sentinel_lines: Sequence[str] = ()) -> SentinelService:
        folder = tmp_path_factory.mktemp("sentinels")
        services.append(SentinelService(folder, replicas, options=options, sentinel_lines=sentinel_lines))
        return services[-1]

    yield start
    try:
        for service in services:
            demand_expiries(service.servers)
    finally:
        for service in services:
            service.stop()


@pytest.fixture
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[StartCluster]:
    """Starts clusters. Every key in the nodes that still run must have an expiry."""
    clusters: list[ClusterOfRedis] = []

    def start(masters: int = 3, replicas: int = 0, *, options: Sequence[str] = ()) -> ClusterOfRedis:
        clusters.append(ClusterOfRedis(tmp_path_factory.mktemp("cluster"), masters, replicas, options=options))
        return clusters[-1]

    yield start
    try:
        for cluster in clusters:
            demand_expiries(cluster.servers)
    finally:
        for cluster in clusters:
            cluster.stop()


@pytest.fixture(scope="session")
def shared_redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[ClusterOfRedis]:
    """A cluster of three masters, for tests with a namespace of their own that do it no harm."""
    cluster = ClusterOfRedis(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def shared_redis_sentinels(tmp_path_factory: pytest.TempPathFactory) -> Generator[SentinelService]:
    """A master with a replica and Sentinels, for tests with a namespace of their own that do it no harm."""
    service = SentinelService(tmp_path_factory.mktemp("sentinels"))
    yield service
    service.stop()


@pytest.fixture
def redis_certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Files of an authority of the test's own, and of a server and a client that it vouches for."""
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


def demand_expiries(servers: Iterable[RedisServer]) -> None:
    """Fail when a key would stay for ever in a server that runs."""
    for server in servers:
        if server.running:
            server.thaw()
            with closing(Redis(port=server.port)) as client:
                if client.info("replication")["role"] != "master":
                    continue  # it has what its master has
                if found := keys_without_expiry(client):
                    pytest.fail(f"keys that would stay in Redis for ever: {', '.join(found)}")
