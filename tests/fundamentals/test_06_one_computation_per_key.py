"""Lesson 6: however many ask at the same time, one computes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, cast

import pytest

from cache_blocks import TRANSCRIPT, CacheSettings, TieredCache, record_usage
from cache_blocks.leases import LeaseView

if TYPE_CHECKING:
    from collections.abc import Generator

THREADS = 8


@pytest.fixture(params=["embedded", "postgres", "redis"])
def cache(request: pytest.FixtureRequest) -> Generator[TieredCache]:
    settings: dict[str, str] = {}
    if request.param == "postgres":
        settings["database_url"] = cast("str", request.getfixturevalue("postgres_url"))
    if request.param == "redis":
        settings["redis_url"] = cast("str", request.getfixturevalue("redis_url"))
    cache = TieredCache(CacheSettings(**settings, lease_seconds=60, redis_timeout_seconds=10))  # pyright: ignore[reportArgumentType]
    yield cache
    cache.close()


def all_at_once(ask: Callable[[int], str]) -> list[str | BaseException]:
    start = threading.Barrier(THREADS)

    def one(number: int) -> str | BaseException:
        start.wait(30)
        try:
            return ask(number)
        except RuntimeError as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(one, range(THREADS)))


@pytest.mark.promise("One computation per key")
def test_one_computes_and_the_others_take_its_result(cache: TieredCache) -> None:
    computed: list[int] = []
    all_have_missed = threading.Semaphore(0)
    lookups = cache.peek

    def peek(*arguments: object) -> object:
        found = lookups(*arguments)  # pyright: ignore[reportArgumentType]
        all_have_missed.release()
        return found

    cache.peek = peek  # pyright: ignore[reportAttributeAccessIssue]

    def ask(number: int) -> str:
        def compute() -> str:
            computed.append(number)
            for _ in range(THREADS):
                assert all_have_missed.acquire(timeout=10)
            return f"by {number}"

        return cache.get_or_compute("transcript:1", compute, kind=TRANSCRIPT)

    answers = all_at_once(ask)
    assert len(computed) == 1
    assert set(answers) == {f"by {computed[0]}"}
    assert cache.metrics.shared == THREADS - 1
    assert cache.metrics.unleased == 0


def test_other_keys_do_not_wait(cache: TieredCache) -> None:
    together = threading.Barrier(THREADS)

    def ask(number: int) -> str:
        return cache.get_or_compute(f"transcript:{number}", lambda: str(together.wait(60)), kind=TRANSCRIPT)

    assert len(set(all_at_once(ask))) == THREADS


def test_a_failure_is_no_result_and_lets_the_waiters_go_on_side_by_side(cache: TieredCache) -> None:
    """If they went on one after another, the second computation would never meet the others."""
    first = threading.Event()
    others = threading.Barrier(THREADS - 1)
    waiting = threading.Semaphore(0)
    view = cache.parts.leases.view

    def seen(key: str) -> LeaseView:
        waiting.release()
        return view(key)

    cache.parts.leases.view = seen
    lock = threading.Lock()

    def compute() -> str:
        with lock:
            is_first = not first.is_set()
            first.set()
        if is_first:
            for _ in range(THREADS * 3):  # by then every other one has seen whose turn it is
                assert waiting.acquire(timeout=10)
            raise RuntimeError("the audio is broken")
        others.wait(20)
        return "computed"

    answers = all_at_once(lambda _: cache.get_or_compute("transcript:1", compute, kind=TRANSCRIPT))
    assert sorted(str(answer) for answer in answers) == ["computed"] * (THREADS - 1) + ["the audio is broken"]


def test_an_equal_call_inside_a_computation_does_not_wait_for_itself(cache: TieredCache) -> None:
    def inner() -> str:
        return cache.get_or_compute("transcript:1", lambda: "inner", kind=TRANSCRIPT)

    assert cache.get_or_compute("transcript:1", lambda: f"outer of {inner()}", kind=TRANSCRIPT) == "outer of inner"


def test_what_a_computation_consumed_is_kept_with_its_result(cache: TieredCache) -> None:
    def compute() -> str:
        record_usage(tokens_in=100, audio_seconds=1.5)
        record_usage(tokens_in=20)
        return "text"

    cache.get_or_compute("transcript:1", compute, kind=TRANSCRIPT)
    found = cache.lookup("transcript:1").entry
    assert found is not None
    assert found.usage == {"tokens_in": 120, "audio_seconds": 1.5}
    record_usage(tokens_in=1)  # nobody computes: it does nothing
