"""`cached_map` with futures as inputs: stages stream into each other, and what fails stays with its item."""

import threading
from collections.abc import Sequence
from typing import Any, cast

import pytest
from prefect import flow, task, unmapped
from prefect.futures import as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from cache_blocks import TRANSCRIPT, TieredCache, cached_map, cached_task
from cache_blocks.errors import ConfigurationError, CorruptEntryError
from cache_blocks.prefect import batch as batches
from cache_blocks.prefect import futures as futures_module
from cache_blocks.reading import Reader
from tests.prefect.observed import HIT, MISS, Calls, Gate, outcomes

CALLS = Calls()
GATE = Gate()


@pytest.fixture(autouse=True)
def calls() -> Calls:
    CALLS.count = 0
    GATE.begun.clear()
    GATE.release.clear()
    return CALLS


@cached_task(kind=TRANSCRIPT)
def upper(text: str) -> dict[str, str]:
    CALLS.note()
    if text == "slow":
        GATE.pass_through()
    if text == "bad":
        raise ValueError("bad text")
    return {"text": text.upper()}


@cached_task(kind=TRANSCRIPT)
def twice(text: str) -> str:
    CALLS.note()
    return text * 2


def text_of(result: dict[str, str]) -> str:
    return result["text"]


@flow
def two_stages(texts: Sequence[str]) -> list[Any]:
    """Results of the second stage, or the name of the state of what could not run."""
    futures = cached_map(twice, cached_map(upper, texts).then(text_of))
    futures.wait()
    return [future.result() if future.state.is_completed() else future.state.name for future in futures]


def test_stages_stream_into_each_other(calls: Calls, cache: TieredCache) -> None:
    assert two_stages(["a", "b", "c"]) == ["AA", "BB", "CC"]
    assert two_stages(["a", "b", "c"]) == ["AA", "BB", "CC"]
    assert calls.count == 6
    assert outcomes(cache) == [MISS] * 6 + [HIT] * 6


def test_results_of_hits_go_to_the_next_stage_without_a_state_each(
    monkeypatch: pytest.MonkeyPatch, calls: Calls
) -> None:
    two_stages(["a", "b"])
    asked: list[Any] = []

    def ask(future: Any, _: Any) -> None:
        asked.append(future)

    monkeypatch.setattr(futures_module, "resolve_to_final_result", ask)

    assert two_stages(["a", "b"]) == ["AA", "BB"]
    assert calls.count == 4
    assert asked == []


def test_a_hit_that_cannot_be_decoded_any_more_is_computed_for_the_next_stage(
    monkeypatch: pytest.MonkeyPatch, calls: Calls
) -> None:
    two_stages(["a"])
    load = batches.MappedBatch.load
    damaged: list[Any] = []

    def first_is_damaged(batch: batches.MappedBatch, hit: Any) -> Any:
        if not damaged:
            damaged.append(hit)
            _damaged(hit)
        return load(batch, hit)

    monkeypatch.setattr(batches.MappedBatch, "load", first_is_damaged)

    assert two_stages(["a"]) == ["AA"]
    assert damaged
    assert calls.count == 2  # the task run found it in the cache, whole


def test_what_is_only_waited_for_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    @flow
    def work() -> list[str]:
        return cached_map(twice, ["x", "y"], wait_for=cached_map(upper, ["a", "b"])).result()

    assert work() == ["xx", "yy"]
    loads: list[Any] = []
    load = batches.MappedBatch.load

    def counted(batch: batches.MappedBatch, hit: Any) -> Any:
        loads.append(hit)
        return load(batch, hit)

    monkeypatch.setattr(batches.MappedBatch, "load", counted)

    assert work() == ["xx", "yy"]
    assert len(loads) == 2  # of the second batch


def test_a_later_stage_does_not_wait_for_the_whole_of_the_one_before() -> None:
    done: list[str] = []

    @flow(task_runner=cast("Any", ThreadPoolTaskRunner(max_workers=4)))
    def work() -> None:
        slow, quick = cached_map(twice, cached_map(upper, ["slow", "b"]).then(text_of))
        done.append(quick.result(timeout=60))
        assert GATE.begun.wait(60)
        done.append(slow.state.name or "")
        GATE.release.set()
        done.append(slow.result(timeout=60))

    work()

    assert done == ["BB", "Pending", "SLOWSLOW"]


def test_what_follows_a_failed_item_does_not_run_and_the_others_do(calls: Calls) -> None:
    assert two_stages(["a", "bad", "c"]) == ["AA", "NotReady", "CC"]
    assert calls.count == 5


def test_a_derivation_that_fails_is_its_own_items_failure() -> None:
    def fail_on_b(result: dict[str, str]) -> str:
        if result["text"] == "B":
            raise KeyError("no such thing")
        return result["text"]

    @flow
    def work() -> list[str | None]:
        derived = cached_map(upper, ["a", "b"]).then(fail_on_b)
        with pytest.raises(KeyError):
            derived[1].result()
        assert isinstance(derived[1].result(raise_on_failure=False), KeyError)
        futures = cached_map(twice, derived)
        futures.wait()
        return [future.state.name for future in futures]

    assert work() == ["Completed", "NotReady"]
    assert work() == ["Cached", "NotReady"]


def test_derivations_chain_and_feed_plain_tasks() -> None:
    @task
    def shout(text: str) -> str:
        return f"{text}!"

    @flow
    def work() -> list[str]:
        return shout.map(cached_map(upper, ["a", "b"]).then(text_of).then(str.lower)).result()

    assert work() == work() == ["a!", "b!"]


def test_futures_of_plain_tasks_are_inputs_too(calls: Calls) -> None:
    @task
    def make(text: str) -> str:
        return text

    @flow
    def work() -> list[str]:
        return cached_map(twice, make.map(["a", "b"])).result()

    assert work() == work() == ["aa", "bb"]
    assert calls.count == 2


def test_a_future_may_be_the_same_for_all_items() -> None:
    @cached_task(kind=TRANSCRIPT)
    def join(text: str, end: str) -> str:
        return text + end

    @task
    def make_end() -> str:
        return "."

    @flow
    def work() -> list[str]:
        return cached_map(join, ["a", "b"], end=unmapped(make_end.submit())).result()

    assert work() == work() == ["a.", "b."]


def test_nothing_is_looked_up_before_what_it_waits_for(cache: TieredCache) -> None:
    @task
    def hold() -> None:
        GATE.pass_through()

    @flow
    def work() -> tuple[int, list[str]]:
        futures = cached_map(twice, ["a", "b"], wait_for=[hold.submit()])
        assert GATE.begun.wait(60)
        before = cache.metrics.total
        GATE.release.set()
        return before, futures.result()

    assert work() == (0, ["aa", "bb"])


def test_what_waits_for_a_failure_does_not_run(calls: Calls) -> None:
    @task
    def fail() -> None:
        raise ValueError("no")

    @flow
    def work() -> list[str | None]:
        states = cached_map(twice, ["a"], wait_for=[fail.submit()], return_state=True)
        return [state.name for state in states]

    assert work() == ["NotReady"]
    assert calls.count == 0


def test_what_waits_for_a_derivation_that_fails_does_not_run_either(calls: Calls) -> None:
    def fail(_: Any) -> None:
        raise KeyError("no such thing")

    @flow
    def work() -> list[str | None]:
        cached_map(twice, ["b"]).wait()  # a hit from now on
        waited_for = cached_map(upper, ["a"]).then(fail)
        states = cached_map(twice, ["b"], wait_for=waited_for, return_state=True)
        return [state.name for state in states]

    assert work() == work() == ["NotReady"]  # the second time its base is a hit
    assert calls.count == 2


def test_states_are_returned_on_request() -> None:
    @flow
    def work() -> list[tuple[str | None, Any]]:
        states = cached_map(twice, ["a", "b"], return_state=True)
        return [(state.name, state.result()) for state in states]  # pyright: ignore[reportCallIssue]

    assert work() == [("Completed", "aa"), ("Completed", "bb")]
    assert work() == [("Cached", "aa"), ("Cached", "bb")]


def test_misses_go_to_the_runner_that_is_given() -> None:
    names: list[str] = []

    @cached_task(kind=TRANSCRIPT)
    def where(number: int) -> int:
        names.append(threading.current_thread().name)
        return number

    @flow
    def work() -> list[int]:
        with ThreadPoolTaskRunner[int](max_workers=1) as runner:
            return cached_map(where, [1, 2, 3], task_runner=runner).result()

    assert work() == [1, 2, 3]
    assert len(set(names)) == 1


def test_futures_complete_in_any_order_and_time_out() -> None:
    @flow(task_runner=cast("Any", ThreadPoolTaskRunner(max_workers=4)))
    def work() -> list[Any]:
        upper("known")
        futures = cached_map(upper, ["slow", "known"])
        with pytest.raises(TimeoutError):
            futures[0].result(timeout=0.01)
        futures[0].wait(timeout=0.01)
        results: list[Any] = []
        for future in as_completed(futures, timeout=60):
            results.append(future.result())
            GATE.release.set()
        return results

    assert work() == [{"text": "KNOWN"}, {"text": "SLOW"}]


def test_a_hit_that_cannot_be_decoded_any_more_is_computed(monkeypatch: pytest.MonkeyPatch, calls: Calls) -> None:
    @flow
    def work() -> str:
        (future,) = cached_map(twice, ["a"])
        with monkeypatch.context() as damaged:
            damaged.setattr(batches.MappedBatch, "load", _damaged)
            return future.result()

    assert work() == work() == "aa"
    assert calls.count == 1  # the task run found it in the cache, whole


def _damaged(*arguments: Any) -> Any:
    raise CorruptEntryError(f"damaged: {len(arguments)}")


def test_a_lookup_that_breaks_is_a_miss(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    looks = Calls()
    look = Reader.look

    def break_once(reader: Reader, requests: Any) -> Any:
        if looks.note() == 1:
            raise RuntimeError("broken")
        return look(reader, requests)

    @flow
    def work() -> list[str]:
        return cached_map(twice, ["a", "b"]).result()

    monkeypatch.setattr(Reader, "look", break_once)
    assert work() == ["aa", "bb"]
    assert "lookup of 2 items of twice failed for a reason that was not foreseen" in caplog.text


def test_a_runner_that_has_stopped_leaves_nobody_waiting() -> None:
    @flow
    def work() -> Any:
        with ThreadPoolTaskRunner[Any](max_workers=1) as runner:
            stopped = cached_map(twice, upper.map(["slow"]), task_runner=runner)
            assert GATE.begun.wait(60)
        GATE.release.set()
        return stopped[0].result(timeout=60, raise_on_failure=False)

    assert isinstance(work(), RuntimeError)


def test_outside_of_a_flow_there_is_nothing_that_could_compute() -> None:
    with pytest.raises(ConfigurationError, match="outside of a flow"):
        cached_map(twice, ["a"])


def test_pages_follow_the_size_of_results() -> None:
    page = batches.Page()
    assert page.items == 250
    page.learn(250, 250 * 1000)
    assert page.items == batches.PAGE_ITEMS
    page.learn(10, 10 * 1024 * 1024)
    assert page.items == 16
    page.learn(0, 0)
    assert page.items == 16
    page.learn(1, 1 << 30)
    assert page.items == 1


def test_many_pages_keep_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_FIRST_PAGE_ITEMS", 3)
    monkeypatch.setattr(batches, "PAGE_ITEMS", 3)
    numbers = [str(number) for number in range(10)]
    assert two_stages(numbers) == [number * 2 for number in numbers]
    assert two_stages(numbers) == [number * 2 for number in numbers]
