"""What a run asks of the object store is counted as the server sees it, wherever its tasks run; its report tells it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from prefect import flow
from prefect.runtime import flow_run
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

from cache_blocks import AUDIO_PREPROCESSING, SEARCH_RESULTS, CachedFile, TieredCache, cached_map, cached_task
from cache_blocks.maintenance.exposition import exposition
from cache_blocks.metrics import CacheMetrics
from tests.prefect.observed import artifacts_of
from tests.servers.s3_faults import S3Faults, s3_faults

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.servers.s3 import S3Bucket

SIZE = 100_000


@cached_task(kind=AUDIO_PREPROCESSING, cache_ignore=("folder",))
def produced(number: int, folder: Path) -> Path:
    path = folder / f"{number}-{os.getpid()}.wav"
    path.write_bytes(number.to_bytes(4, "big") * (SIZE // 4))
    return path


@cached_task(kind=SEARCH_RESULTS)
def searched(text: str) -> list[str]:
    return [text]


@pytest.fixture
def server(s3: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> Generator[S3Faults]:
    with s3_faults(s3) as seen:
        monkeypatch.setenv("CACHE_BLOCKS_OBJECT_STORE_URL", f"{seen.bucket.url}/cache")
        monkeypatch.setenv("CACHE_BLOCKS_OBJECT_STORE_OPTIONS", orjson.dumps(seen.bucket.options).decode())
        monkeypatch.setenv("CACHE_BLOCKS_OBJECT_STORE_TIMEOUT_SECONDS", "30")
        searched("anything")  # a new database asks for the mirror of the generations, once
        seen.seen.clear()
        yield seen


def billed_as(method: str, path: str) -> str:
    """The class of a request: Amazon takes as much for a listing as for a PUT."""
    if method in ("PUT", "POST") or "list-type" in path:
        return "put"
    return "delete" if method == "DELETE" else "get"


@pytest.fixture(params=["threads", "processes"])
def runner(request: pytest.FixtureRequest) -> Any:
    runners: dict[str, Any] = {"threads": ThreadPoolTaskRunner, "processes": ProcessPoolTaskRunner}
    return runners[request.param](max_workers=2)


def test_requests_and_bytes_of_a_run_are_those_that_the_server_has_seen(
    server: S3Faults, runner: Any, tmp_path: Path
) -> None:
    @flow(task_runner=runner)
    def work() -> str:
        cold = produced.map([1, 2, 3, 4], tmp_path).result()
        hot = cached_map(produced, [1, 2, 3, 4], folder=tmp_path).result()
        assert cold == hot
        return str(flow_run.id)

    run_id = work()
    seen = list(server.seen)
    cache = TieredCache.from_settings()
    metrics = CacheMetrics.from_events(cache.parts.events.of_run(run_id))
    by_class = Counter(billed_as(*request) for request in seen)
    assert metrics.requests == by_class
    assert metrics.transfer["up"] == pytest.approx(4 * SIZE, rel=0.05)

    (report,) = artifacts_of(run_id)["cache-report"]
    assert f"Object store: {len(seen)} requests (put {by_class['put']}, get {by_class['get']}" in report
    assert "for 1,000 lookups" in report
    whole = CacheMetrics.from_events(cache.parts.events.since(0))
    assert cache.stats().as_dict()["metrics"]["requests"] == dict(whole.requests)
    told = 'cache_blocks_requests_total{namespace="default",outcome="put",tier="object_store"}'
    assert f"{told} {float(whole.requests['put'])}" in exposition(cache)
    cache.close()


def test_a_file_that_is_fetched_later_counts_for_the_run_that_fetches_it(server: S3Faults, tmp_path: Path) -> None:
    cache = TieredCache.from_settings()
    cache.put("audio-preprocessing:1", produced.fn(1, tmp_path), kind=AUDIO_PREPROCESSING, annotation=Path)
    file: CachedFile = cache.get("audio-preprocessing:1", annotation=Path)
    cache.blobs.delete([])
    before = cache.metrics.transfer["down"]
    (tmp_path / f"1-{os.getpid()}.wav").unlink()
    assert file.path.stat().st_size == SIZE
    assert cache.metrics.transfer["down"] - before == pytest.approx(SIZE, rel=0.05)
    assert server.count("GET", file.digest) == 1, "one request, and no other before it"
    cache.close()


def test_what_does_not_touch_the_object_store_is_told_nothing_of_it(server: S3Faults) -> None:
    @flow
    def work() -> str:
        searched("a")
        searched("a")
        return str(flow_run.id)

    run_id = work()
    assert not server.seen
    (report,) = artifacts_of(run_id)["cache-report"]
    assert "Object store:" not in report
