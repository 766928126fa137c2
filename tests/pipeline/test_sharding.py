"""A large batch as sub-runs of a deployment, on two workers of one pool with homes of their own and shared servers.

The story: a batch of three shards of which two may run at once. The first is killed in the middle; the batch is run
again, and then once more in one process.
"""

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from redis import Redis

from cache_blocks import TieredCache
from cache_blocks import events as actions
from cache_blocks.events import CacheEvent
from flows.shards import AGAIN, Sharding
from flows.transcription_shard import transcription_shard
from tests.pipeline.batches import ROOT, SAMPLES, Ran, artifacts_of, files_under, run_batch
from tests.pipeline.conftest import PATIENT, closing_cache, set_all
from tests.servers.postgres import fresh_database
from tests.servers.process import ServerProcess
from tests.servers.s3 import S3Account, fresh_bucket

pytestmark = pytest.mark.timeout(1500)  # the first test waits for a dozen processes, each of which imports Prefect
PREFECT = str(Path(sys.executable).with_name("prefect"))
POOL = "sharding"
DEPLOYMENT = f"transcription-shard/{POOL}"
AT_ONCE = 2
SHARDS = [
    ["austen-870.mp3", "austen-880.ogg"],
    ["austen-880.wav", "austen-890.m4a"],
    ["austen-920.ogg", "austen-930.flac", "empty.wav"],
]
NAMES = [name for shard in SHARDS for name in shard]


@dataclass(frozen=True)
class Batch:
    """One run of the batch, with what it has left in Prefect and in the cache's log.

    Attributes:
        ran: What it did.
        shards: Its sub-runs, in the order of the batch.
        events: Events of each, in that order.
        artifacts: Data of its artifacts by key.
        output: Its outputs.
        kept: Keys that it has computed and stored; who is killed between the two has only computed it.
    """

    ran: Ran
    shards: list[FlowRun]
    events: list[list[CacheEvent]]
    artifacts: dict[str, str]
    output: dict[str, bytes]
    kept: set[str]

    @property
    def lookups(self) -> list[CacheEvent]:
        """Lookups of all shards."""
        return [event for events in self.events for event in events if event.action == actions.LOOKUP]

    @property
    def computed(self) -> list[str]:
        """Keys that were computed, as often as they were."""
        return computed_in(self.events)

    @property
    def totals(self) -> tuple[int, int]:
        """Lookups and hits that its report counts."""
        whole = json.loads(self.artifacts["cache-hits"])[-1]
        return whole["lookups"], whole["hits"]


@dataclass(frozen=True)
class Story:
    """What happened.

    Attributes:
        killed: The batch whose first shard was killed.
        again: The same, run again.
        whole: The same in one process.
        logs: What each worker has written.
        homes: The homes of the workers' caches.
    """

    killed: Batch
    again: Batch
    whole: Batch
    logs: list[str]
    homes: list[Path]


@pytest.fixture(scope="module")
def story(
    api: str,
    shared_redis_url: str,
    postgres_server: str,
    s3_account: S3Account,
    tmp_path_factory: pytest.TempPathFactory,
) -> Generator[Story]:
    """Run it once for all tests: workers take longest to start, and everything has to be transcribed."""
    folder = tmp_path_factory.mktemp("sharding")
    source = source_in(folder)
    with (
        pytest.MonkeyPatch.context() as patch,
        Redis.from_url(shared_redis_url) as redis,
        fresh_bucket(s3_account) as bucket,
        fresh_database(postgres_server) as database,
    ):
        redis.flushdb()
        shared = {
            "PREFECT_API_URL": api,
            "PREFECT_LOGGING_TO_API_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "CACHE_BLOCKS_REDIS_URL": shared_redis_url,
            "CACHE_BLOCKS_DATABASE_URL": database,
            "CACHE_BLOCKS_OBJECT_STORE_URL": f"{bucket.url}/cache",
            "CACHE_BLOCKS_OBJECT_STORE_OPTIONS": json.dumps(bucket.options),
            "CACHE_BLOCKS_HOME": str(folder / "home"),
        }
        set_all(patch, PATIENT | shared)
        with closing_cache() as cache, worker(folder / "one") as one, worker(folder / "two") as two:
            deployment = deploy()
            with ThreadPoolExecutor(1) as pool:
                over = threading.Event()
                killing = pool.submit(kill_shard, cache, deployment, over)
                try:
                    killed = batch(source, folder / "output", Sharding(size=3, deployment=DEPLOYMENT))
                finally:
                    over.set()
                killing.result()
            again = batch(source, folder / "output", Sharding(size=3, deployment=DEPLOYMENT))
            whole = batch(source, folder / "whole", None)
            yield Story(
                killed,
                again,
                whole,
                [one.read_text(), two.read_text()],
                [folder / "one" / "cache", folder / "two" / "cache"],
            )
        redis.flushdb()


def source_in(folder: Path) -> Path:
    """The samples, one of them under a second name whose outputs would clash, and a bad one."""
    source = folder / "calls"
    shutil.copytree(SAMPLES, source, ignore=shutil.ignore_patterns("*.md", "*.tsv"))
    shutil.copy(SAMPLES / "austen-920.ogg", source / "austen-880.ogg")
    (source / "empty.wav").touch()
    return source


@contextmanager
def worker(folder: Path) -> Generator[Path]:
    """A worker that runs one flow at a time; gives its log."""
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        set_all(patch, {"PREFECT_HOME": str(folder / "prefect"), "CACHE_BLOCKS_HOME": str(folder / "cache")})
        command = [PREFECT, "worker", "start", "--pool", POOL, "--type", "process", "--limit", "1"]
        process = ServerProcess(command, folder / "worker.log")
        process.start("Worker .* started")
    try:
        yield process.log
    finally:
        process.stop()


def deploy(name: str = POOL) -> UUID:
    """Deploy the shard's flow, so that two of its runs may run at once; return the deployment's id."""
    with get_client(sync_client=True) as client:
        return client.create_deployment(
            flow_id=client.create_flow(transcription_shard),
            name=name,
            work_pool_name=POOL,
            entrypoint="flows/transcription_shard.py:transcription_shard",
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
            concurrency_limit=AT_ONCE,
        )


def kill_shard(cache: TieredCache, deployment: UUID, over: threading.Event) -> None:
    """Kill the process of the first shard as soon as it has stored something."""
    mine = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))  # other tests have shards of such names

    def process_if_it_has_stored() -> str | None:
        with get_client(sync_client=True) as client:
            runs = client.read_flow_runs(deployment_filter=mine)
        for run in runs:
            if run.name.endswith("shard 1 of 3"):
                computed = computed_in([cache.parts.events.of_run(str(run.id))])
                return run.infrastructure_pid if any(cache.lookup(key, tags=()).is_hit for key in computed) else None
        return None

    while (process := process_if_it_has_stored()) is None:
        assert not over.wait(0.1), "the batch has ended before"
    os.kill(int(process.rpartition(":")[2]), signal.SIGKILL)


def batch(source: Path, output: Path, shards: Sharding | None) -> Batch:
    """Run the batch here."""
    ran = run_batch(source, output, shards=shards)
    runs = sub_runs_of(ran.flow_run_id)
    cache = TieredCache.from_settings()
    events = [cache.parts.events.of_run(str(run.id)) for run in runs]
    kept = {key for key in computed_in(events) if cache.lookup(key, tags=()).is_hit}
    artifacts = {key: str(artifact.data) for key, artifact in artifacts_of(ran.flow_run_id).items()}
    return Batch(ran, runs, events, artifacts, files_under(output), kept)


def computed_in(runs: list[list[CacheEvent]]) -> list[str]:
    """Keys that were computed in runs with these events."""
    return [event.key for events in runs for event in events if event.action == actions.COMPUTED]


def sub_runs_of(flow_run_id: str) -> list[FlowRun]:
    """The sub-runs of a run, by name."""
    wanted = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[UUID(flow_run_id)]))
    with get_client(sync_client=True) as client:
        return sorted(client.read_flow_runs(flow_run_filter=wanted), key=lambda run: run.name)


@pytest.mark.promise("A shard of a batch that is killed costs its own recordings only", tries="SIGKILL in the middle")
def test_a_killed_shard_is_named_with_the_way_out_and_the_others_are_done(story: Story) -> None:
    ran = story.killed.ran
    lost, *others = ran.summary.shards
    assert ran.state == "Failed"
    assert "calls, shard 1 of 3 crashed" in ran.message
    assert AGAIN in ran.message
    assert (lost.recordings, others[0].lost, others[1].lost) == (2, "", "")
    assert [run.state_name for run in story.killed.shards] == ["Crashed", "Completed", "Completed"]
    assert [result.name for result in ran.summary.results] == NAMES
    assert sorted(ran.texts) == sorted(NAMES[2:-1])
    assert {name: ran.reasons[name] for name in SHARDS[0]} == dict.fromkeys(SHARDS[0], lost.reason)
    assert ran.reasons["empty.wav"].startswith("empty: ")
    index = json.loads(story.killed.output["index.json"])["recordings"]
    assert [(row["name"], row["status"]) for row in index[:3]] == [
        (NAMES[0], "failed"),
        (NAMES[1], "failed"),
        (NAMES[2], "done"),
    ]


@pytest.mark.promise("A batch that is run again computes nothing that any of its shards has computed", tries="SIGKILL")
def test_running_the_batch_again_resumes_it_and_everything_done_is_a_hit(story: Story) -> None:
    done = story.killed.kept
    assert done & set(computed_in(story.killed.events[:1])), "the killed one has stored something"
    found = {event.key: event.outcome for event in story.again.lookups if event.key in done}
    assert found == dict.fromkeys(done, "hit")
    assert not done & set(story.again.computed)
    assert story.again.computed, "what the killed shard had not done"
    assert story.again.ran.state == "Completed"
    assert list(story.again.ran.reasons) == ["empty.wav"]


def test_a_key_is_computed_once_whichever_shards_want_it(story: Story) -> None:
    for computed in (computed_in(story.killed.events[1:]), story.again.computed):
        assert len(computed) == len(set(computed))
    assert not story.killed.kept & set(story.again.computed)
    everything = story.killed.kept | set(story.again.computed)
    assert len(everything) == 15, "five recordings, one under two names, through three stages"


def test_outputs_and_results_are_those_of_a_batch_in_one_process(story: Story) -> None:
    assert story.again.output == story.whole.output
    assert len(story.again.output) == 6 * 4 + 1
    assert {"austen-880.ogg.txt", "austen-880.wav.txt"} <= set(story.again.output), "names of the whole batch"
    sharded, whole = story.again.ran.summary, story.whole.ran.summary
    assert [one.model_dump(exclude={"written"}) for one in sharded.results] == [
        one.model_dump(exclude={"written"}) for one in whole.results
    ]
    assert (whole.shards, story.whole.shards) == ([], [])


def test_shards_spread_over_both_workers_and_no_more_than_the_limit_run_at_once(story: Story) -> None:
    for log, home in zip(story.logs, story.homes, strict=True):
        assert [run for run in story.killed.shards + story.again.shards if str(run.id) in log]
        assert any(home.rglob("*")), "a home of its own"
    for runs in (story.killed.shards, story.again.shards):
        for run in runs:
            assert run.created is not None
            before = [other for other in runs if other.created is not None and other.created < run.created]
            open_then = [other for other in before if other.end_time is None or other.end_time > run.created]
            assert len(open_then) < AT_ONCE


def test_the_report_of_the_batch_sums_those_of_its_shards(story: Story) -> None:
    for one in (story.killed, story.again):
        hits = sum(event.outcome == "hit" for event in one.lookups)
        assert one.totals == (len(one.lookups), hits)
        for run in one.shards:
            assert f"/runs/flow-run/{run.id}" in one.artifacts["cache-report"]
    assert story.again.totals[0] == 6 * 3 + 1, "the bad one comes no farther than the first stage"
    assert "1 sub-run did not complete" in story.killed.artifacts["cache-report"]
    assert "did not complete" not in story.again.artifacts["cache-report"]
    last = json.loads(story.whole.artifacts["cache-hits"])[-1]
    assert (last["lookups"], last["hits"]) == (19, 18), "the shards' work, found by one process"
    assert f"/runs/flow-run/{story.again.ran.flow_run_id}" in story.whole.artifacts["cache-report"], "compared with it"
