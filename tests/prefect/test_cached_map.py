"""`cached_map`: a batch in which hits cost no task run, and which is otherwise `task.map`."""

import asyncio
import functools
import time
from typing import Any, cast
from uuid import UUID

import pytest
from prefect import flow, task, unmapped
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import TaskRun
from prefect.exceptions import MappingLengthMismatch, MappingMissingIterable
from prefect.runtime import flow_run
from prefect.settings import PREFECT_TASKS_DISABLE_CACHING, temporary_settings
from prefect.utilities.callables import expand_mapping_parameters, get_call_parameters

from cache_blocks import TRANSCRIPT, TieredCache, cached_map, cached_task
from cache_blocks.errors import ConfigurationError
from cache_blocks.prefect.cached_map import items_of
from cache_blocks.prefect.futures import BatchFutures
from tests.prefect.observed import BYPASSED, HIT, MISS, Calls, lines_of, outcomes, run_async

CALLS = Calls()


@cached_task(kind=TRANSCRIPT, cache_ignore=("name",))
def spell(text: str, times: int = 1, name: str = "") -> list[str]:
    """Letters of a text."""
    del name
    CALLS.note()
    return list(text) * times


@cached_task(kind=TRANSCRIPT)
def nothing(text: str) -> None:
    CALLS.note()
    del text


@flow
def batch(texts: list[str], **options: Any) -> tuple[list[Any], list[str | None], str]:
    """Results, state names, and the run's id."""
    futures = cast("BatchFutures", cached_map(spell, texts, **options))
    results = futures.result()
    return results, [future.state.name for future in futures], str(flow_run.id)


@pytest.fixture(autouse=True)
def calls() -> Calls:
    CALLS.count = 0
    return CALLS


def task_runs_of(flow_run_id: str, at_least: int = 1) -> list[TaskRun]:
    """The task runs that the API knows of; they arrive there as events, a moment later."""
    runs: list[TaskRun] = []
    deadline = time.monotonic() + 60
    while len([run for run in runs if run.state and run.state.is_final()]) < at_least and time.monotonic() < deadline:
        with get_client(sync_client=True) as client:
            runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [UUID(flow_run_id)]}))  # pyright: ignore[reportArgumentType]
    return runs


def test_hits_are_futures_without_task_runs_and_misses_are_task_runs_in_order(
    cache: TieredCache, calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    batch(["b", "d"])
    caplog.clear()

    results, states, _ = batch(["a", "b", "c", "d"])

    assert results == [["a"], ["b"], ["c"], ["d"]]
    assert states == ["Completed", "Cached", "Completed", "Cached"]
    assert calls.count == 4
    assert outcomes(cache) == [MISS] * 2 + [HIT] * 2 + [MISS] * 2


def test_the_hits_of_a_page_are_one_task_run_with_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    batch(["a", "b"])
    caplog.clear()

    _, states, run_id = batch(["a", "b"])

    assert states == ["Cached", "Cached"]
    (line,) = [record.getMessage() for record in caplog.records if record.name == "prefect.task_runs"]
    assert "Cached('2 of 2 cached (2 from memory), saved" in line
    (run,) = task_runs_of(run_id)
    assert run.name == "spell: 2 of 2 cached"
    assert run.state is not None
    assert run.state.name == "Cached"


def test_a_miss_says_why_in_its_own_task_run(caplog: pytest.LogCaptureFixture) -> None:
    batch(["a"], name=unmapped("a.mp3"))
    caplog.clear()

    batch(["a", "b"], name=["a.mp3", "b.mp3"])

    assert lines_of(caplog, "miss ") == ["miss transcript b.mp3: never seen"]


def test_arguments_pair_up_as_in_map(calls: Calls) -> None:
    for _ in range(2):
        assert batch(["a", "b"], times=[1, 2])[0] == [["a"], ["b", "b"]]
        assert batch(["a", "b"], times=unmapped(2))[0] == [["a", "a"], ["b", "b"]]
        assert batch(["a", "b"], times=2)[0] == [["a", "a"], ["b", "b"]]
        assert batch(["a", "b"])[0] == [["a"], ["b"]]
    assert calls.count == 4


def wrapped(text: str, *, times: int = 2, **others: Any) -> str:
    return text * times + str(others)


@functools.wraps(wrapped)
def wrapping(*args: Any, **kwargs: Any) -> str:
    return wrapped(*args, **kwargs)


class Speller:
    def spell(self, text: str, /, times: int = 1) -> str:
        return text * times


def counting(text: str, *others: str) -> int:
    return len(text) + len(others)


SIGNATURES: list[tuple[Any, list[Any], dict[str, Any]]] = [
    (wrapped, [["a", "b"]], {}),
    (wrapped, [["a", "b"]], {"times": [1, 2], "language": ["en", "de"], "model": unmapped("small")}),
    (wrapping, [["a", "b"]], {"times": 3}),
    (Speller().spell, [["a", "b"], [1, 2]], {}),
    (counting, [["a"], ["b"]], {}),
]


@pytest.mark.parametrize("function, args, kwargs", SIGNATURES)
def test_items_are_those_of_map_whatever_the_signature(function: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    mapped = cast("Any", task(function, name="any"))
    given = get_call_parameters(function, tuple(args), kwargs, apply_defaults=False)
    assert items_of(mapped, args, kwargs) == expand_mapping_parameters(function, given)


def test_what_was_stored_by_a_plain_call_is_a_hit(calls: Calls) -> None:
    spell("a")

    assert batch(["a"])[1] == ["Cached"]
    assert calls.count == 1


def test_equal_items_get_values_of_their_own() -> None:
    batch(["a"])

    results = batch(["a", "a", "a"])[0]
    results[0].append("changed")

    assert results[1:] == [["a"], ["a"]]
    assert batch(["a"])[0] == [["a"]]


def test_a_cached_none_is_a_result_for_the_next_task_too() -> None:
    @task
    def is_none(value: Any) -> bool:
        return value is None

    @flow
    def downstream() -> list[bool]:
        return is_none.map(cached_map(nothing, ["a", "b"])).result()

    assert downstream() == downstream() == [True, True]


def test_results_of_other_tasks_may_be_items(calls: Calls) -> None:
    @task
    def upper(text: str) -> str:
        return text.upper()

    @task
    def texts() -> list[str]:
        return ["A", "B"]

    @flow
    def upstream() -> list[Any]:
        return [*cached_map(spell, upper.map(["a", "b"])).result(), *cached_map(spell, texts.submit()).result()]

    assert upstream() == upstream() == [["A"], ["B"], ["A"], ["B"]]
    assert calls.count == 2


def test_an_error_stays_with_its_item() -> None:
    @cached_task(kind=TRANSCRIPT)
    def strict_length(text: str) -> int:
        if not text:
            raise ValueError("empty")
        return len(text)

    @flow
    def lengths() -> list[Any]:
        return [future.result(raise_on_failure=False) for future in cached_map(strict_length, ["a", "", "abc"])]

    for _ in range(2):
        one, error, three = lengths()
        assert (one, three) == (1, 3)
        assert isinstance(error, ValueError)


def test_async_tasks_and_flows(calls: Calls) -> None:
    @cached_task(kind=TRANSCRIPT)
    async def later(text: str) -> int:
        await asyncio.sleep(0)
        calls.note()
        return len(text)

    @flow
    async def lengths() -> list[Any]:
        await asyncio.sleep(0)
        return cached_map(later, ["a", "bc"]).result()

    assert run_async(lengths()) == run_async(lengths()) == [1, 2]
    assert calls.count == 2


def test_refresh_cache_computes_every_item(cache: TieredCache, calls: Calls) -> None:
    @flow
    def refreshed() -> list[Any]:
        return cached_map(spell.with_options(refresh_cache=True), ["a", "b"]).result()

    batch(["a", "b"])
    assert refreshed() == [["a"], ["b"]]
    assert calls.count == 4
    assert outcomes(cache) == [MISS] * 2 + [BYPASSED] * 2


def test_with_caching_disabled_or_off_every_item_is_a_task_run(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    batch(["a"])
    with temporary_settings({PREFECT_TASKS_DISABLE_CACHING: True}):
        plain = cached_task(spell.fn, kind=TRANSCRIPT)

        @flow
        def disabled() -> list[Any]:
            return cached_map(plain, ["a"]).result()

        assert disabled() == [["a"]]
    monkeypatch.setenv("CACHE_BLOCKS_MODE", "off")
    assert batch(["a"])[0] == [["a"]]
    assert calls.count == 3


def test_a_changed_argument_and_an_unhashable_one_are_misses(cache: TieredCache) -> None:
    class Opaque:
        pass

    @cached_task(kind=TRANSCRIPT)
    def name_of(value: Any) -> str:
        return type(value).__name__

    @flow
    def names() -> list[Any]:
        return cached_map(name_of, [1, Opaque()]).result()

    assert names() == names() == ["int", "Opaque"]
    assert sorted(outcomes(cache)) == sorted([MISS, BYPASSED, HIT, BYPASSED])


def test_iterables_of_different_lengths_are_an_error() -> None:
    with pytest.raises(MappingLengthMismatch, match="'times': 3"):
        batch(["a", "b"], times=[1, 2, 3])


def test_nothing_to_map_over_is_an_error() -> None:
    @flow
    def one() -> Any:
        return cached_map(spell, "a")

    with pytest.raises(MappingMissingIterable):
        one()


def test_no_items_are_no_futures() -> None:
    assert batch([])[0] == []


def test_a_plain_task_is_refused_with_the_way_out() -> None:
    @flow
    def plain() -> Any:
        return cached_map(task(spell.fn), ["a"])

    with pytest.raises(ConfigurationError, match="make it with cached_task"):
        plain()
