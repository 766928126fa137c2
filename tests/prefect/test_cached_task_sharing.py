"""Equal calls at the same time compute once; nothing waits for itself; nothing stays locked."""

import asyncio
import threading
from typing import Any, cast

import pytest
from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.transactions import transaction

from cache_blocks import TRANSCRIPT, TieredCache, cached_task
from cache_blocks import events as actions
from tests.prefect.observed import HIT, MISS, Calls, Gate, leases_held, outcomes, recorded, run_async

EQUAL_CALLS = 16


class Crowd:
    """Lets a computation go on once everybody has looked, or when nobody else can be waiting."""

    def __init__(self, cache: TieredCache, size: int) -> None:
        self._cache = cache
        self._size = size
        self._all_looked = threading.Event()
        self._record = cache.record_lookup

    def record_lookup(self, key: str, lookup: Any) -> None:
        self._record(key, lookup)
        if self._cache.metrics.total >= self._size:
            self._all_looked.set()

    def wait(self) -> None:
        assert self._all_looked.wait(60)


@pytest.fixture
def crowd(cache: TieredCache, monkeypatch: pytest.MonkeyPatch) -> Crowd:
    """All equal calls have missed before the one that computes returns."""
    crowd = Crowd(cache, EQUAL_CALLS)
    monkeypatch.setattr(cache, "record_lookup", crowd.record_lookup)
    return crowd


@pytest.mark.promise("One computation per key", tries="16 task runs")
def test_sixteen_equal_calls_in_one_map_compute_once(cache: TieredCache, crowd: Crowd) -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    def number(text: str) -> list[int]:
        del text
        crowd.wait()
        return [calls.note()]

    @flow(task_runner=cast("Any", ThreadPoolTaskRunner(max_workers=EQUAL_CALLS)))
    def all_at_once() -> list[Any]:
        return number.map(["x"] * EQUAL_CALLS).result()

    results = all_at_once()

    assert results == [[1]] * EQUAL_CALLS
    assert calls.count == 1
    assert outcomes(cache) == [MISS] * EQUAL_CALLS
    assert len(recorded(cache, actions.SHARED)) == EQUAL_CALLS - 1
    assert leases_held(cache) == []
    assert len({id(result) for result in results}) == EQUAL_CALLS


def test_sixteen_equal_async_calls_compute_once(cache: TieredCache, crowd: Crowd) -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    async def number(text: str) -> int:
        del text
        await asyncio.to_thread(crowd.wait)
        return calls.note()

    @flow
    async def all_at_once() -> list[int]:
        return await asyncio.gather(*(number("x") for _ in range(EQUAL_CALLS)))

    assert run_async(all_at_once()) == [1] * EQUAL_CALLS
    assert calls.count == 1
    assert outcomes(cache) == [MISS] * EQUAL_CALLS
    assert len(recorded(cache, actions.SHARED)) == EQUAL_CALLS - 1
    assert leases_held(cache) == []


def test_those_who_wait_for_a_computation_that_fails_compute_themselves(cache: TieredCache) -> None:
    calls, gate = Calls(), Gate()

    @cached_task(kind=TRANSCRIPT)
    def fails_first(text: str) -> int:
        if calls.note() == 1:
            gate.pass_through()
            raise ValueError(text)
        return calls.count

    @flow(task_runner=cast("Any", ThreadPoolTaskRunner(max_workers=2)))
    def both() -> list[Any]:
        first = fails_first.submit("x")
        assert gate.begun.wait(60)
        second = fails_first.submit("x")
        gate.release.set()
        return [first.result(raise_on_failure=False), second.result(raise_on_failure=False)]

    failed, computed = both()
    assert isinstance(failed, ValueError)
    assert computed == 2
    assert leases_held(cache) == []


@pytest.mark.parametrize("nested", [False, True], ids=["transaction", "nested transaction"])
@pytest.mark.promise("Equal calls in one transaction or task do not deadlock")
def test_equal_calls_in_one_transaction_do_not_wait_for_each_other(cache: TieredCache, *, nested: bool) -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    def number(text: str) -> int:
        del text
        return calls.note()

    @flow
    def in_transactions() -> list[int]:
        with transaction():
            if not nested:
                return [number("x"), number("x")]
            first = number("x")
            with transaction():
                return [first, number("x"), number("x")]

    assert set(in_transactions()) == {1}
    assert calls.count == 1
    assert outcomes(cache)[:2] == [MISS, HIT]
    assert leases_held(cache) == []


def test_equal_async_calls_in_one_transaction_do_not_wait_for_each_other(cache: TieredCache) -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    async def number(text: str) -> int:
        del text
        await asyncio.sleep(0)
        return calls.note()

    @flow
    async def in_transaction() -> list[int]:
        with transaction():
            return [await number("x"), await number("x")]

    assert run_async(in_transaction()) == [1, 1]
    assert leases_held(cache) == []


def test_a_task_that_calls_its_equal_computes_inside_itself_and_does_not_wait(cache: TieredCache) -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    def number(text: str) -> int:
        return calls.note() + (number(text) if calls.count < 3 else 0)

    assert number("x") == 6
    assert leases_held(cache) == []


def test_a_rolled_back_transaction_keeps_a_result_that_was_true_all_the_same(cache: TieredCache) -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    def number(text: str) -> int:
        del text
        return calls.note()

    def roll_back() -> None:
        with transaction():
            number("x")
            raise ValueError("roll back")

    with pytest.raises(ValueError, match="roll back"):
        roll_back()
    assert number("x") == 1
    assert outcomes(cache) == [MISS, HIT]


def test_a_cancelled_async_task_leaves_no_lease_and_the_next_computes(cache: TieredCache) -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT, cache_ignore=("begun",))
    async def number(text: str, begun: asyncio.Event) -> int:
        del text
        if calls.note() == 1:
            begun.set()
            await asyncio.Event().wait()
        return calls.count

    async def cancel_then_call() -> int:
        begun = asyncio.Event()
        cancelled = asyncio.ensure_future(number("x", begun))
        await begun.wait()
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        return await number("x", begun)

    assert run_async(cancel_then_call()) == 2
    assert leases_held(cache) == []


def test_a_task_that_is_cancelled_while_it_waits_for_another_leaves_no_lease(cache: TieredCache) -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT, cache_ignore=("begun", "go_on"))
    async def number(text: str, begun: asyncio.Event, go_on: asyncio.Event) -> int:
        del text
        begun.set()
        await go_on.wait()
        return calls.note()

    async def cancel_the_waiting() -> int:
        begun, go_on = asyncio.Event(), asyncio.Event()
        computing = asyncio.ensure_future(number("x", begun, go_on))
        await begun.wait()
        waiting = asyncio.ensure_future(number("x", begun, go_on))
        while cache.metrics.misses < 2:  # noqa: ASYNC110 - the second has looked; that it waits shows in no event
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        go_on.set()
        return await computing

    assert run_async(cancel_the_waiting()) == 1
    assert calls.count == 1
    assert leases_held(cache) == []


@pytest.mark.promise("No lease is left behind", tries="100 task runs, sync and async, some of which fail")
def test_a_hundred_task_runs_leave_no_lease(cache: TieredCache) -> None:
    @cached_task(kind=TRANSCRIPT)
    def number(value: int) -> int:
        if value % 9 == 8:
            raise ValueError(value)
        return value

    @cached_task(kind=TRANSCRIPT)
    async def later(value: int) -> int:
        await asyncio.sleep(0)
        if value % 9 == 8:
            raise ValueError(value)
        return value

    @flow(task_runner=cast("Any", ThreadPoolTaskRunner(max_workers=8)))
    def in_threads() -> list[Any]:
        futures = number.map([run // 2 for run in range(50)])
        return [future.result(raise_on_failure=False) for future in futures]

    @flow
    async def in_coroutines() -> list[Any]:
        return await asyncio.gather(*(later(run // 2) for run in range(50)), return_exceptions=True)

    for answers in (in_threads(), run_async(in_coroutines())):
        for run, answer in enumerate(answers):
            assert isinstance(answer, ValueError) if run // 2 % 9 == 8 else answer == run // 2
    assert leases_held(cache) == []
    assert cast("Any", cache.parts.leases)._held == {}
