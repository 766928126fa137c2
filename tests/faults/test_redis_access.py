"""TLS, users and passwords: what gets in, what does not, and the rights that a user needs and no others."""

from __future__ import annotations

import logging
import re
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from typer.testing import CliRunner

from cache_blocks import NO_VALUE, TRANSCRIPT, TieredCache
from cache_blocks.cli.app import app
from tests.faults.conftest import MakeCache, until
from tests.servers.redis_topologies import Certificates, ClusterOfRedis, SentinelService, TlsProxy

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from redis import Redis

    from tests.servers.fixtures import StartRedis
    from tests.servers.redis import RedisServer
    from tests.servers.redis_fixtures import StartCluster, StartSentinels

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "redis.md"
SECRET = "hunter2-c0rrect-horse"
RULES = {
    name: rule.split()
    for name, rule in re.findall(r"^user ([\w-]+) (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
}
"""The rules of the documentation, by the name of the user."""


def use(cache: TieredCache, key: str = "transcript:a") -> None:
    """Store, find, list, invalidate, compute and erase."""
    cache.put(key, "text", kind=TRANSCRIPT, tags=["recording:a"])
    assert cache.lookup(key).tier == "redis"
    assert key in list(cache.parts.chain.tier("redis").keys())
    assert "redis" in cache.invalidate(tag="recording:a").told
    cache.put(key, "text", kind=TRANSCRIPT)
    assert "redis" in cache.invalidate(key=key).told
    assert cache.get(key) is NO_VALUE
    assert cache.get_or_compute(key, lambda: "new", kind=TRANSCRIPT) == "new"
    with pytest.raises(ZeroDivisionError):
        cache.get_or_compute("transcript:failing", lambda: 1 / 0, kind=TRANSCRIPT)
    assert cache.lookup(key).tier == "redis"
    lease = cache.parts.leases.acquire("transcript:held")
    until(lambda: cache.parts.leases.view("transcript:held").seconds_left)
    assert cache.parts.leases._book.renew("transcript:held", lease.token)  # pyright: ignore[reportPrivateUsage]
    cache.parts.leases.release("transcript:held", lease.token)
    assert cache.parts.chain.tier("redis").delete([key]) == 1
    assert cache.parts.chain.tier("redis").ping()
    assert (dict(cache.metrics.outages), cache.metrics.unleased, dict(cache.metrics.lost_writes)) == ({}, 0, {})


def let_in(client: Redis, rule: Sequence[str], name: str = "cache-blocks") -> None:
    """Make a user by a rule of the documentation, with our password."""
    words = [f">{SECRET}" if word.startswith(">") else word for word in rule]
    client.execute_command("ACL", "SETUSER", name, *words)  # pyright: ignore[reportUnknownMemberType]


def refused(client: Redis) -> list[str]:
    """What a user has tried and may not do."""
    log: Any = client.acl_log()
    return [f"{line['reason']} {line['object']}" for line in log]


# Users


@pytest.mark.promise("A Redis user with the documented rights, and no others, suffices", tries="every command")
def test_the_documented_rights_suffice_and_each_of_them_is_used(
    redis_server: StartRedis, make_cache: MakeCache
) -> None:
    server = redis_server()
    replica = redis_server("--replicaof", f"127.0.0.1 {server.port}", "--repl-diskless-sync-delay", "0")
    with closing(server.client()) as admin, closing(replica.client()) as at_replica:
        until(lambda: at_replica.info("replication")["master_link_status"] == "up")
        let_in(admin, RULES["cache-blocks"])
        admin.config_resetstat()
        use(make_cache(redis_url=f"redis://cache-blocks:{SECRET}@127.0.0.1:{server.port}/0", redis_timeout_seconds=10))
        assert refused(admin) == []
        used = {name.removeprefix("cmdstat_").partition("|")[0] for name in admin.info("commandstats")}
        granted = {word[1:].partition("|")[0] for word in RULES["cache-blocks"] if word.startswith("+")}
        assert granted <= used, "no right is granted that nothing needs"


@pytest.mark.promise("A Redis user with the documented rights, and no others, suffices", tries="a cluster")
def test_the_documented_rights_suffice_in_a_cluster(redis_cluster: StartCluster, make_cache: MakeCache) -> None:
    cluster = redis_cluster(3)
    for server in cluster.servers:
        with closing(server.client()) as admin:
            let_in(admin, [*RULES["cache-blocks"], *RULES["cache-blocks-in-a-cluster"]])
    url = cluster.url.replace("://", f"://cache-blocks:{SECRET}@")
    cache = make_cache(redis_url=url, redis_timeout_seconds=10)
    use(cache)
    for server in cluster.servers:
        with closing(server.client()) as admin:
            assert refused(admin) == []


def test_a_master_and_sentinels_with_users(redis_sentinels: StartSentinels, make_cache: MakeCache) -> None:
    watch = RULES["cache-blocks-watching"]
    rule = " ".join(f">{SECRET}2" if word.startswith(">") else word for word in watch)
    service = redis_sentinels(sentinel_lines=[f"user watching {rule}"])
    with closing(service.master.client()) as admin:
        let_in(admin, RULES["cache-blocks"])
        query = f"sentinel_username=watching&sentinel_password={SECRET}2"
        use(
            make_cache(
                redis_url=f"redis+sentinel://cache-blocks:{SECRET}@{service.members}/mymaster/0?{query}",
                redis_timeout_seconds=10,
            )
        )
        assert refused(admin) == []


def test_a_user_that_may_not_ask_for_info_is_served_all_the_same(
    redis_server: StartRedis, make_cache: MakeCache, caplog: pytest.LogCaptureFixture
) -> None:
    server = redis_server()
    with closing(server.client()) as admin:
        let_in(admin, [word for word in RULES["cache-blocks"] if word != "+info"])
    url = f"redis://cache-blocks:{SECRET}@127.0.0.1:{server.port}/0"
    with caplog.at_level(logging.WARNING, "cache_blocks"):
        use(make_cache(redis_url=url, redis_timeout_seconds=10))
    assert caplog.messages == []
    said = CliRunner().invoke(app, ["doctor"], env={"CACHE_BLOCKS_REDIS_URL": url}).output
    assert re.search(r"redis memory +advice", said), said
    assert "grant it +info" in said


@pytest.mark.parametrize("user", ["cache-blocks:wrong", "nobody:at-all"])
def test_who_is_not_let_in_computes_and_is_told_why(
    user: str, redis_server: StartRedis, make_cache: MakeCache, caplog: pytest.LogCaptureFixture
) -> None:
    server = redis_server()
    with closing(server.client()) as admin:
        let_in(admin, RULES["cache-blocks"])
    cache = make_cache(redis_url=f"redis://{user}@127.0.0.1:{server.port}/0", breaker_seconds=600)
    assert cache.get_or_compute("transcript:a", lambda: "text", kind=TRANSCRIPT) == "text"
    (line,) = [line for line in caplog.messages if line.startswith("redis is down")]
    assert re.search("invalid username-password pair|AUTH|password", line)
    assert user.partition(":")[2] not in line


# TLS


@pytest.fixture
def secured(redis_server: StartRedis, redis_certificates: Certificates) -> Generator[tuple[RedisServer, TlsProxy]]:
    """A Redis, and the end of TLS in front of it."""
    server = redis_server()
    proxy = TlsProxy(server.port, redis_certificates)
    yield server, proxy
    proxy.close()


@pytest.mark.promise("Redis is reached by TLS, and by nothing less, when the URL says so", tries="CA and certificate")
def test_tls_with_an_authority_a_certificate_and_a_user(
    secured: tuple[RedisServer, TlsProxy], redis_certificates: Certificates, make_cache: MakeCache
) -> None:
    server, proxy = secured
    with closing(server.client()) as admin:
        let_in(admin, RULES["cache-blocks"])
    url = f"rediss://cache-blocks:{SECRET}@127.0.0.1:{proxy.port}/0?{redis_certificates.query}"
    use(make_cache(redis_url=url, redis_timeout_seconds=10))
    assert proxy.served >= 1


@pytest.mark.promise("Redis is reached by TLS, and by nothing less, when the URL says so", tries="4 that do not fit")
@pytest.mark.parametrize("what", ["no certificate", "a stranger's", "another authority", "no TLS"])
def test_what_does_not_fit_is_not_let_through_and_computes(
    what: str,
    secured: tuple[RedisServer, TlsProxy],
    redis_certificates: Certificates,
    make_cache: MakeCache,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server, proxy = secured
    stranger = Certificates.make(tmp_path)
    url = {
        "no certificate": f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={redis_certificates.ca}",
        "a stranger's": f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={redis_certificates.ca}"
        f"&ssl_certfile={stranger.client}&ssl_keyfile={stranger.client}",
        "another authority": f"rediss://127.0.0.1:{proxy.port}/0?{stranger.query}",
        "no TLS": f"redis://127.0.0.1:{proxy.port}/0",
    }[what]
    cache = make_cache(redis_url=url, breaker_seconds=600, redis_timeout_seconds=2)
    assert cache.get_or_compute("transcript:a", lambda: "text", kind=TRANSCRIPT) == "text"
    assert cache.lookup("transcript:a").tier == "sql"
    assert cache.metrics.outages == {"redis": 1}
    assert sum(line.startswith("redis is down") for line in caplog.messages) == 1
    with closing(server.client()) as admin:
        assert admin.dbsize() == 0


@pytest.mark.promise("Redis is reached by TLS, and by nothing less, when the URL says so", tries="a cluster")
def test_a_cluster_by_tls(
    tmp_path_factory: pytest.TempPathFactory, redis_certificates: Certificates, make_cache: MakeCache
) -> None:
    cluster = ClusterOfRedis(tmp_path_factory.mktemp("cluster"))
    proxies = [TlsProxy(server.port, redis_certificates) for server in cluster.servers]
    try:
        for server, proxy in zip(cluster.servers, proxies, strict=True):
            with closing(server.client()) as admin:
                admin.config_set("cluster-announce-port", proxy.port)
        ports = {proxy.port for proxy in proxies}
        url = f"rediss+cluster://127.0.0.1:{proxies[0].port}?{redis_certificates.query}"
        until(lambda: all(announced(server) == ports for server in cluster.servers))
        use(make_cache(redis_url=url, redis_timeout_seconds=10))
        assert all(proxy.served for proxy in proxies)
    finally:
        for proxy in proxies:
            proxy.close()
        cluster.stop()


def announced(server: RedisServer) -> set[int]:
    """The ports at which a node believes that the masters are reached."""
    with closing(server.client()) as client:
        slots: Any = cast("Any", client).execute_command("CLUSTER SLOTS")
        return {int(nodes[0][1]) for _, _, *nodes in slots}


# What the doctor says of it


def test_the_doctor_names_how_the_servers_are_arranged(
    shared_redis_sentinels: SentinelService, shared_redis_cluster: ClusterOfRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_BLOCKS_REDIS_TIMEOUT_SECONDS", "10")
    said = doctor(shared_redis_sentinels.url)
    assert f"master of mymaster at 127.0.0.1:{shared_redis_sentinels.master.port} by 3 Sentinels" in said
    assert "replicas up: 1" in said
    said = doctor(shared_redis_cluster.url)
    assert "cluster of 3 masters and 0 replicas, 16384 of 16384 slots served" in said
    for server in shared_redis_cluster.servers:
        assert f"redis memory of 127.0.0.1:{server.port} advice maxmemory" in said


def doctor(url: str) -> str:
    """What the doctor prints, in one line."""
    return " ".join(CliRunner().invoke(app, ["doctor"], env={"CACHE_BLOCKS_REDIS_URL": url}).output.split())


# Nothing of it is shown


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+sentinel", "redis+cluster", "rediss+cluster"])
def test_no_password_is_shown_of_servers_that_are_down(
    scheme: str, make_cache: MakeCache, caplog: pytest.LogCaptureFixture
) -> None:
    path = "/mymaster/0?sentinel_password=" + SECRET if "sentinel" in scheme else ""
    url = (
        f"{scheme}://user:{SECRET}@127.0.0.1:1,127.0.0.1:2{path}"
        if "+" in scheme
        else f"{scheme}://user:{SECRET}@127.0.0.1:1/0"
    )
    cache = make_cache(redis_url=url)
    with caplog.at_level(logging.DEBUG, "cache_blocks"):
        assert cache.get_or_compute("transcript:a", lambda: "text", kind=TRANSCRIPT) == "text"
    said = CliRunner().invoke(app, ["doctor"], env={"CACHE_BLOCKS_REDIS_URL": url}).output
    tier: Any = cache.parts.chain.tier("redis")
    shown: list[str] = [repr(tier), repr(tier.__dict__), repr(tier.servers)]
    for text in (caplog.text, said, repr(cache.settings), *shown):
        assert SECRET not in text
    assert re.search(r"redis +broken", said)
