"""Misses that happened for the same cause count together, whatever the names, values and times in their reasons."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_blocks.causes import MAX_LETTERS, cause_of, changed_parts
from cache_blocks.entry import Outcome


@pytest.mark.parametrize(
    "outcome, reason, cause",
    [
        (Outcome.HIT, "", ""),
        ("", "redis: refused", ""),
        (Outcome.MISS, "never seen", "never seen"),
        (Outcome.MISS, "", "miss"),
        (Outcome.EXPIRED, "expired 3 h ago", "expired"),
        (Outcome.CORRUPT, "the digest does not fit", "corrupt"),
        (Outcome.TIER_DOWN, "redis: timed out", "tier down"),
        (Outcome.INVALIDATED, "invalidated by kind:transcript at 2026-11-22 02:00 UTC", "invalidated by kind"),
        (Outcome.INVALIDATED, "invalidated by tag:recording:4f1c", "invalidated by tag"),
        (Outcome.INVALIDATED, "invalidated by key at 2026-11-22 02:00 UTC", "invalidated by key"),
        (Outcome.BYPASSED, "Prefect was told to refresh the cache", "Prefect was told to refresh the cache"),
        (Outcome.MISS, "changed: engine.model: tiny.en -> base", "changed: engine.model"),
        (Outcome.MISS, "changed: audio: content changed; cache_version: 3 -> 4", "changed: audio, cache_version"),
        (Outcome.MISS, "changed: source: tasks/audio.py normalise changed", "changed: source"),
        (
            Outcome.MISS,
            "changed: a: 1 -> 2; b: 1 -> 2; c: 1 -> 2; d: 1 -> 2; and 3 more",
            "changed: a, b, c and 1 more",
        ),
    ],
)
def test_a_cause_is_a_reason_without_what_differs_from_time_to_time(outcome: str, reason: str, cause: str) -> None:
    assert cause_of(outcome, reason) == cause


def test_a_value_that_looks_like_a_reason_stays_a_value() -> None:
    assert changed_parts("changed: name: a: b -> c: d") == ("name",)


@given(st.sampled_from(["", *Outcome]), st.text(st.characters(exclude_categories=()), max_size=400))
def test_a_cause_fits_its_column(outcome: str, reason: str) -> None:
    for each in (reason, f"changed: {reason}", f"invalidated by {reason}"):
        assert len(cause_of(outcome, each)) <= MAX_LETTERS
