"""A Dask cluster computes what is missing; its workers have homes of their own, and share only the three servers."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.pipeline.batches import SAMPLES, files_under, run_batch
from tests.prefect.observed import artifacts_of, totals_of
from tests.runners.speech import batch, meeting, surviving

if TYPE_CHECKING:
    from pathlib import Path

    from cache_blocks import TieredCache
    from tests.runners.conftest import DaskCluster
    from tests.runners.speech import Notes

pytestmark = pytest.mark.timeout(900)  # a scheduler and three workers, each of which imports Prefect

NOBODY = "tcp://127.0.0.1:1"
"""Where no scheduler is."""


def record(folder: Path, *contents: str, copies: int = 1) -> list[Path]:
    """Recordings of these contents, each under so many names, no equal ones in a row."""
    folder.mkdir()
    paths: list[Path] = []
    for copy in range(copies):
        for content in contents:
            path = folder / f"{content[:8].replace(' ', '-')}-{copy}.txt"
            path.write_text(content)
            paths.append(path)
    return paths


def expected(contents: tuple[str, ...], copies: int = 1) -> list[dict[str, int]]:
    each = [{letter: 100 * count for letter, count in sorted(Counter(content).items())} for content in contents]
    return each * copies


def copies_in(home: Path) -> list[Path]:
    return [path for path in (home / "files").glob("*/??/*/*") if path.is_file()]


@pytest.mark.promise("One computation per key over a Dask cluster", tries="3 workers, 12 recordings of 3 contents")
def test_each_key_is_computed_once_over_the_cluster(
    dask_cluster: DaskCluster, cache: TieredCache, notes: Notes, tmp_path: Path
) -> None:
    contents = ("each of these", "is computed", "once in all")
    recordings = record(tmp_path / "recordings", *contents, copies=4)

    run_id, counted = batch(recordings, str(notes.folder), dask_cluster.address)

    assert counted == expected(contents, copies=4)
    assert len(notes.of("prepare")) == len(notes.of("count")) == 3
    assert totals_of(run_id)[0] == 24, "every lookup of every worker is in the one report"
    assert {key: len(data) for key, data in artifacts_of(run_id).items()} == {"cache-hits": 1, "cache-report": 1}
    assert copies_in(cache.settings.home) == [], "files are fetched where they are needed, which is not here"


def test_a_file_travels_as_a_handle_to_the_worker_that_needs_it(
    dask_cluster: DaskCluster, cache: TieredCache, notes: Notes, tmp_path: Path
) -> None:
    contents = tuple(f"{number} goes to whoever has time" for number in range(6))
    batch(record(tmp_path / "recordings", *contents), str(notes.folder), dask_cluster.address)

    for digest, _, home in notes.of("count"):
        found = [path for path in copies_in(dask_cluster.home(home)) if path.parent.name.startswith(digest)]
        assert len(found) == 1
    assert copies_in(cache.settings.home) == []


def test_hits_do_not_travel(dask_cluster: DaskCluster, cache: TieredCache, notes: Notes, tmp_path: Path) -> None:
    contents = ("known to all", "known as well")
    recordings = record(tmp_path / "recordings", *contents)
    batch(recordings, str(notes.folder), dask_cluster.address)

    run_id, counted = batch(recordings, str(notes.folder), NOBODY)
    assert counted == expected(contents)
    assert totals_of(run_id) == (4, 4, 0)

    more = [*recordings, *record(tmp_path / "more", "never heard of")]
    run_id, counted = batch(more, str(notes.folder), dask_cluster.address)
    assert counted == expected((*contents, "never heard of"))
    assert len(notes.of("prepare")) == len(notes.of("count")) == 3
    lookups = [event for event in cache.parts.events.of_run(run_id) if event.action == "lookup"]
    travelled = [event for event in lookups if event.origin.task_run_id]
    assert (len(lookups), len(travelled)) == (6, 2), "a task run for each that was missing, and no more"


def test_the_events_of_all_workers_are_in_the_one_report(
    dask_cluster: DaskCluster, cache: TieredCache, notes: Notes
) -> None:
    run_id, met = meeting(str(notes.folder), dask_cluster.address, 3)

    assert met == [0, 1, 4]
    assert {home for _, _, home in notes.of("meet")} == {"one", "two", "three"}, "each at the same time as the others"
    assert totals_of(run_id) == (3, 0, 0)
    assert cache.metrics.total == 0, "the flow's process has looked nothing up but in bulk"


@pytest.mark.promise("A Dask worker that is killed costs a retry and nothing else", tries="SIGKILL while computing")
def test_a_killed_worker_costs_a_retry_and_nothing_else(
    dask_cluster: DaskCluster, cache: TieredCache, notes: Notes
) -> None:
    del cache

    def kill_whoever_computes_zero() -> None:
        notes.wait("survive", 6)  # all of them have begun: five are done, and zero is on its way
        (name,) = {home for what, _, home in notes.of("survive") if what == "0"}
        dask_cluster.workers[name].kill()
        dask_cluster.start_worker(name)

    killer = threading.Thread(target=kill_whoever_computes_zero)
    killer.start()
    try:
        run_id, survived = surviving(str(notes.folder), dask_cluster.address, items=6)
    finally:
        killer.join()

    assert survived == [number**2 for number in range(6)]
    begun = Counter(what for what, *_ in notes.of("survive"))
    assert begun == {"0": 2} | {str(number): 1 for number in range(1, 6)}
    assert len({process for what, process, _ in notes.of("survive") if what == "0"}) == 2
    assert set(artifacts_of(run_id)) == {"cache-hits", "cache-report"}


def test_the_pipeline_gives_the_same_outputs_as_on_threads(
    dask_cluster: DaskCluster, cache: TieredCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("austen-870.mp3", "austen-880.wav"):
        shutil.copy(SAMPLES / name, source)
    shutil.copy(SAMPLES / "austen-870.mp3", source / "the-same-again.mp3")

    remote = run_batch(source, tmp_path / "dask", runner=dask_cluster.address)
    cache.close()
    monkeypatch.setenv("CACHE_BLOCKS_NAMESPACE", "threads")
    here = run_batch(source, tmp_path / "threads", runner="thread")

    assert remote.state == here.state == "Completed"
    assert files_under(tmp_path / "dask") == files_under(tmp_path / "threads")
    assert len(files_under(tmp_path / "dask")) == 13
    assert remote.misses.keys() == here.misses.keys()
