"""Which flow runs get a report from maintenance: those that will not publish their own, each once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State, StateType
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings

from cache_blocks import TRANSCRIPT, TieredCache, cached_task
from cache_blocks.events import LOOKUP, CacheEvent, Origin
from cache_blocks.prefect import dead_runs
from cache_blocks.prefect.dead_runs import LOOK_BACK_SECONDS, SETTLE_SECONDS, SILENT_SECONDS, report_dead_runs
from cache_blocks.prefect.report import publish
from flows.cache_maintenance import cache_maintenance
from tests.prefect.observed import artifacts_of, run_python, totals_of

ENDED = (StateType.CANCELLED, StateType.CRASHED, StateType.FAILED, StateType.COMPLETED)
UNFINISHED = (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)
WAITING = (StateType.SCHEDULED, StateType.PAUSED)


@flow
def nothing() -> None:
    """What the runs are runs of."""


@cached_task(kind=TRANSCRIPT)
def length(text: str) -> int:
    return len(text)


def look_up(cache: TieredCache, run: UUID | str, at: float) -> None:
    event = CacheEvent(
        LOOKUP, "transcript", "transcript:1", "miss", origin=Origin("a.mp3", flow_run_id=str(run)), at=at
    )
    cache.parts.events.record([event])


def run_in(state: StateType, cache: TieredCache, *, last_lookup: float | None = None) -> UUID:
    """A flow run that has looked something up, is in this state, and whose process is gone."""
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(nothing, state=State(type=state))
    look_up(cache, run.id, time.time() if last_lookup is None else last_lookup)
    return run.id


def reported(cache: TieredCache, seconds_later: float) -> int:
    done = report_dead_runs(cache, now=time.time() + seconds_later)
    assert done.errors == []
    return done.reported


@pytest.mark.parametrize("state", ENDED)
def test_an_ended_run_gets_one_report_once_it_has_had_time_for_its_own(cache: TieredCache, state: StateType) -> None:
    run = run_in(state, cache)
    assert reported(cache, SETTLE_SECONDS / 2) == 0
    assert artifacts_of(run) == {}
    assert reported(cache, SETTLE_SECONDS + 60) == 1
    assert reported(cache, SETTLE_SECONDS + 60) == 0
    assert totals_of(run) == (1, 0, 0)
    (report,) = artifacts_of(run)["cache-report"]
    words = {"CANCELLED": "was cancelled", "CRASHED": "crashed", "FAILED": "failed", "COMPLETED": "completed"}
    assert f"The flow run {words[state.value]} without a report of its own" in report


@pytest.mark.parametrize("state", UNFINISHED)
def test_a_run_without_an_end_gets_a_report_so_far_after_a_day_of_silence(cache: TieredCache, state: StateType) -> None:
    run = run_in(state, cache)
    assert reported(cache, SILENT_SECONDS - 60) == 0
    assert reported(cache, SILENT_SECONDS + 60) == 1
    assert reported(cache, SILENT_SECONDS + 60) == 0
    (report,) = artifacts_of(run)["cache-report"]
    assert "it has died, or waits" in report


@pytest.mark.parametrize("state", WAITING)
def test_a_run_that_is_to_go_on_gets_none(cache: TieredCache, state: StateType) -> None:
    run = run_in(state, cache)
    assert reported(cache, SILENT_SECONDS + 60) == 0
    assert artifacts_of(run) == {}


def test_a_run_that_was_only_silent_reports_by_itself_in_the_end(cache: TieredCache) -> None:
    @flow
    def work() -> str:
        length("abc")
        assert reported(cache, SILENT_SECONDS + 60) == 1
        length("abc")
        return str(flow_run.id)

    run = work()
    assert reported(cache, SETTLE_SECONDS + 60) == 0
    tables = artifacts_of(run)["cache-hits"]
    assert sorted(row["lookups"] for table in tables for row in table) == [1, 2]


def test_a_run_that_looks_up_again_after_its_report_gets_a_newer_one(cache: TieredCache) -> None:
    run = run_in(StateType.RUNNING, cache)
    assert reported(cache, SILENT_SECONDS + 60) == 1
    look_up(cache, run, time.time() + SILENT_SECONDS)
    assert reported(cache, SILENT_SECONDS + 120) == 0
    assert reported(cache, 2 * SILENT_SECONDS + 60) == 1
    (_, _) = artifacts_of(run)["cache-report"]


@pytest.mark.parametrize("run", ["00000000-0000-4000-8000-000000000000", "airflow:2026-11-22"])
def test_a_run_that_this_api_does_not_know_is_left_alone(cache: TieredCache, run: str) -> None:
    look_up(cache, run, time.time())
    assert reported(cache, SETTLE_SECONDS + 60) == 0


def test_a_run_that_ended_long_ago_gets_none_any_more(cache: TieredCache) -> None:
    run = run_in(StateType.CRASHED, cache)
    assert reported(cache, LOOK_BACK_SECONDS + 60) == 0
    assert artifacts_of(run) == {}


def test_many_runs_are_asked_for_in_pages(cache: TieredCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_runs, "_PAGE", 3)
    runs = [run_in(StateType.CRASHED, cache) for _ in range(7)]
    for _ in range(4):  # more artifacts than fit a page
        publish(cache, runs[0], "reported")
    assert reported(cache, SETTLE_SECONDS + 60) == 6
    assert reported(cache, SETTLE_SECONDS + 60) == 0
    assert [len(artifacts_of(run)["cache-report"]) for run in runs] == [4, 1, 1, 1, 1, 1, 1]


def test_what_a_maintenance_that_died_has_begun_is_finished(
    cache: TieredCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(StateType.CRASHED, cache)
    real = SyncPrefectClient.create_artifact

    def die_at_the_second(self: Any, artifact: Any) -> Any:
        if artifact.key == "cache-hits":
            raise KeyboardInterrupt
        return real(self, artifact)

    monkeypatch.setattr(SyncPrefectClient, "create_artifact", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        reported(cache, SETTLE_SECONDS + 60)
    monkeypatch.undo()
    assert reported(cache, SETTLE_SECONDS + 60) == 1
    assert {key: len(data) for key, data in artifacts_of(run).items()} == {"cache-report": 1, "cache-hits": 1}


ELSEWHERE = """
import sys, time
from cache_blocks import TieredCache
from cache_blocks.prefect.dead_runs import report_dead_runs
done = report_dead_runs(TieredCache.from_settings(), now=time.time() + float(sys.argv[1]))
print(done.reported, done.errors)
"""


@pytest.mark.promise("A dead flow run gets one report", tries="2 maintenance processes at once")
def test_two_maintenance_processes_at_once_publish_one_report(
    cache: TieredCache, child_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(StateType.CANCELLED, cache)
    begun, go_on = threading.Event(), threading.Event()
    real = SyncPrefectClient.create_artifact

    def wait_before_publishing(self: Any, artifact: Any) -> Any:
        begun.set()
        assert go_on.wait(120)
        return real(self, artifact)

    monkeypatch.setattr(SyncPrefectClient, "create_artifact", wait_before_publishing)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(reported, cache, SETTLE_SECONDS + 60)
        try:
            assert begun.wait(60)
            said = run_python("-c", ELSEWHERE, str(SETTLE_SECONDS + 60), environment=child_environment)
        finally:
            go_on.set()
        assert first.result() == 1
    assert said.split() == ["0", "[]"]
    assert {key: len(data) for key, data in artifacts_of(run).items()} == {"cache-report": 1, "cache-hits": 1}


def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An API that does not take artifacts."""

    def refuse(self: Any, artifact: Any) -> Any:
        return self.request("POST", "/artifacts/nowhere", json={"key": artifact.key})

    monkeypatch.setattr(SyncPrefectClient, "create_artifact", refuse)


def test_a_report_that_the_api_refuses_is_said_and_the_next_time_tries_again(
    cache: TieredCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [run_in(StateType.CRASHED, cache) for _ in range(2)]
    with monkeypatch.context() as patch:
        refused(patch)
        done = report_dead_runs(cache, now=time.time() + SETTLE_SECONDS + 60)
    assert done.reported == 0
    assert len(done.errors) == 2
    assert all(error.startswith("report of flow run ") for error in done.errors)
    assert reported(cache, SETTLE_SECONDS + 60) == 2
    assert all(totals_of(run) == (1, 0, 0) for run in runs)


def test_without_an_api_nothing_breaks(cache: TieredCache) -> None:
    look_up(cache, uuid4(), time.time())
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        done = report_dead_runs(cache, now=time.time() + SETTLE_SECONDS + 60)
    assert done.reported == 0
    (error,) = done.errors
    assert error.startswith("reports of dead runs: ")


def test_the_maintenance_flow_reports_for_the_dead_and_counts_them(
    cache: TieredCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(StateType.CRASHED, cache)
    alive = run_in(StateType.RUNNING, cache)
    assert cache_maintenance()["reports"] == 0
    monkeypatch.setattr(dead_runs, "time", SimpleNamespace(time=lambda: time.time() + SETTLE_SECONDS + 60))
    counts = [cache_maintenance()["reports"] for _ in range(2)]
    assert counts == [1, 0]
    assert set(artifacts_of(run)) == {"cache-report", "cache-hits"}
    assert artifacts_of(alive) == {}
