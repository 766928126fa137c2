"""What `stats` says of the past is what counting the events gives, on SQLite and on PostgreSQL."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from typer.testing import CliRunner

from cache_blocks import SEARCH_RESULTS, TRANSCRIPT, CacheMetrics, CacheSettings, Outcome, TieredCache
from cache_blocks import events as actions
from cache_blocks.cli.app import app
from cache_blocks.costs import Prices
from cache_blocks.events import CacheEvent, Origin
from cache_blocks.maintenance import collect, stats
from cache_blocks.runs import Run, Runs
from cache_blocks.schema import LARGE_BYTES
from cache_blocks.tallies import DAY_SECONDS

if TYPE_CHECKING:
    from collections.abc import Generator

NOON = 20_000.5 * DAY_SECONDS
"""The middle of a day, 2024-10-04 UTC."""


@pytest.fixture(params=["sqlite", "postgres"])
def cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Generator[TieredCache]:
    """A cache over either database, with prices."""
    if request.param == "postgres":
        monkeypatch.setenv("CACHE_BLOCKS_DATABASE_URL", request.getfixturevalue("postgres_url"))
    cache = TieredCache(CacheSettings(costs={"transcript": Prices(compute_hour=36.0)}, currency="EUR"))
    yield cache
    cache.close()


def lookup(outcome: str, *, days_ago: float = 0, task: str = "", flow: str = "", **fields: Any) -> CacheEvent:
    kind = fields.pop("kind", "transcript")
    origin = Origin(task=task, flow=flow)
    tier = "redis" if outcome == Outcome.HIT else ""
    at = NOON - days_ago * DAY_SECONDS
    return CacheEvent(actions.LOOKUP, kind, outcome=outcome, tier=tier, at=at, origin=origin, **fields)


def computed(seconds: float, money: float, *, days_ago: float = 0, task: str = "", flow: str = "") -> CacheEvent:
    at = NOON - days_ago * DAY_SECONDS
    origin = Origin(task=task, flow=flow)
    return CacheEvent(actions.COMPUTED, "transcript", seconds=seconds, money=money, at=at, origin=origin)


HISTORY = [
    *[lookup(Outcome.HIT, task="transcribe", flow="nightly", seconds_saved=2.0, money_saved=0.5) for _ in range(3)],
    lookup(Outcome.MISS, task="transcribe", flow="nightly", reason="changed: engine.model: tiny.en -> base"),
    lookup(Outcome.MISS, task="transcribe", flow="nightly", reason="changed: engine.model: base -> small"),
    *[computed(4.0, 1.0, task="transcribe", flow="nightly") for _ in range(2)],
    lookup(Outcome.HIT, days_ago=1, task="find", flow="ask", kind="search-results", seconds_saved=0.5),
    lookup(Outcome.EXPIRED, days_ago=1, task="find", flow="ask", kind="search-results", reason="expired 2 h ago"),
    lookup(Outcome.BYPASSED, days_ago=1, task="find", flow="ask", kind="search-results", reason="refreshed"),
    lookup(Outcome.MISS, days_ago=9, task="transcribe", flow="nightly", reason="never seen"),
]


def test_trends_by_day_say_rate_savings_and_what_was_spent(cache: TieredCache) -> None:
    cache.record(HISTORY)
    found = stats(cache, now=NOON)

    assert [(trend.name, trend.lookups, trend.hits) for trend in found.trends] == [
        ("2024-09-25", 1, 0),
        ("2024-10-03", 2, 1),
        ("2024-10-04", 5, 3),
    ]
    today = found.trends[-1]
    assert (today.hit_rate, today.seconds_saved, today.money_saved) == (0.6, 6.0, 1.5)
    assert (today.computed, today.compute_seconds, today.money_spent) == (2, 8.0, 2.0)


@pytest.mark.parametrize(
    "by, expected",
    [
        ("kind", [("transcript", 6, 3), ("search-results", 2, 1)]),
        ("task", [("transcribe", 6, 3), ("find", 2, 1)]),
        ("flow", [("nightly", 6, 3), ("ask", 2, 1)]),
    ],
)
def test_trends_by_name_begin_with_the_busiest(
    cache: TieredCache, by: Any, expected: list[tuple[str, int, int]]
) -> None:
    cache.record(HISTORY)
    assert [(each.name, each.lookups, each.hits) for each in stats(cache, by=by, now=NOON).trends] == expected


@pytest.mark.parametrize("by", ["day", "kind", "task", "flow"])
def test_trends_add_up_to_the_metrics_and_these_to_the_events(cache: TieredCache, by: Any) -> None:
    cache.record(HISTORY)
    found = stats(cache, by=by, now=NOON)
    expected = CacheMetrics.from_events(cache.parts.events.since(0))

    assert found.metrics == expected
    for name in ("lookups", "hits", "seconds_saved", "money_saved", "computed", "compute_seconds", "money_spent"):
        whole = getattr(expected.whole, {"lookups": "total"}.get(name, name))
        assert sum(getattr(trend, name) for trend in found.trends) == pytest.approx(whole)


def test_only_what_is_younger_than_asked_for_counts(cache: TieredCache) -> None:
    cache.record(HISTORY)
    assert [trend.name for trend in stats(cache, since_seconds=2 * DAY_SECONDS, now=NOON).trends] == [
        "2024-10-03",
        "2024-10-04",
    ]


def test_misses_are_counted_by_cause_whatever_the_values(cache: TieredCache) -> None:
    cache.record(HISTORY)
    assert [(each.kind, each.cause, each.misses) for each in stats(cache, now=NOON).causes] == [
        ("transcript", "changed: engine.model", 2),
        ("search-results", "expired", 1),
        ("transcript", "never seen", 1),
    ]


def test_the_biggest_entries_are_listed_and_among_them_those_that_nobody_reads(cache: TieredCache) -> None:
    for number in range(15):
        cache.put(f"transcript:{number}", token_hex(LARGE_BYTES + 1000 * number), kind=TRANSCRIPT)
    cache.put("search-results:read", token_hex(2 * LARGE_BYTES), kind=SEARCH_RESULTS)
    cache.put("search-results:small", token_hex(LARGE_BYTES // 4), kind=SEARCH_RESULTS)
    cache.get("search-results:read")
    now = stats(cache).kinds["transcript"].newest

    found = stats(cache, now=now + 2 * DAY_SECONDS)

    assert [entry.key for entry in found.biggest][:3] == ["search-results:read", "transcript:14", "transcript:13"]
    assert len(found.biggest) == len(found.never_read) == 10
    assert [entry.key for entry in found.never_read][:2] == ["transcript:14", "transcript:13"]
    assert [entry.bytes for entry in found.biggest] == sorted((each.bytes for each in found.biggest), reverse=True)
    assert stats(cache, now=now + 60).never_read == [], "nobody has had the time to read them"


def test_everything_is_json(cache: TieredCache) -> None:
    cache.record(HISTORY)
    cache.put("transcript:a", token_hex(LARGE_BYTES), kind=TRANSCRIPT)
    written = orjson.loads(orjson.dumps(stats(cache, now=NOON).as_dict()))
    assert (written["by"], written["currency"], written["since"]) == ("day", "EUR", 19_970 * DAY_SECONDS)
    assert written["trends"][2]["money_saved"] == 1.5
    assert written["metrics"]["by_kind"]["transcript"]["money_saved_by_tier"] == {"redis": 1.5}
    assert set(written["biggest"][0]) == {"key", "task", "subject", "created_at", "bytes"}


def test_the_command_shows_trends_by_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_BLOCKS_COSTS", '{"transcript": {"compute_hour": 36.0}}')
    cache = TieredCache.from_settings()
    cache.record([replace(event, at=time.time()) for event in HISTORY])
    cache.put("transcript:a", token_hex(LARGE_BYTES), kind=TRANSCRIPT)
    cache.parts.events.flush()

    said = CliRunner().invoke(app, ["stats", "--by", "task", "--since", "7d"]).stdout
    assert re.search(r"transcribe +6 +3 +50 % +6.0 s, 1.50 USD +2 +8.0 s, 2.00 USD", said)
    assert re.search(r"transcript +changed: engine.model +2", said)
    assert re.search(r"Biggest:\n(.*\n)+? transcript:a", said)
    refused = CliRunner().invoke(app, ["stats", "--by", "week"])
    assert (refused.exit_code, "'week'" in refused.output) == (2, True)


# Runs


def run(number: int, flow: str = "nightly", **fields: Any) -> Run:
    return Run(f"{number:036}", flow, NOON + number, **({"lookups": 4, "hits": number % 5} | fields))


def test_a_flow_remembers_its_last_runs_oldest_first_and_not_those_of_others(cache: TieredCache) -> None:
    runs = Runs(cache.parts.database, cache.settings.namespace)
    for number in (3, 1, 2):
        runs.remember(run(number))
    runs.remember(run(4, flow="ask"))
    runs.remember(run(5, lookups=0))
    Runs(cache.parts.database, "elsewhere").remember(run(2, hits=0))

    assert runs.before(run(9)) == [run(1), run(2), run(3)]
    assert runs.before(run(3)) == [run(1), run(2)], "those that began before it"
    assert runs.before(run(9), limit=2) == [run(2), run(3)]


def test_a_run_that_is_reported_again_is_one_run(cache: TieredCache) -> None:
    runs = Runs(cache.parts.database, cache.settings.namespace)
    runs.remember(run(1, hits=1))
    runs.remember(run(1, hits=2))
    assert runs.before(run(2)) == [run(1, hits=2)]


def test_runs_outlive_their_events_but_not_for_ever(cache: TieredCache) -> None:
    runs = Runs(cache.parts.database, cache.settings.namespace)
    runs.remember(run(1))
    collect(cache, now=NOON + 399 * DAY_SECONDS)
    assert runs.before(run(2)) == [run(1)]
    collect(cache, now=NOON + 402 * DAY_SECONDS)
    assert runs.before(run(2)) == []
