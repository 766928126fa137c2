"""Lesson 5: once `invalidate` has returned, nobody is served what was computed before it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from cache_blocks import NO_VALUE, SEARCH_RESULTS, TRANSCRIPT, CacheSettings, TieredCache
from cache_blocks.errors import InvalidKeyError

if TYPE_CHECKING:
    from collections.abc import Generator


@pytest.fixture(params=["embedded", "redis"])
def both(request: pytest.FixtureRequest) -> Generator[tuple[TieredCache, TieredCache]]:
    """Two caches over the same servers, as two processes have them."""
    settings = CacheSettings()
    if request.param == "redis":
        settings = CacheSettings(redis_url=request.getfixturevalue("redis_url"))
    caches = TieredCache(settings), TieredCache(settings)
    yield caches
    for cache in caches:
        cache.close()


@pytest.mark.parametrize(
    "scope, gone",
    [
        ({"key": "transcript:1"}, {"transcript:1"}),
        ({"kind": TRANSCRIPT}, {"transcript:1", "transcript:2"}),
        ({"kind": "transcript"}, {"transcript:1", "transcript:2"}),
        ({"tag": "recording:a"}, {"transcript:1", "search-results:1"}),
        ({}, {"transcript:1", "transcript:2", "search-results:1"}),
        ({"tag": "recording:never seen"}, set[str]()),
    ],
    ids=["key", "kind", "kind by name", "tag", "everything", "nothing"],
)
def test_by_key_kind_tag_or_everything(
    both: tuple[TieredCache, TieredCache], scope: dict[str, Any], gone: set[str]
) -> None:
    mine, other = both
    mine.put("transcript:1", "a", kind=TRANSCRIPT, tags=["recording:a", "model:tiny"])
    mine.put("transcript:2", "b", kind=TRANSCRIPT, tags=["recording:b", "model:tiny"])
    mine.put("search-results:1", "c", kind=SEARCH_RESULTS, tags=["recording:a"])
    keys = ["transcript:1", "transcript:2", "search-results:1"]
    assert NO_VALUE not in other.get_many(keys).values(), "it has copies of all of them now"
    done = mine.invalidate(**scope)
    assert done.entries == len(gone)
    assert {"sql", "object_store"} <= set(done.told)
    for cache in both:
        assert {key for key, value in cache.get_many(keys).items() if value is NO_VALUE} == gone


def test_what_is_computed_afterwards_counts(both: tuple[TieredCache, TieredCache]) -> None:
    mine, other = both
    mine.put("transcript:1", "old", kind=TRANSCRIPT)
    other.get("transcript:1")
    for value in ("new", "newer"):
        mine.invalidate(key="transcript:1")
        assert other.get_or_compute("transcript:1", lambda value=value: value, kind=TRANSCRIPT) == value
        assert mine.get("transcript:1") == value


@pytest.mark.parametrize(
    "scope",
    [{"key": "transcript:1"}, {"kind": TRANSCRIPT}, {"tag": "recording:a"}, {}],
    ids=["key", "kind", "tag", "everything"],
)
@pytest.mark.promise("An invalidated result is never served")
def test_a_slow_writer_cannot_bring_back_what_was_invalidated_meanwhile(
    both: tuple[TieredCache, TieredCache], scope: dict[str, Any]
) -> None:
    slow, other = both
    started, go_on = threading.Event(), threading.Event()

    def compute() -> str:
        started.set()
        assert go_on.wait(30)
        return "computed from what was true before"

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(slow.get_or_compute, "transcript:1", compute, kind=TRANSCRIPT, tags=["recording:a"])
        assert started.wait(30)
        other.invalidate(**scope)
        go_on.set()
        assert writer.result(30) == "computed from what was true before"
    for cache in both:
        assert not cache.lookup("transcript:1").is_hit
        assert cache.get("transcript:1") is NO_VALUE


def test_a_tag_that_the_reader_does_not_know_of_counts_as_well(both: tuple[TieredCache, TieredCache]) -> None:
    mine, other = both
    mine.put("transcript:1", "a", kind=TRANSCRIPT, tags=["recording:a"])
    assert other.get("transcript:1") == "a"
    mine.invalidate(tag="recording:a")
    assert other.get("transcript:1") is NO_VALUE


@pytest.mark.parametrize(
    "scope", [{"key": "no key"}, {"kind": "No Kind"}, {"tag": ""}, {"tag": "a\n"}, {"key": "transcript:1", "tag": "x"}]
)
def test_what_is_not_one_well_formed_scope_is_refused(cache: TieredCache, scope: dict[str, str]) -> None:
    with pytest.raises(InvalidKeyError):
        cache.invalidate(**scope)
