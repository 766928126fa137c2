"""The deployments, by the README's steps: a work pool, `prefect deploy`, a worker, and a run on demand."""

import json
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule

from flows.shards import Sharding
from tests.pipeline.batches import AUDIO, BETTER, ROOT, TEXT, artifacts_of, files_under, lookups_of
from tests.pipeline.conftest import PATIENT, FirstRun, set_all
from tests.servers.process import ServerProcess

PREFECT = str(Path(sys.executable).with_name("prefect"))
NIGHTLY, ON_DEMAND, HOURLY = "batch-transcription/nightly", "batch-transcription/on-demand", "cache-maintenance/hourly"
DEPLOY = ["deploy", "--all", "--prefect-file", "deployments/prefect.yaml"]
ANY_WORKER = Sharding().deployment
NAMES = (NIGHTLY, ON_DEMAND, HOURLY, ANY_WORKER)
RUN_SECONDS = "240"


@dataclass(frozen=True)
class Worker:
    """A worker that waits for runs.

    Attributes:
        log: What it and its runs write.
        deployments: What was deployed, by name; schedules are paused, lest a run of theirs begins during the tests.
    """

    log: Path
    deployments: dict[str, DeploymentResponse]


def prefect(*arguments: str) -> str:
    """Run Prefect's command line from the repository's root and return what it says."""
    done = subprocess.run([PREFECT, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"prefect {' '.join(arguments)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def worker(api: str, first_run: FirstRun, tmp_path_factory: pytest.TempPathFactory) -> Generator[Worker]:
    """Everything deployed, and a worker whose cache is the one that the first run has filled."""
    log = tmp_path_factory.mktemp("worker") / "worker.log"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        settings = {
            "PREFECT_API_URL": api,
            "PREFECT_LOGGING_TO_API_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "CACHE_BLOCKS_HOME": str(first_run.home),
        }
        set_all(patch, PATIENT | settings)
        prefect("work-pool", "create", "speech", "--type", "process")
        prefect("--no-prompt", *DEPLOY)
        deployments = {name: deployment(name) for name in NAMES}
        prefect("deployment", "schedule", "pause", "--all")
        process = ServerProcess([PREFECT, "worker", "start", "--pool", "speech"], log)
        process.start("Worker .* started")
        yield Worker(log, deployments)
        process.stop()


@pytest.fixture(autouse=True)
def the_workers_cache(worker: Worker, first_run: FirstRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look into the worker's cache from here."""
    assert worker.log.exists()
    monkeypatch.setenv("CACHE_BLOCKS_HOME", str(first_run.home))


def deployment(name: str) -> DeploymentResponse:
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(name)


def only_run_of(name: str, worker: Worker) -> FlowRun:
    """The one run of a deployment that has ended."""
    mine = DeploymentFilter(id=DeploymentFilterId(any_=[worker.deployments[name].id]))
    with get_client(sync_client=True) as client:
        ended = [run for run in client.read_flow_runs(deployment_filter=mine) if run.state and run.state.is_final()]
    assert len(ended) == 1, worker.log.read_text()[-3000:]
    return ended[0]


def test_runs_find_what_a_script_has_computed_and_maintenance_publishes_what_it_freed(
    worker: Worker, first_run: FirstRun, tmp_path: Path
) -> None:
    """The worker imports the flow from a file, by another name than a script does; the keys are the same.

    One test for both deployments, since a worker takes longest to start.
    """
    output = tmp_path / "transcripts"
    watch = ("--watch", "--watch-timeout", RUN_SECONDS)
    on_demand = ("run", ON_DEMAND, "--param", "source=samples", "--param", f"output={output}", *watch)

    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(prefect, "deployment", *words) for words in (on_demand, ("run", HOURLY, *watch))]
        for one in runs:
            one.result()

    run = only_run_of(ON_DEMAND, worker)
    assert run.state is not None
    assert (run.state_name, run.name) == ("Completed", "transcribe samples")
    assert str(run.state.message).startswith("5 of 5 recordings done; 21 files written")
    assert files_under(output) == files_under(first_run.output)
    lookups = lookups_of(str(run.id))
    assert [lookup.outcome for lookup in lookups] == ["hit"] * 15
    assert {lookup.kind for lookup in lookups} == {AUDIO, TEXT, BETTER}
    artifacts = artifacts_of(str(run.id))
    assert [row["hits"] for row in json.loads(str(artifacts["cache-hits"].data)) if row["kind"] == "all"] == [15]
    assert "100 %" in str(artifacts["cache-report"].data)

    run = only_run_of(HOURLY, worker)
    assert run.state_name == "Completed"
    rows = {row["what"]: row["count"] for row in json.loads(str(artifacts_of(str(run.id))["cache-maintenance"].data))}
    assert (rows["expired"], rows["blobs"], rows["errors"]) == ("0", "0", "none")


def test_the_schedules_and_limits_are_those_of_the_file(worker: Worker) -> None:
    nightly, on_demand, hourly, any_worker = (worker.deployments[name] for name in NAMES)
    (night,) = nightly.schedules
    (hour,) = hourly.schedules
    assert isinstance(night.schedule, CronSchedule)
    assert (night.active, night.schedule.cron, night.schedule.timezone) == (True, "30 2 * * *", "UTC")
    assert hour.active
    assert on_demand.schedules == []
    large = Sharding().model_dump(exclude={"deployment"})
    assert nightly.parameters == {"source": "samples", "output": "transcripts", "concurrency": 2, "shards": large}
    assert on_demand.parameters == {"concurrency": 2, "shards": large}
    assert set(nightly.tags) == {"speech", "nightly"}
    for one, limit in ((nightly, 1), (on_demand, 4), (hourly, 1), (any_worker, 8)):
        assert one.work_pool_name == "speech"
        assert one.global_concurrency_limit is not None
        assert one.global_concurrency_limit.limit == limit
