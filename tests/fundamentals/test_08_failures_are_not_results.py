"""Lesson 8: what raises is not cached, and what it raises reaches the caller."""

from __future__ import annotations

import pytest

from cache_blocks import NO_VALUE, TRANSCRIPT, Outcome, TieredCache


@pytest.mark.parametrize("error", [ValueError("bad audio"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_an_exception_is_raised_as_it_is_and_caches_nothing(cache: TieredCache, error: BaseException) -> None:
    def fail() -> str:
        raise error

    with pytest.raises(type(error)) as raised:
        cache.get_or_compute("transcript:1", fail, kind=TRANSCRIPT)
    assert raised.value is error
    assert cache.get("transcript:1") is NO_VALUE
    assert cache.lookup("transcript:1").outcome is Outcome.MISS


def test_after_a_failure_the_next_call_computes_at_once(cache: TieredCache) -> None:
    calls: list[str] = []

    def flaky() -> str:
        calls.append("called")
        if len(calls) < 3:
            raise TimeoutError
        return "text"

    for _ in range(2):
        with pytest.raises(TimeoutError):
            cache.get_or_compute("transcript:1", flaky, kind=TRANSCRIPT)
    assert cache.get_or_compute("transcript:1", flaky, kind=TRANSCRIPT) == "text"
    assert cache.get_or_compute("transcript:1", flaky, kind=TRANSCRIPT) == "text"
    assert len(calls) == 3
