"""What SQL adds up for a report, the hits of its run and all that sub-runs have done; nothing counts twice."""

import random
import tracemalloc

import pytest

from cache_blocks import CacheMetrics, TieredCache
from cache_blocks import events as actions
from cache_blocks.events import CacheEvent, Origin
from cache_blocks.plans import SavedPlan, scores
from cache_blocks.report import render_report
from cache_blocks.runs import Runs
from cache_blocks.sub_runs import SubRun, metrics_of, sums_of


def events_of(run: str, number: int = 60) -> list[CacheEvent]:
    """Events of all sorts, whose figures are halves, so that sums are exact."""
    chance = random.Random(run)  # noqa: S311 - the same in every run of the tests
    outcomes = [("hit", "redis"), ("hit", "sql"), ("miss", ""), ("bypassed", ""), ("expired", "")]
    events: list[CacheEvent] = []
    for each in range(number):
        outcome, tier = chance.choice(outcomes)
        action = chance.choice([actions.LOOKUP, actions.LOOKUP, actions.COMPUTED, actions.SHARED, actions.INVALIDATED])
        if action != actions.LOOKUP:
            outcome, tier = "", ""
        events.append(
            CacheEvent(
                action=action,
                kind=chance.choice(["transcript", "ai-enhancement"]),
                key=f"transcript:{run}{each}",
                outcome=outcome,
                tier=tier,
                reason={"miss": "never seen", "bypassed": f"no key: {each}", "expired": f"{each} s ago"}.get(
                    outcome, ""
                ),
                stored_bytes=chance.randrange(1000),
                seconds=chance.randrange(20) / 2,
                seconds_saved=chance.randrange(20) / 2,
                money=chance.randrange(20) / 2,
                money_saved=chance.randrange(20) / 2,
                origin=Origin(subject=f"{each}.wav", task="transcribe", flow="shard", flow_run_id=run),
                at=1000.0 + each,
            )
        )
    return events


@pytest.fixture
def runs(cache_home: object) -> tuple[TieredCache, Runs]:
    """A cache whose log has the events of three runs."""
    del cache_home
    cache = TieredCache.from_settings()
    for run in ("one", "two", "another"):
        cache.record(events_of(run))
    cache.parts.events.flush()
    return cache, Runs(cache.parts.database, cache.settings.namespace)


def sub_runs(runs: Runs, **trouble: str) -> list[SubRun]:
    sums = runs.summed(["one", "two", "never"])
    return [SubRun(run, f"shard {run}", trouble.get(run, ""), sums.get(run, ())) for run in ("one", "two", "never")]


def test_sums_are_those_of_the_events_one_by_one(runs: tuple[TieredCache, Runs]) -> None:
    _, log = runs
    own = events_of("parent")
    summed = metrics_of(own, sums_of(sub_runs(log)))
    one_by_one = CacheMetrics.from_events([*own, *events_of("one"), *events_of("two")])
    assert summed.by_kind == one_by_one.by_kind
    assert summed.shared == one_by_one.shared


def test_the_report_shows_each_with_its_figures_and_why_they_missed(runs: tuple[TieredCache, Runs]) -> None:
    _, log = runs
    found = sub_runs(log, two="crashed")
    report = render_report([], title="nightly", sub_runs=found, ui_url="https://ui")
    of_two = found[1].metrics
    assert "- 1 sub-run did not complete: [shard two](https://ui/runs/flow-run/two) crashed" in report
    assert f"| [shard two](https://ui/runs/flow-run/two) | {of_two.hits} of {of_two.total} |" in report
    assert report.index("shard two](https://ui/runs/flow-run/two) | ") < report.index("shard one"), (
        "trouble comes first"
    )
    whole = metrics_of([], sums_of(found))
    assert f"{whole.hits:,} of {whole.total:,} lookups hit" in report
    misses = sum(
        event.action == actions.LOOKUP and event.outcome == "miss" and event.kind == "transcript"
        for run in ("one", "two")
        for event in events_of(run)
    )
    assert f"- **transcript**: {misses} never seen" in report


def test_a_report_of_many_sub_runs_stays_small() -> None:
    lookup = CacheEvent(actions.LOST, "transcript", tier="redis")
    many = [SubRun(str(number), f"shard {number}", "crashed", ()) for number in range(3000)]
    report = render_report([lookup], title="nightly", sub_runs=many)
    assert len(report) < 10_000
    assert "3,000 sub-runs did not complete" in report
    assert "And 2,960 more." in report


def test_a_sub_run_with_warnings_is_a_warning(runs: tuple[TieredCache, Runs]) -> None:
    cache, log = runs
    cache.record([CacheEvent(actions.LOST, "transcript", tier="redis", origin=Origin(flow_run_id="one"))])
    cache.parts.events.flush()
    report = render_report([], title="nightly", sub_runs=sub_runs(log))
    assert "- 1 sub-run with warnings in the report: [shard one](/runs/flow-run/one)" in report


def test_a_run_without_any_says_nothing_of_them() -> None:
    assert "ub-run" not in render_report(events_of("parent"), title="nightly")


def test_a_plan_is_compared_with_what_sub_runs_have_done(runs: tuple[TieredCache, Runs]) -> None:
    _, log = runs
    stage = {"task": "transcribe", "hits": {"sql": 7}, "unknown": 0, "seconds": {"each": {"median": 2.0}}}
    both = [*events_of("one"), *events_of("two")]
    assert list(scores(SavedPlan(0.0, {}, [stage]), [], sums_of(sub_runs(log)))) == list(
        scores(SavedPlan(0.0, {}, [stage]), both)
    )


def test_a_report_is_the_same_whether_its_hits_are_told_one_by_one_or_added_up(runs: tuple[TieredCache, Runs]) -> None:
    cache, log = runs
    others, hits = cache.parts.events.of_run("one", hits=False), log.hits_of("one")
    one_by_one = cache.parts.events.of_run("one")

    assert render_report(others, title="nightly", hits=hits) == render_report(one_by_one, title="nightly")
    assert sum(summed.number for summed in hits) == len(one_by_one) - len(others) > 0
    assert log.hits_of("never") == []


def test_a_run_with_very_many_hits_takes_no_more_memory_to_report(runs: tuple[TieredCache, Runs]) -> None:
    cache, log = runs
    origin = Origin(subject="a.wav", task="transcribe", flow="nightly", flow_run_id="hot")
    cache.record(
        CacheEvent(actions.LOOKUP, "transcript", f"transcript:{each}", "hit", "redis", seconds_saved=2.0, origin=origin)
        for each in range(20_000)
    )
    cache.parts.events.flush()

    tracemalloc.start()
    report = render_report(cache.parts.events.of_run("hot", hits=False), title="hot", hits=log.hits_of("hot"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert "20,000 of 20,000 lookups hit" in report
    assert peak < 3_000_000, "a fifth of what the events themselves would take"
