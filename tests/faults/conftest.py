"""What the tests of faults share: caches over real servers, and processes that use the same ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import pytest

from cache_blocks import CacheSettings, TieredCache

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

Spawn = Callable[..., "subprocess.Popen[bytes]"]
MakeCache = Callable[..., TieredCache]


@pytest.fixture
def make_cache() -> Generator[MakeCache]:
    """Makes caches that look again at a failed tier after a moment; closes them in the end."""
    caches: list[TieredCache] = []

    def make(**settings: Any) -> TieredCache:
        given: dict[str, Any] = {"breaker_seconds": 0.1, **settings}
        caches.append(TieredCache(CacheSettings(**given)))
        return caches[-1]

    yield make
    for cache in caches:
        cache.close()


class Notes:
    """What the workers have written, and what they are told."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notes"
        self.path.touch()

    def count(self) -> Counter[str]:
        return Counter(self.path.read_text().splitlines())

    def tell(self, what: str) -> None:
        self.path.with_name(what).touch()


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path)


@pytest.fixture(params=["sqlite", "redis", "postgres", "pgbouncer"])
def environment(request: pytest.FixtureRequest, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The settings of workers, in this process as well; leases are in Redis, or in one of two databases."""
    environment = {"WORKER_NOTES": str(notes.path), "PYTHONPATH": os.getcwd()}  # noqa: PTH109
    if request.param == "redis":
        environment["CACHE_BLOCKS_REDIS_URL"] = cast("str", request.getfixturevalue("redis_url"))
    if request.param in ("postgres", "pgbouncer"):
        environment["CACHE_BLOCKS_DATABASE_URL"] = cast("str", request.getfixturevalue(f"{request.param}_url"))
    # Several processes share two cores with the rest of the suite: slow is not down here.
    environment |= {f"CACHE_BLOCKS_{tier}_TIMEOUT_SECONDS": "30" for tier in ("REDIS", "DATABASE", "OBJECT_STORE")}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return {**os.environ}


@pytest.fixture
def spawn(environment: dict[str, str]) -> Generator[Spawn]:
    """Starts `worker.py` in processes of their own, and ends those that still run."""
    workers: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, **more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.faults.worker", *arguments]
        workers.append(subprocess.Popen(command, env=environment | more))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()
        worker.wait()


def until(condition: Callable[[], object]) -> None:
    """Wait for what another process or clock brings about; fail when it does not."""
    for _ in _patience():
        if condition():
            return
    pytest.fail("it never happened")


def _patience() -> Iterator[None]:
    deadline = time.monotonic() + 90  # processes that start on a busy machine
    while time.monotonic() < deadline:
        yield
        time.sleep(0.02)
