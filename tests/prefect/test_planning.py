"""A plan says what a batch will do, does nothing, and is scored against what happened."""

import time
from typing import Any

import pytest
from prefect import flow, task, unmapped
from prefect.runtime import flow_run

from cache_blocks import TRANSCRIPT, TieredCache, cached_map, cached_task
from cache_blocks.costs import Prices
from cache_blocks.errors import ConfigurationError
from cache_blocks.events import COMPUTED, LOOKUP, CacheEvent, Origin
from cache_blocks.history import estimate
from cache_blocks.plans import SavedPlan, scores
from cache_blocks.prefect.planning import NO_KEY, Planner, plan_map
from cache_blocks.prefect.policy import TieredCachePolicy
from tests.prefect.observed import Calls, outcomes

CALLS = Calls()


@cached_task(kind=TRANSCRIPT, cache_ignore=("name",))
def upper(text: str, name: str = "") -> dict[str, str]:
    del name
    CALLS.note()
    return {"text": text.upper()}


@cached_task(kind=TRANSCRIPT)
def twice(text: str, times: int = 2) -> str:
    CALLS.note()
    return text * times


def text_of(result: dict[str, str]) -> str:
    return result["text"]


@pytest.fixture(autouse=True)
def calls() -> Calls:
    CALLS.count = 0
    return CALLS


@flow
def run(texts: list[str], times: int = 2) -> str:
    cached_map(twice, cached_map(upper, texts).then(text_of), unmapped(times)).wait()
    return str(flow_run.id)


def planned(texts: list[Any], times: int = 2) -> Planner:
    planner = Planner()
    planner.map(twice, planner.map(upper, texts).then(text_of), unmapped(times))
    return planner


def test_a_plan_computes_nothing_and_leaves_no_trace(cache: TieredCache, calls: Calls) -> None:
    stage = plan_map(upper, ["a", "b"])

    assert (stage.items, stage.hits.total(), stage.misses) == (2, 0, {"never seen": 2})
    assert calls.count == 0
    assert outcomes(cache) == []
    assert cache.metrics.total == 0


def test_hits_are_told_by_tier_and_misses_by_reason(cache: TieredCache) -> None:
    run(["a", "b"])
    known = next(iter(cache.parts.chain.tier("memory").keys()))
    cache.parts.chain.tier("memory").delete([known])

    first, second = planned(["a", "b", "c"], times=3).stages

    assert first.hits.total() == 2
    assert (first.misses, first.unknown) == ({"never seen": 1}, 0)
    assert second.hits.total() == 0
    assert second.misses == {"changed: times: 2 -> 3": 2}
    assert (second.unknown, second.until) == (1, "upper")
    assert (second.least, second.most) == (2, 3)
    assert {tier for stage in (first, second) for tier in stage.hits} <= {"memory", "sql"}


def test_what_was_planned_is_what_happens(cache: TieredCache) -> None:
    run(["a", "b", "c"])
    planner = planned(["a", "b", "c", "d"])

    before = len(outcomes(cache))
    run(["a", "b", "c", "d"])

    happened = outcomes(cache)[before:]
    assert happened.count("hit") == sum(stage.hits.total() for stage in planner.stages) == 6
    assert happened.count("miss") == sum(stage.most for stage in planner.stages) == 2


def test_an_item_without_a_key_will_be_computed(cache: TieredCache) -> None:
    del cache
    assert plan_map(upper, [object(), "a"]).misses == {NO_KEY: 1, "never seen": 1}


def test_expectations_come_from_history_and_say_when_there_is_none(
    cache: TieredCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plan_map(upper, ["a"]).seconds is None
    assert plan_map(upper, ["a"]).as_dict()["seconds"] is None

    def priced(*arguments: Any) -> Prices:
        del arguments
        return Prices(compute_hour=3600.0, audio_minute=60.0)

    monkeypatch.setattr(type(cache.settings), "prices_of", priced)
    policy = upper.cache_policy
    assert isinstance(policy, TieredCachePolicy)
    for number, seconds in enumerate((1.0, 2.0, 9.0)):
        call = policy.call_of(upper, {"text": str(number)})
        cache.put_call(call, {"text": ""}, seconds)

    stage = plan_map(upper, ["x", "y"])

    assert stage.seconds is not None
    assert (stage.seconds.median, stage.seconds.samples) == (2.0, 3)
    assert 2.0 < stage.seconds.p90 <= 9.0
    assert stage.money is not None
    assert stage.money.median == pytest.approx(2.0)
    assert stage.as_dict()["seconds"]["least"]["median"] == 4.0


def test_a_plain_task_is_refused() -> None:
    @task
    def plain(text: str) -> str:
        return text

    with pytest.raises(ConfigurationError, match="make it with cached_task"):
        plan_map(plain, ["a"])


def test_estimates() -> None:
    assert estimate([]) is None
    one = estimate([3.0])
    assert one is not None
    assert (one.median, one.p90, one.samples) == (3.0, 3.0, 1)


def test_a_plan_is_found_for_the_run_that_it_was_made_for(cache: TieredCache) -> None:
    log = cache.parts.plans
    log.save("batch", {"source": "a", "engine": {"model": "tiny"}}, [])
    log.save("batch", {"source": "b"}, [])
    real = {"source": "a", "engine": {"model": "tiny", "beam": 5}, "output": "out"}

    found = log.made_for("batch", real, started=2e10)
    assert found is None  # made more than a day before
    newest = log.made_for("batch", {"source": "b"}, started=_soon())
    assert newest is not None
    mine = log.made_for("batch", real, started=_soon())
    assert mine is not None
    assert mine.parameters["source"] == "a"
    assert log.made_for("batch", real | {"engine": {"model": "base"}}, started=_soon()) is None
    assert log.made_for("another", real, started=_soon()) is None


def _soon() -> float:
    return time.time() + 1


def test_a_score_compares_hits_and_seconds() -> None:
    stage = {"task": "upper", "hits": {"redis": 2}, "unknown": 1, "seconds": {"each": {"median": 2.0}}}
    origin = Origin(task="upper")
    events = [
        *(CacheEvent(LOOKUP, outcome="hit", origin=origin) for _ in range(3)),
        CacheEvent(LOOKUP, outcome="miss", origin=origin),
        CacheEvent(COMPUTED, seconds=3.0, origin=origin),
    ]
    (score,) = scores(SavedPlan(0.0, {}, [stage]), events)
    assert (score.hits, score.real_hits, score.right) == ((2, 3), 3, True)
    assert (score.seconds, score.real_seconds) == (2.0, 3.0)
    (wrong,) = scores(SavedPlan(0.0, {}, [stage | {"seconds": None}]), [])
    assert (wrong.right, wrong.seconds) == (False, None)
