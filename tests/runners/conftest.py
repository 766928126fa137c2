"""Clusters on this machine whose workers have homes of their own, and share nothing but the three servers."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prefect.settings import (
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)
from redis import Redis

from tests.pipeline.conftest import PATIENT, closing_cache, set_all
from tests.runners.speech import Notes
from tests.servers.postgres import fresh_database
from tests.servers.process import ServerProcess
from tests.servers.s3 import S3Account, fresh_bucket

if TYPE_CHECKING:
    from collections.abc import Generator

    from cache_blocks import TieredCache

ROOT = Path(__file__).parents[2]


@dataclass
class DaskCluster:
    """A scheduler, and workers of one thread each, as if each were a machine.

    Attributes:
        folder: Where logs and homes are.
        environment: What workers know: the shared settings.
        address: Of the scheduler.
        workers: By the name of their home.
    """

    folder: Path
    environment: dict[str, str]
    address: str = ""
    workers: dict[str, ServerProcess] = field(default_factory=dict[str, ServerProcess])
    _scheduler: ServerProcess | None = None

    def start(self, names: list[str]) -> None:
        """Start the scheduler and workers of these names."""
        command = ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
        self._scheduler = ServerProcess([sys.executable, "-m", *command], self.folder / "scheduler.log")
        self.address = self._scheduler.start(r"Scheduler at:\s+(tcp://\S+)")[1]
        for name in names:
            self.start_worker(name)

    def start_worker(self, name: str) -> None:
        """Start a worker; one that was there before finds its home as it was left."""
        own = {"CACHE_BLOCKS_HOME": str(self.home(name)), "PYTHONPATH": str(ROOT)}
        variables = [f"{variable}={value}" for variable, value in (self.environment | own).items()]
        command = ["distributed.cli.dask_worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        command += ["--host", "127.0.0.1", "--name", name, "--local-directory", str(self.folder / f"scratch-{name}")]
        worker = ServerProcess(["env", *variables, sys.executable, "-m", *command], self.folder / f"{name}.log")
        worker.start(r"Registered to:")
        self.workers[name] = worker

    def home(self, name: str) -> Path:
        """The home of a worker."""
        return self.folder / name

    def stop(self) -> None:
        """Stop all of it."""
        for server in (*self.workers.values(), self._scheduler):
            if server is not None:
                server.stop()


@pytest.fixture(scope="module", autouse=True)
def api(prefect_server: str) -> Generator[str]:
    """The address of the API; neither logs nor hearts take time."""
    quick: dict[Any, Any] = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_LOGGING_TO_API_ENABLED: False}
    with temporary_settings(quick):
        yield prefect_server


@pytest.fixture(scope="module")
def shared_settings(shared_redis_url: str, postgres_server: str, s3_account: S3Account) -> Generator[dict[str, str]]:
    """Settings of Redis, PostgreSQL and S3 that are empty at first."""
    with (
        Redis.from_url(shared_redis_url) as redis,
        fresh_bucket(s3_account) as bucket,
        fresh_database(postgres_server) as database,
    ):
        redis.flushdb()
        yield PATIENT | {
            "CACHE_BLOCKS_REDIS_URL": shared_redis_url,
            "CACHE_BLOCKS_DATABASE_URL": database,
            "CACHE_BLOCKS_OBJECT_STORE_URL": f"{bucket.url}/cache",
            "CACHE_BLOCKS_OBJECT_STORE_OPTIONS": json.dumps(bucket.options),
        }
        redis.flushdb()


@pytest.fixture(scope="module")
def worker_environment(api: str, shared_settings: dict[str, str]) -> dict[str, str]:
    """What a worker on another machine knows."""
    quiet = {"PREFECT_LOGGING_TO_API_ENABLED": "false", "PREFECT_API_URL": api}
    return shared_settings | quiet | {"PREFECT_HOME": os.environ["PREFECT_HOME"]}


@pytest.fixture
def cache(cache_home: Path, shared_settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Generator[TieredCache]:
    """The cache of the flow's own process, with a home that no worker knows."""
    del cache_home
    set_all(monkeypatch, shared_settings)
    with closing_cache() as cache:
        yield cache


@pytest.fixture
def embedded(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[TieredCache]:
    """A cache that needs no servers."""
    del cache_home
    set_all(monkeypatch, PATIENT)
    with closing_cache() as cache:
        yield cache


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    """What this test's computations write down."""
    return Notes(tmp_path)


@pytest.fixture(scope="module")
def dask_cluster(
    worker_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Generator[DaskCluster]:
    """Three workers with homes of their own."""
    pytest.importorskip("prefect_dask")
    cluster = DaskCluster(tmp_path_factory.mktemp("dask"), worker_environment)
    try:
        cluster.start(["one", "two", "three"])
        yield cluster
    finally:
        cluster.stop()
