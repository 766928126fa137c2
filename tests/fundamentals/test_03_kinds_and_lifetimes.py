"""Lesson 3: a kind is one policy for lifetime, places and sizes."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from cache_blocks import (
    AI_ENHANCEMENT,
    NO_VALUE,
    SEARCH_RESULTS,
    TRANSCRIPT,
    USER_PREFERENCES,
    CacheKind,
    TieredCache,
)
from cache_blocks.errors import InvalidKeyError, UnsupportedValueError

if TYPE_CHECKING:
    from tests.fundamentals.conftest import Clock


@pytest.mark.parametrize("kind", [TRANSCRIPT, AI_ENHANCEMENT, SEARCH_RESULTS, USER_PREFERENCES], ids=str)
def test_an_entry_lives_exactly_as_long_as_its_kind_says(kind: CacheKind, cache: TieredCache, clock: Clock) -> None:
    key = f"{kind}:1"
    cache.put(key, "value", kind=kind)
    clock.moved = kind.ttl.total_seconds() - 5
    assert cache.get(key) == "value"
    clock.moved = kind.ttl.total_seconds() + 5
    assert cache.get(key) is NO_VALUE


def test_a_kind_of_ones_own(cache: TieredCache) -> None:
    diarization = CacheKind("diarization", ttl=timedelta(days=14))
    assert cache.get_or_compute("diarization:1", lambda: ["A", "B"], kind=diarization) == ["A", "B"]


def test_a_key_belongs_to_its_kind(cache: TieredCache) -> None:
    with pytest.raises(InvalidKeyError, match="does not belong to kind"):
        cache.put("transcript:1", "x", kind=SEARCH_RESULTS)


def test_what_was_computed_quickly_may_not_be_worth_keeping(cache: TieredCache) -> None:
    costly = CacheKind("costly", ttl=timedelta(days=1), admit_seconds=60)
    assert cache.get_or_compute("costly:1", lambda: "quick", kind=costly) == "quick"
    assert cache.get("costly:1") is NO_VALUE
    cache.put("costly:2", "slow", kind=costly, compute_seconds=61)
    assert cache.get("costly:2") == "slow"


def test_a_result_too_large_for_its_kind_is_returned_and_not_kept(cache: TieredCache) -> None:
    small = CacheKind("small", ttl=timedelta(days=1), tiers=frozenset({"sql"}), sql_max_bytes=1000)
    large = os.urandom(5000).hex()
    assert cache.get_or_compute("small:1", lambda: large, kind=small) == large
    assert cache.get("small:1") is NO_VALUE
    assert cache.metrics.unstored == 1
    with pytest.raises(UnsupportedValueError, match="sql_max_bytes"):
        cache.put("small:2", large, kind=small)


def test_a_result_that_cannot_be_kept_is_returned_all_the_same(
    cache: TieredCache, caplog: pytest.LogCaptureFixture
) -> None:
    odd = object()
    assert cache.get_or_compute("transcript:1", lambda: odd, kind=TRANSCRIPT) is odd
    assert "annotate the task's return type" in caplog.text
    assert cache.metrics.unstored == 1
