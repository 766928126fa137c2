"""A flow that is killed, cancelled or terminated leaves nothing half-written, no lease, and a report all the same.

`dying.py` is the flow; which runs get a report from maintenance, and which not, is in test_dead_runs.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelling

from cache_blocks import TieredCache
from cache_blocks.leases import LeaseState
from cache_blocks.prefect.dead_runs import report_dead_runs
from tests.faults.conftest import until
from tests.prefect.doomed import (
    PROMISE,
    SETTINGS,
    SETTLED,
    SILENT,
    Doomed,
    assert_maintenance_takes_what_nothing_refers_to,
    assert_nothing_half_written_is_visible,
    assert_reported_once,
    doomed,
)
from tests.prefect.dying import SOUND, dying
from tests.prefect.observed import artifacts_of
from tests.servers.process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Generator

ROOT = Path(__file__).parents[2]
PREFECT = str(Path(sys.executable).with_name("prefect"))
KILLED = pytest.mark.parametrize(
    "cache_of_the_dying, step",
    [("sql", "computing"), ("sql", "uploading"), ("sql", "publishing"), ("redis", "publishing")],
    indirect=["cache_of_the_dying"],
)
TERMINATED = pytest.mark.parametrize(
    "cache_of_the_dying, step",
    [("redis", "computing"), ("sql", "uploading"), ("sql", "publishing")],
    indirect=["cache_of_the_dying"],
)

Start = Callable[[str], "tuple[subprocess.Popen[bytes], Doomed]"]


# A script


@pytest.fixture
def cache_of_the_dying(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Generator[TieredCache]:
    """A cache with its leases in SQL or in Redis. They are short, since nobody renews those of the dead."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    if request.param == "redis":
        monkeypatch.setenv("CACHE_BLOCKS_REDIS_URL", cast("str", request.getfixturevalue("redis_url")))
    cache = TieredCache.from_settings()
    yield cache
    cache.close()


@pytest.fixture
def start(cache_of_the_dying: TieredCache, child_environment: dict[str, str], tmp_path: Path) -> Generator[Start]:
    """Starts the flow in a process of its own, and returns when it is at a step."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(step: str) -> tuple[subprocess.Popen[bytes], Doomed]:
        command = [sys.executable, "-m", "tests.prefect.dying", step, str(tmp_path)]
        environment = child_environment | {name: os.environ[name] for name in os.environ if "CACHE_BLOCKS" in name}
        processes.append(subprocess.Popen(command, env=environment, cwd=ROOT))
        return processes[-1], doomed(cache_of_the_dying, tmp_path / f"at {step}", processes[-1])

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.promise(f"{PROMISE}, when it is killed", tries="SIGKILL at 3 steps")
@KILLED
def test_a_flow_that_is_killed(start: Start, step: str, tmp_path: Path) -> None:
    process, run = start(step)
    assert run.lease is LeaseState.HELD
    process.kill()
    process.wait()

    until(lambda: run.lease is LeaseState.FREE)
    assert_nothing_half_written_is_visible(run)

    assert run.state is StateType.RUNNING, "nobody has told Prefect"
    assert report_dead_runs(run.cache, now=time.time() + SETTLED).reported == 0, "it may be computing"
    assert artifacts_of(run.id) == {}
    says = "Prefect has the flow run as Running"
    assert_reported_once(run, time.time() + SILENT, by_maintenance=True, says=says)
    blobs, unfinished = {"computing": (0, 0), "uploading": (0, 1), "publishing": (1, 0)}[step]
    assert_maintenance_takes_what_nothing_refers_to(run, blobs=blobs, unfinished=unfinished)

    dying("nowhere", str(tmp_path))
    assert run.kept(run.second) == SOUND + b"second"


@pytest.mark.promise(f"{PROMISE}, when it is terminated", tries="SIGTERM at 3 steps")
@TERMINATED
def test_a_flow_that_is_terminated_reports_by_itself(start: Start, step: str) -> None:
    process, run = start(step)
    process.terminate()
    assert process.wait(60) != 0

    assert run.lease is not LeaseState.HELD
    assert_nothing_half_written_is_visible(run)
    assert run.state is StateType.CRASHED
    assert_reported_once(run, time.time() + SETTLED, by_maintenance=False, says="The flow run crashed.")
    assert_maintenance_takes_what_nothing_refers_to(run, blobs=step == "publishing", unfinished=0)


# By a worker


@pytest.fixture
def run_by_worker(
    api: str, cache_of_the_worker: TieredCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Generator[Doomed]:
    """A run of the flow's deployment that computes its second file."""
    monkeypatch.setenv("PREFECT_API_URL", api)
    monkeypatch.setenv("PREFECT_LOGGING_TO_API_ENABLED", "false")
    monkeypatch.setenv("PREFECT_WORKER_QUERY_SECONDS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pool = f"pool-{uuid4().hex}"
    worker = ServerProcess([PREFECT, "worker", "start", "--pool", pool, "--type", "process"], tmp_path / "worker.log")
    worker.start("Worker .* started")
    try:
        deploy_and_run(pool, tmp_path)
        yield doomed(cache_of_the_worker, tmp_path / "at computing")
    finally:
        worker.stop()


def deploy_and_run(pool: str, folder: Path) -> None:
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(
            flow_id=client.create_flow(dying),
            name=pool,
            work_pool_name=pool,
            entrypoint="tests/prefect/dying.py:dying",
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
            parameters={"step": "computing", "folder": str(folder)},
        )
        client.create_flow_run_from_deployment(deployment)


@pytest.fixture
def cache_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> Generator[TieredCache]:
    """A cache with the embedded defaults."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    cache = TieredCache.from_settings()
    yield cache
    cache.close()


def cancel(run: Doomed) -> None:
    """Do as ``prefect flow-run cancel`` does."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, Cancelling())


def kill(run: Doomed) -> None:
    os.kill(run.pid, signal.SIGKILL)


@pytest.mark.promise(f"{PROMISE}, when a worker ran it", tries="cancelled, killed")
@pytest.mark.parametrize("end, state, says", [(cancel, "CANCELLED", "was cancelled"), (kill, "CRASHED", "crashed")])
def test_a_flow_of_a_worker(
    run_by_worker: Doomed, end: Callable[[Doomed], None], state: str, says: str, tmp_path: Path
) -> None:
    run = run_by_worker
    assert run.lease is LeaseState.HELD
    end(run)

    until(lambda: run.state is StateType[state])
    until(lambda: run.lease is not LeaseState.HELD)
    assert_nothing_half_written_is_visible(run)
    assert report_dead_runs(run.cache).reported == 0, "it has only just ended, and may yet report by itself"
    says = f"The flow run {says} without a report of its own; its last lookup was at "
    assert_reported_once(run, time.time() + SETTLED, by_maintenance=True, says=says)
    assert_maintenance_takes_what_nothing_refers_to(run, blobs=0, unfinished=0)

    dying("nowhere", str(tmp_path))
    assert run.kept(run.second) == SOUND + b"second"
