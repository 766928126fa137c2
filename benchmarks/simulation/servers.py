"""The servers of a simulation: started as the benchmarks do, each for the simulation alone."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson
import psutil
import sqlalchemy as sa
from pydantic import SecretStr
from redis import Redis

from cache_blocks import CacheSettings

if TYPE_CHECKING:
    from benchmarks.measuring import Bench

NAMESPACE: Final = "night"
PREFIX: Final = "cache"
"""Of the objects in their bucket, which is called as the namespace."""
LIMITS: Final = {"redis": 10.0, "database": 60.0, "object_store": 60.0}
"""Seconds that a call may take: a machine that is busy must not be taken for an outage. How slow it was is measured."""
POSTGRES: Final = {"max_wal_size": "8GB", "checkpoint_timeout": "30min"}
"""What differs from PostgreSQL's defaults, beside ``fsync``, which the tests' server has turned off."""


@dataclass(frozen=True)
class Servers:
    """Redis, PostgreSQL and an S3 server.

    Attributes:
        settings: How a cache reaches them.
        store_folder: Where the S3 server keeps its objects.
    """

    settings: CacheSettings
    store_folder: Path

    @property
    def redis(self) -> Redis:
        """A new client, to be closed by the caller."""
        return Redis.from_url(self.settings.redis_url.get_secret_value())

    @cached_property
    def engine(self) -> sa.Engine:
        """PostgreSQL past the cache, each statement a transaction."""
        url = self.settings.database_url.get_secret_value()
        return sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)

    def postgres(self, statement: str) -> list[dict[str, Any]]:
        """Return the rows of a statement."""
        with self.engine.connect() as connection:
            answer = connection.execute(sa.text(statement))
            return [dict(row) for row in answer.mappings()] if answer.returns_rows else []

    @cached_property
    def processes(self) -> dict[str, psutil.Process]:
        """The process of each server; PostgreSQL's is the one that makes the others."""
        with self.redis as client:
            redis = psutil.Process(int(client.info("server")["process_id"]))
        with self.engine.connect() as connection:
            backend = psutil.Process(connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one())
            postgres = backend.parent()
        assert postgres is not None, "every backend has one"
        ours = psutil.Process().children(recursive=True)
        s3 = next(process for process in ours if process.name() == "rclone")
        return {"redis": redis, "postgres": postgres, "s3": s3}


@contextmanager
def servers(bench: Bench) -> Generator[Servers]:
    """Start the servers; all that they keep goes with the bench's folder."""
    from tests.servers.s3 import rclone_server

    folder = bench.folder / "s3-server"
    folder.mkdir()
    with rclone_server(folder) as account:
        with closing(account.client()) as client:
            client.create_bucket(Bucket=NAMESPACE)
        settings = CacheSettings(
            home=bench.folder / "simulation",
            namespace=NAMESPACE,
            redis_url=SecretStr(bench.redis_url),
            database_url=SecretStr(bench.postgres_url),
            object_store_url=SecretStr(f"s3://{NAMESPACE}/{PREFIX}"),
            object_store_options=SecretStr(orjson.dumps(account.options).decode()),
            redis_timeout_seconds=LIMITS["redis"],
            database_timeout_seconds=LIMITS["database"],
            object_store_timeout_seconds=LIMITS["object_store"],
        )
        started = Servers(settings, folder / "data")
        for name, value in POSTGRES.items():
            started.postgres(f"ALTER SYSTEM SET {name} = '{value}'")
        started.postgres("SELECT pg_reload_conf()")
        yield started
        started.engine.dispose()
