"""Deciding needs no tier: a walk is told what tiers answered and says what follows."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_blocks.entry import Entry, Lookup, Outcome
from cache_blocks.kinds import (
    AI_ENHANCEMENT,
    AUDIO_PREPROCESSING,
    DESCRIPTOR_BYTES,
    SEARCH_RESULTS,
    TRANSCRIPT,
    CacheKind,
)
from cache_blocks.plan import NEVER_SEEN, UNKNOWN_GENERATION, Request, TierAnswer, Walk, judge, placement, promotions
from cache_blocks.testing import entry_for

if TYPE_CHECKING:
    from collections.abc import Mapping

NOW = 1_700_000_000.0
KEY = "transcript:1f2e"
TIERS = (("redis", True), ("sql", True), ("object_store", False))
ALL = frozenset({"redis", "sql", "object_store"})


def entry(**changes: object) -> Entry:
    return replace(entry_for(now=NOW, tags=("recording:a",)), **changes)  # pyright: ignore[reportArgumentType]


ZEROS = dict.fromkeys(entry().scopes, 0)


def test_judge_accepts_what_nothing_speaks_against() -> None:
    verdict = judge(entry(), ZEROS, NOW)
    assert verdict is not None
    assert verdict.is_hit


@pytest.mark.parametrize("late", [0.0, 0.001, 90.0, 86400.0 * 3])
def test_judge_refuses_at_and_after_the_end(late: float) -> None:
    verdict = judge(entry(), ZEROS, entry().expires_at + late)
    assert verdict is not None
    assert verdict.outcome is Outcome.EXPIRED
    assert "ago" in verdict.reason


@pytest.mark.parametrize("scope", list(ZEROS))
def test_judge_refuses_when_any_scope_was_invalidated(scope: str) -> None:
    verdict = judge(entry(), ZEROS | {scope: 1}, NOW)
    assert verdict is not None
    assert verdict.outcome is Outcome.INVALIDATED
    assert scope.split(":", maxsplit=1)[0] in verdict.reason


@pytest.mark.parametrize("scope", list(ZEROS))
def test_judge_says_nothing_while_a_scope_is_unknown(scope: str) -> None:
    known = {name: number for name, number in ZEROS.items() if name != scope}
    assert judge(entry(), known, NOW) is None


def test_an_unknown_scope_does_not_hide_a_known_invalidation() -> None:
    verdict = judge(entry(), {"all": 0, "tag:recording:a": 3}, NOW)
    assert verdict is not None
    assert verdict.outcome is Outcome.INVALIDATED


numbers = st.integers(0, 3)


@given(
    mine=st.tuples(*[numbers] * 4),
    known=st.dictionaries(st.sampled_from(list(ZEROS)), numbers),
    left=st.floats(-10, 10),
)
def test_a_hit_is_neither_expired_nor_invalidated_nor_of_unknown_generation(
    mine: tuple[int, ...], known: Mapping[str, int], left: float
) -> None:
    candidate = entry(generations=mine, expires_at=NOW + left)
    verdict = judge(candidate, known, NOW)
    fine = candidate.expires_at > NOW and dict(known) == dict(zip(candidate.scopes, mine, strict=True))
    assert (verdict is not None and verdict.is_hit) == fine


@st.composite
def answers(draw: st.DrawFn) -> list[TierAnswer | None]:
    """What three tiers say, None for one that is down."""
    drawn: list[TierAnswer | None] = []
    for tier, knows in TIERS:
        if draw(st.booleans()):
            drawn.append(None)
            continue
        candidate = entry(
            generations=tuple(draw(st.integers(0, 1)) for _ in ZEROS),
            expires_at=NOW + draw(st.sampled_from([-5, 5])),
            fence=draw(st.integers(1, 3)),
        )
        entries = {KEY: candidate} if draw(st.booleans()) else {}
        corrupt = {KEY: "damaged"} if not entries and draw(st.booleans()) else {}
        known = {scope: draw(st.integers(0, 1)) for scope in ZEROS if knows and draw(st.booleans())}
        elsewhere = {KEY: draw(st.integers(1, 3))} if tier == "sql" and not entries and draw(st.booleans()) else {}
        drawn.append(TierAnswer(entries, corrupt, known, elsewhere))
    return drawn


@given(answers())
def test_whatever_the_tiers_answer_a_walk_serves_nothing_stale(said: list[TierAnswer | None]) -> None:
    walk = Walk([Request(KEY, ("recording:a",))], NOW)
    for (tier, knows), answer in zip((*TIERS, *TIERS[:2]), (*said, *said[:2]), strict=True):
        question = walk.question(tier, knows_generations=knows)
        if question is None:
            continue
        if answer is None:
            walk.fail(tier, question, "down")
        else:
            walk.take(tier, answer)
    found = walk.finish()[KEY]
    assert found.is_hit == (found.entry is not None)
    assert found.is_hit or found.reason
    if found.entry is not None:
        assert found.entry.expires_at > NOW
        for scope, number in zip(found.entry.scopes, found.entry.generations, strict=True):
            assert walk.generations[scope] == number
        if found.tier == "object_store":
            assert said[1] is None or found.entry.fence >= said[1].elsewhere.get(KEY, 0)


def test_a_tier_is_asked_only_for_what_is_still_open() -> None:
    walk = Walk([Request("transcript:a"), Request("transcript:b")], NOW)
    first = walk.question("redis", knows_generations=True)
    assert first is not None
    walk.take(
        "redis", TierAnswer({"transcript:a": entry_for("transcript:a", now=NOW)}, generations=_zeros(first.scopes))
    )
    second = walk.question("sql", knows_generations=True)
    assert second is not None
    assert second.keys == ("transcript:b",)
    assert second.scopes == (), "all are known by now"


def test_a_tier_is_asked_nothing_twice() -> None:
    walk = Walk([Request(KEY)], NOW)
    assert walk.question("redis", knows_generations=True)
    walk.take("redis", TierAnswer())
    assert walk.question("redis", knows_generations=True) is None


def test_tags_that_an_entry_brings_are_asked_for() -> None:
    walk = Walk([Request(KEY)], NOW)
    question = walk.question("redis", knows_generations=True)
    assert question is not None
    walk.take("redis", TierAnswer({KEY: entry()}, generations=_zeros(question.scopes)))
    again = walk.question("redis", knows_generations=True)
    assert again is not None
    assert (again.keys, again.scopes) == ((), ("tag:recording:a",))
    walk.take("redis", TierAnswer(generations={"tag:recording:a": 0}))
    assert walk.finish()[KEY].tier == "redis"


def test_a_generation_that_cannot_be_learnt_is_a_miss() -> None:
    walk = Walk([Request(KEY, ("recording:a",))], NOW)
    walk.question("redis", knows_generations=True)
    walk.take("redis", TierAnswer({KEY: entry()}))
    question = walk.question("sql", knows_generations=True)
    assert question is not None
    walk.fail("sql", question, "timed out")
    found = walk.finish()[KEY]
    assert found.outcome is Outcome.TIER_DOWN
    assert "timed out" in found.reason or UNKNOWN_GENERATION in found.reason


def test_an_object_older_than_its_row_does_not_count() -> None:
    walk = Walk([Request(KEY, ("recording:a",))], NOW)
    walk.question("sql", knows_generations=True)
    walk.take("sql", TierAnswer(generations=ZEROS, elsewhere={KEY: 5}))
    walk.question("object_store", knows_generations=False)
    walk.take("object_store", TierAnswer({KEY: entry(fence=4)}))
    assert walk.finish()[KEY].outcome is Outcome.MISS


def test_the_object_store_is_spared_where_it_can_have_nothing() -> None:
    walk = Walk([Request(KEY, replicated=False)], NOW)
    walk.question("sql", knows_generations=True)
    walk.take("sql", TierAnswer(generations=ZEROS))
    assert walk.question("object_store", knows_generations=False) is None


@pytest.mark.parametrize(
    "worse, better",
    [
        (Outcome.CORRUPT, Outcome.INVALIDATED),
        (Outcome.INVALIDATED, Outcome.EXPIRED),
        (Outcome.EXPIRED, Outcome.TIER_DOWN),
    ],
)
def test_the_most_telling_reason_wins(worse: Outcome, better: Outcome) -> None:
    for order in ((worse, better), (better, worse)):
        walk = Walk([Request(KEY, ("recording:a",))], NOW)
        for (tier, knows), outcome in zip(TIERS, order, strict=False):
            question = walk.question(tier, knows_generations=knows)
            assert question is not None
            match outcome:
                case Outcome.CORRUPT:
                    walk.take(tier, TierAnswer(corrupt={KEY: "damaged"}))
                case Outcome.INVALIDATED:
                    walk.take(tier, TierAnswer({KEY: entry(generations=(7, 0, 0, 0))}, generations=ZEROS))
                case Outcome.EXPIRED:
                    walk.take(tier, TierAnswer({KEY: entry(expires_at=NOW - 1)}, generations=ZEROS))
                case _:
                    walk.fail(tier, question, "down")
        assert walk.finish()[KEY].outcome is worse


def test_never_seen_is_a_reason_too() -> None:
    assert Walk([Request(KEY)], NOW).finish()[KEY] == Lookup(Outcome.MISS, reason=NEVER_SEEN)


@pytest.mark.parametrize(
    "kind, size, places",
    [
        (TRANSCRIPT, 1, ALL),
        (TRANSCRIPT, TRANSCRIPT.redis_max_bytes, ALL),
        (TRANSCRIPT, TRANSCRIPT.redis_max_bytes + 1, {"sql", "object_store"}),
        (TRANSCRIPT, TRANSCRIPT.sql_max_bytes + 1, {"object_store"}),
        (AI_ENHANCEMENT, 1, {"redis", "sql"}),
        (AI_ENHANCEMENT, AI_ENHANCEMENT.sql_max_bytes + 1, {"object_store"}),
        (AUDIO_PREPROCESSING, DESCRIPTOR_BYTES, {"redis", "sql"}),
        (AUDIO_PREPROCESSING, DESCRIPTOR_BYTES + 1, {"object_store"}),
        (SEARCH_RESULTS, SEARCH_RESULTS.sql_max_bytes, {"sql"}),
        (SEARCH_RESULTS, SEARCH_RESULTS.sql_max_bytes + 1, set[str]()),
        (CacheKind("slow", ttl=timedelta(1), tiers=frozenset({"sql"})), 1, {"sql"}),
    ],
)
def test_where_an_entry_lives(kind: CacheKind, size: int, places: set[str]) -> None:
    assert placement(kind, size) == places


@pytest.mark.parametrize(
    "found_in, places, faster",
    [
        ("redis", ALL, ()),
        ("sql", ALL, ("redis",)),
        ("object_store", ALL, ("redis", "sql")),
        ("sql", {"sql"}, ()),
        ("object_store", {"object_store"}, ("sql",)),
    ],
)
def test_a_hit_is_promoted_to_the_faster_tiers_that_may_have_it(
    found_in: str, places: set[str], faster: tuple[str, ...]
) -> None:
    hit = Lookup(Outcome.HIT, found_in, entry(placement=frozenset(places)))
    assert promotions(hit, ["redis", "sql", "object_store"]) == faster


def test_the_in_process_tier_takes_what_redis_may_have() -> None:
    assert promotions(Lookup(Outcome.HIT, "sql", entry()), ["memory", "sql", "object_store"]) == ("memory",)


def _zeros(scopes: tuple[str, ...]) -> dict[str, int]:
    return dict.fromkeys(scopes, 0)
