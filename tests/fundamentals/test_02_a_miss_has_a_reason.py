"""Lesson 2: a miss says why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pydantic
import sqlalchemy as sa

from cache_blocks import SEARCH_RESULTS, TRANSCRIPT, Outcome, TieredCache
from cache_blocks.schema import EntryRow, table

if TYPE_CHECKING:
    from tests.fundamentals.conftest import Clock

KEY = "search-results:1"


class Answer(pydantic.BaseModel):
    hits: int


def test_never_seen(cache: TieredCache) -> None:
    found = cache.lookup(KEY)
    assert (found.outcome, found.reason) == (Outcome.MISS, "never seen")


def test_expired(cache: TieredCache, clock: Clock) -> None:
    cache.put(KEY, [], kind=SEARCH_RESULTS)
    clock.moved = SEARCH_RESULTS.ttl.total_seconds() + 7200
    found = cache.lookup(KEY)
    assert (found.outcome, found.reason) == (Outcome.EXPIRED, "expired 2.0 h ago")


def test_invalidated(cache: TieredCache) -> None:
    cache.put(KEY, [], kind=SEARCH_RESULTS, tags=["index:main"])
    cache.invalidate(tag="index:main")
    found = cache.lookup(KEY)
    assert (found.outcome, found.reason) == (Outcome.INVALIDATED, "invalidated by tag:index:main")


def test_corrupt_and_then_gone(cache: TieredCache) -> None:
    cache.put(KEY, [], kind=SEARCH_RESULTS)
    rows = table(EntryRow)
    with cache.parts.database.begin() as connection:
        connection.execute(sa.update(rows).values(envelope=b"flipped by a cosmic ray"))
    fresh = TieredCache()
    found = fresh.lookup(KEY)
    assert (found.outcome, found.tier) == (Outcome.CORRUPT, "sql")
    assert fresh.lookup(KEY).outcome is Outcome.MISS, "the copy has been removed"
    fresh.close()


def test_a_hit_says_where_it_came_from(cache: TieredCache) -> None:
    cache.put("transcript:1", "x", kind=TRANSCRIPT)
    found = cache.lookup("transcript:1")
    assert (found.outcome, found.tier, found.reason) == (Outcome.HIT, "memory", "")
    assert found.entry is not None
    assert found.entry.kind == "transcript"


def test_what_is_not_of_the_type_asked_for_is_computed_anew(cache: TieredCache) -> None:
    """As after a change of the annotation under one and the same `cache_version`."""
    cache.put(KEY, "an answer of an earlier release", kind=SEARCH_RESULTS)
    answer = cache.get_or_compute(KEY, lambda: Answer(hits=3), kind=SEARCH_RESULTS, annotation=Answer)
    assert answer == Answer(hits=3)
    assert cache.get(KEY, annotation=Answer) == Answer(hits=3)
