"""The fixtures by which tests reach real servers. Each starts when first asked for, once per process."""

from __future__ import annotations

import os
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
from redis import Redis
from sqlalchemy import make_url

from tests.servers.postgres import fresh_database
from tests.servers.postgres import postgres_server as start_postgres
from tests.servers.postgres_pooler import is_installed, pgbouncer
from tests.servers.redis import RedisServer, keys_without_expiry
from tests.servers.s3 import S3Account, S3Bucket, fresh_bucket, moto_server, rclone_server

if TYPE_CHECKING:
    from collections.abc import Generator


class StartRedis(Protocol):
    """The `redis_server` fixture: starts a Redis with further options of redis-server."""

    def __call__(self, *options: str) -> RedisServer: ...


@pytest.fixture(scope="session")
def shared_redis_url(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The Redis of this test process. Tests use `redis_url`, which empties and checks it."""
    if theirs := os.environ.get("TEST_REDIS_URL"):
        yield _database_of_this_worker(theirs)
        return
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server.url
    server.stop()


@pytest.fixture
def redis_url(shared_redis_url: str) -> Generator[str]:
    """An empty Redis. After the test, every key in it must have an expiry."""
    with Redis.from_url(shared_redis_url) as client:
        client.flushdb()
        yield shared_redis_url
        _demand_expiries(client)


@pytest.fixture
def redis_client(redis_url: str) -> Generator[Redis]:
    """A client of `redis_url`, for tests that look past the code under test."""
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[StartRedis]:
    """Starts Redis servers of the test's own, which it may stop, kill, freeze and start again.

    After the test, every key in those that still run must have an expiry.
    """
    servers: list[RedisServer] = []

    def start(*options: str) -> RedisServer:
        servers.append(RedisServer(tmp_path_factory.mktemp("redis"), *options))
        return servers[-1]

    yield start
    try:
        for server in filter(lambda server: server.running, servers):
            server.thaw()
            with closing(server.client()) as client:
                _demand_expiries(client)
    finally:
        for server in servers:
            server.stop()


@pytest.fixture(scope="session")
def postgres_server() -> Generator[str]:
    """The PostgreSQL of this test process. Tests use `postgres_url`, a database of their own on it."""
    if theirs := os.environ.get("TEST_POSTGRES_URL"):
        yield theirs
        return
    # Not in pytest's folder: as root, PostgreSQL runs as another user, and every new pytest session on the machine
    # takes the rights of others on that folder away.
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        with start_postgres(Path(folder)) as url:
            yield url


@pytest.fixture
def postgres_url(postgres_server: str) -> Generator[str]:
    """An empty PostgreSQL database, as SQLAlchemy URL (`postgresql+psycopg://…`)."""
    with fresh_database(postgres_server) as url:
        yield url


@pytest.fixture(scope="session")
def pgbouncer_server(postgres_server: str) -> Generator[str]:
    """A PgBouncer in transaction mode before `postgres_server`. Tests use `pgbouncer_url`."""
    if not is_installed():
        pytest.skip("there is no pgbouncer on PATH, and no wheel brings one")
    with pgbouncer(postgres_server) as url:
        yield url


@pytest.fixture
def pgbouncer_url(pgbouncer_server: str, postgres_url: str) -> str:
    """`postgres_url` through PgBouncer in transaction mode."""
    through = make_url(pgbouncer_server).set(database=make_url(postgres_url).database)
    return through.render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def s3_account(tmp_path_factory: pytest.TempPathFactory) -> Generator[S3Account]:
    """An S3 server that checks signatures. Tests use `s3`, a bucket of their own on it."""
    if theirs := os.environ.get("TEST_S3_ENDPOINT"):
        yield S3Account(theirs, os.environ["TEST_S3_KEY"], os.environ["TEST_S3_SECRET"])
        return
    with rclone_server(tmp_path_factory.mktemp("rclone")) as account:
        yield account


@pytest.fixture
def s3(s3_account: S3Account) -> Generator[S3Bucket]:
    """An empty bucket on a server that refuses a wrong secret."""
    with fresh_bucket(s3_account) as bucket:
        yield bucket


@pytest.fixture(scope="session")
def conditional_s3_account(tmp_path_factory: pytest.TempPathFactory) -> Generator[S3Account]:
    """An S3 server that knows `If-None-Match`. Tests use `s3_conditional`."""
    with moto_server(tmp_path_factory.mktemp("moto")) as account:
        yield account


@pytest.fixture
def s3_conditional(conditional_s3_account: S3Account) -> Generator[S3Bucket]:
    """An empty bucket on a server that refuses a write with `If-None-Match: *` over an existing object."""
    with fresh_bucket(conditional_s3_account) as bucket:
        yield bucket


@pytest.fixture(scope="session")
def prefect_server() -> Generator[str]:
    """The address of a Prefect API over a new database; flows of this process use it by themselves."""
    from tests.servers.prefect import prefect_server as start_prefect

    with start_prefect() as url:
        yield url


def _database_of_this_worker(url: str) -> str:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    parts = make_url(url)
    number = int(parts.database or 0) + int(worker.removeprefix("gw") or 0)
    return parts.set(database=str(number)).render_as_string(hide_password=False)


def _demand_expiries(client: Redis) -> None:
    if found := keys_without_expiry(client):
        pytest.fail(f"keys that would stay in Redis for ever: {', '.join(found)}")
