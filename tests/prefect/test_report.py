"""Every flow run that looks something up gets its two artifacts, whatever becomes of it, and they count right."""

import asyncio
import json
import random
import re
import time
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.settings import PREFECT_UI_URL, temporary_settings

from cache_blocks import (
    AI_ENHANCEMENT,
    TRANSCRIPT,
    CacheKind,
    CacheMetrics,
    TieredCache,
    cached_map,
    cached_task,
    record_usage,
)
from cache_blocks import events as actions
from cache_blocks.runs import Run, Runs
from cache_blocks.schema import EntryRow, EventRow, table
from cache_blocks.wording import money_in_words, seconds_in_words
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
    (hits,) = artifacts["cache-hits"]
    (report,) = artifacts["cache-report"]
    metrics = CacheMetrics.from_events(cache.parts.events.of_run(run_id))
    rows = {row["kind"]: row for row in hits}

    assert set(rows) == {"ai-enhancement", "transcript", "all"}
    assert (rows["transcript"]["lookups"], rows["transcript"]["hits"], rows["transcript"]["bypassed"]) == (2, 1, 1)
    assert rows["ai-enhancement"]["lookups"] == 3
    assert (rows["all"]["lookups"], rows["all"]["hits"]) == (metrics.total, metrics.hits)
    assert "new.mp3" in report
    assert "never seen" in report


@pytest.fixture
def priced(monkeypatch: pytest.MonkeyPatch) -> TieredCache:
    """The cache, with prices of what `spoken` consumes."""
    prices = {"transcript": {"audio_minute": 0.6, "compute_hour": 36.0}, "ai-enhancement": {"tokens_in": 2.0}}
    monkeypatch.setenv("CACHE_BLOCKS_COSTS", json.dumps(prices))
    monkeypatch.setenv("CACHE_BLOCKS_CURRENCY", "EUR")
    return TieredCache.from_settings()


@cached_task(kind=TRANSCRIPT)
def spoken(text: str) -> str:
    record_usage(audio_seconds=30 * len(text))
    time.sleep(0.1)  # worth being saved
    return text.upper()


@cached_task(kind=AI_ENHANCEMENT)
def improved(text: str) -> str:
    record_usage(tokens_in=100 * len(text))
    return f"{text}."


def test_what_the_report_says_was_saved_is_the_sum_over_the_events_hit_by_hit(priced: TieredCache) -> None:
    @flow
    def work(texts: list[str]) -> str:
        for text in texts:
            improved(spoken(text))
        cached_map(spoken, texts).wait()
        return str(flow_run.id)

    work(["a", "bcd"])
    run_id = work(["a", "bcd", "ef"])

    rows = table(EventRow)
    sums = (sa.func.count(), sa.func.sum(rows.c.seconds_saved), sa.func.sum(rows.c.money_saved))
    of_run = sa.select(rows.c.kind, rows.c.tier, *sums).where(rows.c.flow_run_id == run_id)
    with priced.parts.database.read() as connection:
        everything = connection.execute(of_run.group_by(rows.c.kind, rows.c.tier)).all()
        hits = connection.execute(
            of_run.where(rows.c.outcome == "hit").group_by(rows.c.kind, rows.c.tier).order_by(rows.c.kind)
        ).all()
        entries = connection.execute(sa.select(table(EntryRow))).all()
        by_hit = connection.execute(sa.select(rows).where(rows.c.flow_run_id == run_id, rows.c.outcome == "hit")).all()

    # Hit by hit: what the entry says of its computation, less what the lookup took.
    known = {entry.key: entry for entry in entries}
    for event in by_hit:
        entry = known[event.key]
        assert event.seconds_saved == pytest.approx(entry.compute_seconds - event.seconds)
        prices = priced.settings.prices_of(event.kind)
        assert event.money_saved == pytest.approx(prices.cost(entry.usage, entry.compute_seconds))

    # By kind and tier, as the report has it.
    metrics = CacheMetrics.from_events(priced.parts.events.of_run(run_id))
    assert [(kind, tier, count) for kind, tier, count, *_ in hits] == [
        ("ai-enhancement", "memory", 2),
        ("transcript", "memory", 5),
    ]
    for kind, tier, count, seconds, money in hits:
        of_kind = metrics.by_kind[kind]
        assert of_kind.by_tier[tier] == count
        assert of_kind.seconds_saved_by_tier[tier] == pytest.approx(seconds)
        assert of_kind.money_saved_by_tier[tier] == pytest.approx(money)

    # Nothing but hits saves, and the report, its table and the flow's history say the sum.
    seconds, money = sum(row[3] for row in everything), sum(row[4] for row in everything)
    assert (metrics.seconds_saved, metrics.money_saved) == (pytest.approx(seconds), pytest.approx(money))
    (report,), (rows_shown,) = artifacts_of(run_id)["cache-report"], artifacts_of(run_id)["cache-hits"]
    assert f"{seconds_in_words(seconds)} and {money_in_words(money, 'EUR')} saved" in report.splitlines()[0]
    assert rows_shown[-1]["saved"] == seconds_in_words(seconds)
    assert rows_shown[-1]["cost saved"] == money_in_words(money, "EUR")
    runs = Runs(priced.parts.database, priced.settings.namespace)
    (first, this) = runs.before(Run("another", "work", time.time()))
    assert (this.flow_run_id, this.lookups, this.hits) == (run_id, 9, 7)
    assert (this.seconds_saved, this.money_saved) == (pytest.approx(seconds), pytest.approx(money))
    assert first.hits == 2


def test_what_was_computed_is_told_with_its_time_and_its_price(priced: TieredCache) -> None:
    @flow
    def work() -> str:
        spoken("abcd")
        return str(flow_run.id)

    run_id = work()
    (event,) = [each for each in priced.parts.events.of_run(run_id) if each.action == actions.COMPUTED]

    assert event.money == pytest.approx(0.6 * 2 + 36 * event.seconds / 3600)
    assert (
        f"1 computed in {seconds_in_words(event.seconds)} for {money_in_words(event.money, 'EUR')}"
        in (artifacts_of(run_id)["cache-report"][0])
    )


def test_a_run_is_compared_with_the_last_one_of_the_same_flow_which_it_links_to() -> None:
    @flow
    def work(text: str) -> str:
        length(text)
        return str(flow_run.id)

    @flow
    def other() -> None:
        length("something else")

    first, _, second = work("abc"), other(), work("abc")

    (report,) = artifacts_of(second)["cache-report"]
    assert re.search(rf"Against \[the run of .*\]\(/runs/flow-run/{first}\): hit rate 0 % → \*\*100 %\*\*", report)
    assert report.count("data:image/svg+xml") == 2
    assert "Against" not in artifacts_of(first)["cache-report"][0]


def test_a_miss_links_to_its_task_run() -> None:
    @flow
    def work() -> str:
        length("abc", name="abc.mp3")
        cached_map(length, ["de", "f"], name=["de.mp3", "f.mp3"]).wait()
        return str(flow_run.id)

    run_id = work()
    links = re.findall(r"\[([a-z]+\.mp3)\]\(/runs/task-run/([-0-9a-f]{36})\)", artifacts_of(run_id)["cache-report"][0])

    assert sorted(name for name, _ in links) == ["abc.mp3", "de.mp3", "f.mp3"]
    with get_client(sync_client=True) as client:
        assert {str(client.read_task_run(UUID(task_run)).flow_run_id) for _, task_run in links} == {run_id}


def test_links_are_absolute_where_the_address_of_the_ui_is_known() -> None:
    @flow
    def work() -> str:
        length("abc", name="abc.mp3")
        return str(flow_run.id)

    with temporary_settings({PREFECT_UI_URL: "https://prefect.example/"}):
        run_id = work()
    assert "[abc.mp3](https://prefect.example/runs/task-run/" in artifacts_of(run_id)["cache-report"][0]


def test_events_that_were_lost_are_a_warning(cache: TieredCache) -> None:
    @flow
    def work() -> str:
        length("abc")
        return str(flow_run.id)

    cache.parts.events.dropped = 3
    assert "- 3 events could not be kept while SQL was down" in artifacts_of(work())["cache-report"][0]


def test_a_result_near_the_largest_that_its_kind_keeps_is_a_warning() -> None:
    small = CacheKind("small", ttl=timedelta(days=1), tiers=frozenset({"sql"}), sql_max_bytes=1000)

    @cached_task(kind=small)
    def noise(size: int) -> bytes:
        return random.Random(size).randbytes(size)  # noqa: S311 - what does not compress

    @flow
    def work() -> str:
        noise(10)
        noise(650)
        return str(flow_run.id)

    assert (
        "- 1 result of small near the largest that is kept: the kind keeps 1.0 kB at most"
        in (artifacts_of(work())["cache-report"][0])
    )


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
    artifacts = artifacts_of(run_ids[0])
    assert set(artifacts) == {"cache-hits", "cache-report"}
    assert "**The flow run failed.**" in artifacts["cache-report"][0]


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


def test_a_subflow_reports_for_itself_and_its_parent_for_both_each_lookup_once() -> None:
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

    assert totals_of(child_id) == (2, 2, 0)
    assert totals_of(parent_id) == (4, 2, 0)


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
