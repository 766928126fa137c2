"""Every flow run that looks something up gets its two artifacts, whatever becomes of it, and they count right."""

import asyncio
from typing import Any

import pytest
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from cache_blocks import AI_ENHANCEMENT, TRANSCRIPT, CacheMetrics, TieredCache, cached_map, cached_task
from tests.prefect.observed import artifacts_of, run_async, totals_of


@cached_task(kind=TRANSCRIPT, cache_ignore=("name",))
def length(text: str, name: str = "") -> int:
    del name
    return len(text)


@cached_task(kind=AI_ENHANCEMENT)
def upper(text: str) -> str:
    return text.upper()


@cached_task(kind=TRANSCRIPT)
async def length_later(text: str) -> int:
    await asyncio.sleep(0)
    return len(text)


def test_a_completed_run_has_a_table_and_a_report_that_count_its_events(cache: TieredCache) -> None:
    length("known")

    @flow
    def work() -> str:
        length("known", name="known.mp3")
        length("new", name="new.mp3")
        length.with_options(refresh_cache=True)("new", name="new.mp3")
        upper.map(["a", "b", "a"]).wait()
        return str(flow_run.id)

    run_id = work()
    artifacts = artifacts_of(run_id)
    (table,) = artifacts["cache-hits"]
    (report,) = artifacts["cache-report"]
    metrics = CacheMetrics.from_events(cache.parts.events.of_run(run_id))
    rows = {row["kind"]: row for row in table}

    assert set(rows) == {"ai-enhancement", "transcript", "all"}
    assert (rows["transcript"]["lookups"], rows["transcript"]["hits"], rows["transcript"]["bypassed"]) == (2, 1, 1)
    assert rows["ai-enhancement"]["lookups"] == 3
    assert (rows["all"]["lookups"], rows["all"]["hits"]) == (metrics.total, metrics.hits)
    assert "new.mp3" in report
    assert "never seen" in report


def test_a_failed_run_has_them_too() -> None:
    run_ids: list[str] = []

    @flow
    def fails() -> None:
        run_ids.append(str(flow_run.id))
        length("abc")
        raise ValueError("after the lookup")

    state: State[Any] = fails(return_state=True)

    assert state.is_failed()
    assert totals_of(run_ids[0]) == (1, 0, 0)
    assert set(artifacts_of(run_ids[0])) == {"cache-hits", "cache-report"}


def test_an_async_flow_has_them_too() -> None:
    @flow
    async def work() -> str:
        await length_later("abc")
        await length_later("abc")
        return str(flow_run.id)

    assert totals_of(run_async(work())) == (2, 1, 0)


def test_a_flow_whose_calls_all_look_away_says_so() -> None:
    class Opaque:
        pass

    @cached_task(kind=TRANSCRIPT)
    def name_of(value: Any) -> str:
        return type(value).__name__

    @flow
    def work() -> str:
        name_of(Opaque())
        return str(flow_run.id)

    run_id = work()
    (report,) = artifacts_of(run_id)["cache-report"]

    assert totals_of(run_id) == (0, 0, 1)
    assert "## Bypassed" in report
    assert "name_of" in report


def test_two_runs_of_one_flow_have_a_pair_each_and_the_users_hooks_are_kept() -> None:
    completed: list[str] = []

    def note(flow: Any, flow_run: Any, state: Any) -> None:
        del flow, state
        completed.append(str(flow_run.id))

    @flow(on_completion=[note])
    def work() -> str:
        length("abc")
        return str(flow_run.id)

    first, second = work(), work()

    assert completed == [first, second]
    assert (totals_of(first), totals_of(second)) == ((1, 0, 0), (1, 1, 0))
    assert [len(data) for run in (first, second) for data in artifacts_of(run).values()] == [1, 1, 1, 1]


def test_a_flow_without_lookups_has_no_artifacts() -> None:
    @flow
    def work() -> str:
        return str(flow_run.id)

    assert artifacts_of(work()) == {}


def test_a_subflow_reports_for_itself() -> None:
    @flow
    def child() -> str:
        length("abc")
        length("abc")
        return str(flow_run.id)

    @flow
    def parent() -> tuple[str, str]:
        length("abc")
        child_id = child()
        upper("abc")
        return str(flow_run.id), child_id

    parent_id, child_id = parent()

    assert totals_of(parent_id) == (2, 0, 0)
    assert totals_of(child_id) == (2, 2, 0)


def test_hits_of_cached_map_count_once_an_item() -> None:
    @flow
    def work() -> str:
        cached_map(length, ["a", "b", "a"]).wait()
        return str(flow_run.id)

    assert totals_of(work())[0] == 3
    assert totals_of(work()) == (3, 3, 0)


def test_a_run_whose_api_refuses_artifacts_completes_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise ConnectionError(f"refused {len(arguments)} {len(options)}")

    @flow
    def work() -> int:
        return length("abc")

    monkeypatch.setattr("prefect.client.orchestration.SyncPrefectClient.create_artifact", refuse)
    assert work() == 3
    assert "An error was encountered while running hook" in caplog.text
