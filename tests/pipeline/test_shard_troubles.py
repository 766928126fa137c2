"""What a batch does when its shards cannot be started, do not begin, go away, or find something else than expected."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import fsspec
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.states import Completed

from cache_blocks.versions import ListedFile
from flows import sharding
from flows.batch_transcription import batch_transcription
from flows.shards import AGAIN, FOLDER, ShardError, Sharding, shards_of
from flows.sources import find_recordings, recordings_at
from flows.stages import Recipe
from flows.transcription_shard import transcription_shard
from tasks.audio import AudioOptions
from tasks.engines import EngineConfig
from tasks.enhancement import EnhancerConfig
from tasks.preferences import Preferences
from tests.pipeline.batches import ROOT, SAMPLES, files_under, run_batch
from tests.pipeline.conftest import FirstRun
from tests.servers.s3 import S3Bucket

InsteadOfWaiting = Callable[[Callable[[], None]], None]
NAMES = sorted(path.name for path in SAMPLES.glob("austen*"))


@pytest.fixture
def deployment() -> str:
    """A deployment of the shard's flow that no worker looks after; one of its runs may run at once."""
    name = f"nobody-{uuid4().hex}"
    with get_client(sync_client=True) as client:
        client.create_deployment(
            flow_id=client.create_flow(transcription_shard),
            name=name,
            entrypoint="flows/transcription_shard.py:transcription_shard",
            path=str(ROOT),
            concurrency_limit=1,
        )
    return f"transcription-shard/{name}"


def runs_of(deployment: str) -> dict[str, tuple[UUID, StateType | None]]:
    """The runs of a deployment by the end of their names, such as ``shard 1 of 3``, with their states."""
    with get_client(sync_client=True) as client:
        mine = client.read_deployment_by_name(deployment).id
        runs = [run for run in client.read_flow_runs() if run.deployment_id == mine]
    return {run.name.partition(", ")[2]: (run.id, run.state_type) for run in runs}


@pytest.fixture
def instead_of_waiting(monkeypatch: pytest.MonkeyPatch) -> InsteadOfWaiting:
    """Sets what happens whenever the batch waits for its shards."""

    def set_to(do: Callable[[], None]) -> None:
        class Clock:
            monotonic = staticmethod(sharding.time.monotonic)

            @staticmethod
            def sleep(seconds: float) -> None:
                assert seconds > 0
                do()

        monkeypatch.setattr(sharding, "time", Clock)

    return set_to


def test_without_a_deployment_the_error_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"no deployment transcription-shard/nowhere.*prefect deploy --all"):
        batch_transcription(
            str(SAMPLES), str(tmp_path), shards=Sharding(size=2, deployment="transcription-shard/nowhere")
        )
    with pytest.raises(ShardError, match="no deployment nonsense"):
        batch_transcription(str(SAMPLES), str(tmp_path), shards=Sharding(size=2, deployment="nonsense"))


def test_a_batch_below_the_threshold_needs_no_deployment(warm: FirstRun, tmp_path: Path) -> None:
    given = {"size": 5, "deployment": "transcription-shard/nowhere"}  # as the command line and the UI give it
    ran = run_batch(SAMPLES, tmp_path / "out", shards=given)
    assert (ran.state, ran.summary.shards) == ("Completed", [])
    assert files_under(tmp_path / "out") == files_under(warm.output)


def test_an_interrupted_batch_cancels_its_shards_and_leaves_nothing(
    deployment: str, instead_of_waiting: InsteadOfWaiting, tmp_path: Path
) -> None:
    def interrupt() -> None:
        assert files_under(tmp_path / "out"), "what the shard is told"
        raise KeyboardInterrupt

    instead_of_waiting(interrupt)
    with pytest.raises(KeyboardInterrupt):
        batch_transcription(str(SAMPLES), str(tmp_path / "out"), shards=Sharding(size=2, deployment=deployment))

    assert {name: state for name, (_, state) in runs_of(deployment).items()} == {"shard 1 of 3": StateType.CANCELLED}
    assert files_under(tmp_path / "out") == {}


def test_shards_start_one_after_another_where_the_limit_is_one_and_each_trouble_is_its_own(
    deployment: str,
    instead_of_waiting: InsteadOfWaiting,
    tmp_path: Path,
    warm: FirstRun,
) -> None:
    """The first is deleted, the second says that it is done and has left nothing, the third is done here."""
    seen: list[list[str]] = []

    def do() -> None:
        runs = runs_of(deployment)
        seen.append(sorted(runs))
        with get_client(sync_client=True) as client:
            match len(seen):
                case 1:
                    client.delete_flow_run(runs["shard 1 of 3"][0])
                case 2:
                    client.set_flow_run_state(runs["shard 2 of 3"][0], Completed(), force=True)
                case _:
                    run = client.read_flow_run(runs["shard 3 of 3"][0])
                    transcription_shard(**run.parameters)
                    client.set_flow_run_state(run.id, Completed(), force=True)

    instead_of_waiting(do)
    ran = run_batch(SAMPLES, tmp_path / "out", shards=Sharding(size=2, deployment=deployment))

    assert seen == [["shard 1 of 3"], ["shard 2 of 3"], ["shard 2 of 3", "shard 3 of 3"]]
    first, second, third = ran.summary.shards
    assert ran.state == "Failed"
    assert (first.lost, third.lost) == ("was deleted", "")
    assert second.lost.startswith("has completed without results")
    assert ran.message.startswith("2 of 5 recordings done, 3 failed (transcribe samples, shard 1 of 3 was deleted; ")
    assert sorted(ran.texts) == NAMES[3:]
    outputs = files_under(tmp_path / "out")
    assert {name: outputs[name] for name in outputs if name != "index.json"} == {
        name: content for name, content in files_under(warm.output).items() if name[:10] in ("austen-920", "austen-930")
    }
    rows = json.loads(outputs["index.json"])["recordings"]
    assert [row["status"] for row in rows] == ["failed"] * 3 + ["done"] * 2


def test_a_shard_that_prefect_refuses_is_lost_alone(
    deployment: str, instead_of_waiting: InsteadOfWaiting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    instead_of_waiting(lambda: pytest.fail("nothing to wait for"))

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(sharding, "run_deployment", refuse)
    ran = run_batch(SAMPLES, tmp_path / "out", shards=Sharding(size=2, deployment=deployment))
    assert [shard.lost for shard in ran.summary.shards] == ["could not be started: no route to host"] * 3
    assert ran.state == "Failed"
    assert set(files_under(tmp_path / "out")) == {"index.json"}


def test_when_no_shard_begins_the_log_says_what_may_be_the_matter(
    deployment: str,
    instead_of_waiting: InsteadOfWaiting,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(sharding, "STUCK_SECONDS", 0.0)
    looks = iter(range(3))

    def wait() -> None:
        if next(looks, None) is None:
            raise KeyboardInterrupt

    instead_of_waiting(wait)
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.WARNING):
        batch_transcription(str(SAMPLES), str(tmp_path / "out"), shards=Sharding(size=2, deployment=deployment))
    assert caplog.text.count("no shard has begun") == 1
    assert "with a free slot" in caplog.text


def test_a_shard_of_a_batch_that_has_ended_says_so(warm: FirstRun, tmp_path: Path) -> None:
    del warm
    recipe = Recipe(
        audio=AudioOptions(), engine=EngineConfig(), chunks=None, enhancer=EnhancerConfig(), preferences=Preferences()
    )
    with pytest.raises(ShardError, match=f"there is no {FOLDER}/gone/1 in .*{AGAIN}"):
        transcription_shard(f"{FOLDER}/gone/1", str(SAMPLES), str(tmp_path), recipe)


def test_a_shard_of_a_bucket_reads_what_the_batch_has_listed_and_nothing_newer(s3: S3Bucket) -> None:
    fs = fsspec.filesystem("s3", **s3.options)
    folder = s3.url.removeprefix("s3://") + "/calls"
    for name in NAMES:
        fs.put_file(str(SAMPLES / name), f"{folder}/{name}")
    source = f"{s3.url}/calls"
    listed = find_recordings(source, s3.options)
    (shard,) = shards_of(listed, 5)

    found = recordings_at(shard.recordings, source, s3.options)

    assert [(one.name, getattr(one.handle, "version", None)) for one in found] == [
        (one.name, getattr(one.handle, "version", None)) for one in listed
    ]
    assert all(one.version for one in shard.recordings)
    first = cast("ListedFile", found[0].handle)
    with first as stream:
        assert stream.read() == (SAMPLES / NAMES[0]).read_bytes()
    fs.pipe_file(f"{folder}/{NAMES[0]}", b"something else")
    with pytest.raises(OSError, match="written again since it was listed"), first:
        pass
