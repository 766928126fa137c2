"""Whoever replaces ``task.map`` by `cached_map` finds what they had: what may be waited for, annotations, limits."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, cast

import pytest
from prefect import allow_failure, flow, task, unmapped
from prefect.context import FlowRunContext
from prefect.exceptions import Pause
from prefect.futures import PrefectFuture
from prefect.states import Suspended
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import opaque, quote

from cache_blocks import TRANSCRIPT, cached_map, cached_task, plan_map
from cache_blocks.errors import ConfigurationError
from cache_blocks.prefect import batch as batches
from cache_blocks.prefect.batch import awaited_by
from cache_blocks.prefect.futures import BatchFutures, MappedFuture
from tests.prefect.observed import Gate

GATE = Gate()


@pytest.fixture(autouse=True)
def closed_gate() -> None:
    GATE.begun.clear()
    GATE.release.clear()


@cached_task(kind=TRANSCRIPT)
def upper(text: str) -> str:
    return text.upper()


@cached_task(kind=TRANSCRIPT)
def twice(text: str) -> str:
    return text * 2


@cached_task(kind=TRANSCRIPT)
def slow(text: str) -> str:
    GATE.pass_through()
    return text


@task
def number(value: int = 1) -> int:
    return value


@task
def fail() -> None:
    raise ValueError("no")


@task
def slow_plain(text: str) -> str:
    GATE.pass_through()
    return text


def few_places(workers: int) -> Any:
    return ThreadPoolTaskRunner[Any](max_workers=workers)


@pytest.mark.parametrize(
    "make",
    [
        lambda: [allow_failure(fail.submit())],
        lambda: [number.map([1, 2]), number.submit()],
        lambda: [number.submit(return_state=True)],
        lambda: (number.submit(value) for value in (1, 2)),
        lambda: deque([number.submit()]),
        lambda: cast("Any", number).submit(),
        lambda: cached_map(upper, ["a", "b"]),
        lambda: [cached_map(upper, number.map(["c"]))],
    ],
    ids=["allowed failure", "lists of futures", "state", "generator", "deque", "one future", "batch", "open batch"],
)
def test_what_a_task_may_wait_for_a_batch_may_wait_for(make: Callable[[], Any]) -> None:
    @flow
    def work() -> list[str]:
        return cached_map(twice, ["x", "y"], wait_for=make()).result()

    assert work() == ["xx", "yy"]
    assert work() == ["xx", "yy"]


def test_a_failure_in_a_list_keeps_back_what_waits_for_it() -> None:
    @flow
    def work() -> list[Any]:
        states = cached_map(twice, ["x"], wait_for=[[number.submit(), fail.submit()]], return_state=True)
        return [state.name for state in states]

    assert work() == ["NotReady"]


def as_one_list(futures: BatchFutures) -> list[Any]:
    return [list(futures)]


@pytest.mark.parametrize("wrap", [allow_failure, as_one_list])
def test_an_item_takes_no_place_in_the_runner_before_what_it_needs_is_done(wrap: Callable[[Any], Any]) -> None:
    """With one place, a task run that waited in it would wait for ever."""

    @cached_task(kind=TRANSCRIPT)
    def count(texts: Any) -> int:
        return len(texts)

    @flow(task_runner=few_places(1))
    def work() -> list[int]:
        return cached_map(count, wrap(cached_map(twice, cached_map(upper, ["a", "b"])))).result(timeout=120)

    assert work() in ([2, 2], [2])


def test_what_is_the_same_for_all_items_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    @cached_task(kind=TRANSCRIPT)
    def joined(text: str, others: list[str]) -> str:
        return text + "".join(others)

    waited: list[int] = []
    when_done = batches._when_done  # pyright: ignore[reportPrivateUsage]

    def noted(futures: Iterable[PrefectFuture[Any]], call: Callable[[], None]) -> None:
        futures = list(futures)
        waited.append(len(futures))
        when_done(futures, call)

    monkeypatch.setattr(batches, "_when_done", noted)

    @flow
    def work() -> list[str]:
        return cached_map(joined, ["x", "y", "z"], unmapped(cached_map(upper, ["a", "b"]))).result()

    assert work() == ["xAB", "yAB", "zAB"]
    assert waited == [0, 0, 0]


def test_what_is_quoted_is_not_waited_for() -> None:
    future: Any = MappedFuture(cast("Any", None), 0)
    assert awaited_by({"quoted": quote(future), "text": "a", "numbers": [1, 2]}) == []
    assert awaited_by({"allowed": allow_failure([future])}) == [future]


def test_an_opaque_list_is_mapped_over() -> None:
    @flow
    def work() -> list[str]:
        return cached_map(upper, opaque(["a", "b"])).result()

    assert work() == ["A", "B"]


def test_braces_in_the_name_of_a_task_are_letters() -> None:
    braces = upper.with_options(name="upper {text}")

    @flow
    def work() -> list[str]:
        return cached_map(braces, ["a"]).result()

    assert work() == ["A"]
    assert work() == ["A"]


def test_asking_for_an_error_waits_no_longer_than_it_may_and_takes_no_delay_for_one() -> None:
    @flow
    def work() -> None:
        running, waiting = cached_map(slow, ["a"])[0], cached_map(upper, [slow_plain.submit("b")])[0]
        for future in cast("list[Any]", [running, waiting]):
            with pytest.raises(TimeoutError):
                future.exception(timeout=0.01)
        GATE.release.set()
        assert running.exception() is None  # pyright: ignore[reportAttributeAccessIssue]
        assert waiting.exception() is None  # pyright: ignore[reportAttributeAccessIssue]

    work()


def test_a_callback_that_fails_harms_neither_the_others_nor_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    called: list[str] = []

    def bad(_: PrefectFuture[Any]) -> None:
        raise RuntimeError("in a callback")

    @flow
    def work() -> list[str]:
        GATE.release.clear()
        futures = cached_map(upper, slow_plain.map(["a", "b"]))
        futures[0].add_done_callback(bad)
        futures[0].add_done_callback(lambda _: called.append("good"))
        GATE.release.set()
        return futures.result()

    assert [work(), work()] == [["A", "B"]] * 2  # a miss, whose callbacks are the runner's to call, and then a hit
    assert called == ["good", "good"]
    assert "a callback of an item of a batch failed" in caplog.text


def test_a_flow_that_is_suspended_meanwhile_leaves_nobody_waiting() -> None:
    @flow
    def work() -> list[str]:
        request: Any = FlowRunContext.get()
        futures = cached_map(upper, slow_plain.map(["a"]))
        assert GATE.begun.wait(60)
        request.flow_run_suspension_request.mark_requested(Suspended())
        GATE.release.set()
        return futures.result(timeout=120)

    with pytest.raises(Pause):
        work()


def test_a_runner_alone_is_no_flow() -> None:
    with (
        ThreadPoolTaskRunner[Any](max_workers=1) as runner,
        pytest.raises(ConfigurationError, match="outside of a flow"),
    ):
        cached_map(upper, ["a"], task_runner=runner)


def test_a_plan_knows_when_the_cache_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    @flow
    def work() -> None:
        cached_map(upper, ["a"]).wait()

    work()
    assert plan_map(upper, ["a"]).least == 0
    assert plan_map(upper.with_options(refresh_cache=True), ["a"]).misses == {
        "Prefect was told to refresh the cache": 1
    }
    monkeypatch.setenv("CACHE_BLOCKS_MODE", "off")
    assert plan_map(upper, ["a"]).misses == {"CACHE_BLOCKS_MODE is off": 1}


def test_what_a_batch_waits_for_is_asked_once_and_not_by_each_item(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    ask = batches._wait_unless_hit  # pyright: ignore[reportPrivateUsage]

    def noted(one: Any, context: dict[str, Any]) -> Any:
        asked.append(one)
        return ask(one, context)

    monkeypatch.setattr(batches, "_wait_unless_hit", noted)

    @flow
    def work() -> None:
        before = number.map([1, 2])
        cached_map(upper, ["a", "b", "c"], wait_for=before).wait()
        assert [one for one in asked if isinstance(one, PrefectFuture)] == list(before)

    work()
