"""Several real processes over the same servers: one computation a key, also when its process is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import pytest

from cache_blocks import TieredCache
from tests.faults.conftest import until

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

Spawn = Callable[..., "subprocess.Popen[bytes]"]


class Notes:
    """What the workers have written."""

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


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def environment(request: pytest.FixtureRequest, notes: Notes) -> dict[str, str]:
    environment = {**os.environ, "WORKER_NOTES": str(notes.path), "PYTHONPATH": os.getcwd()}  # noqa: PTH109
    environment["CACHE_BLOCKS_LEASE_SECONDS"] = "30"
    if request.param == "redis":
        environment["CACHE_BLOCKS_REDIS_URL"] = cast("str", request.getfixturevalue("redis_url"))
    if request.param == "postgres":
        environment["CACHE_BLOCKS_DATABASE_URL"] = cast("str", request.getfixturevalue("postgres_url"))
    # Several processes share two cores with the rest of the suite: slow is not down here.
    environment |= {f"CACHE_BLOCKS_{tier}_TIMEOUT_SECONDS": "30" for tier in ("REDIS", "DATABASE", "OBJECT_STORE")}
    return environment


@pytest.fixture
def spawn(environment: dict[str, str]) -> Generator[Spawn]:
    workers: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, **more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.faults.worker", *arguments]
        workers.append(subprocess.Popen(command, env=environment | more))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()
        worker.wait()


def test_sixteen_equal_calls_in_four_processes_compute_once(spawn: Spawn, notes: Notes) -> None:
    workers = [spawn("compute", "transcript:1", "4") for _ in range(4)]
    until(lambda: notes.count()["ready"] == 4)
    notes.tell("start")
    until(lambda: notes.count()["computing"])
    notes.tell("go-on")
    assert [worker.wait(60) for worker in workers] == [0] * 4
    assert notes.count()["computing"] == 1
    assert notes.count()["answer: the one result"] == 16


def test_when_the_holder_is_killed_the_next_takes_over(spawn: Spawn, notes: Notes) -> None:
    short = {"CACHE_BLOCKS_LEASE_SECONDS": "1"}
    notes.tell("start")
    holder = spawn("compute", "transcript:1", **short)
    until(lambda: notes.count()["computing"] == 1)
    others = [spawn("compute", "transcript:1", "2", CACHE_BLOCKS_LEASE_SECONDS="30") for _ in range(2)]
    until(lambda: notes.count()["ready"] == 3)
    holder.send_signal(signal.SIGKILL)
    holder.wait(30)
    until(lambda: notes.count()["computing"] == 2)
    notes.tell("go-on")
    assert [worker.wait(60) for worker in others] == [0, 0]
    assert notes.count()["computing"] == 2
    assert notes.count()["answer: the one result"] == 4


@pytest.mark.parametrize("environment", ["sqlite"], indirect=True)
def test_a_fork_writes_no_event_twice(spawn: Spawn, cache_home: Path) -> None:
    assert spawn("fork", "transcript:1").wait(60) == 0
    cache = TieredCache()
    assert cache.settings.home == cache_home
    assert len(cache.parts.events.of_key("transcript:1")) == 2
    cache.close()
