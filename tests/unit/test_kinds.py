"""A kind that cannot work is refused where it is declared, with the reason."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from cache_blocks.errors import ConfigurationError
from cache_blocks.kinds import (
    AI_ENHANCEMENT,
    AUDIO_PREPROCESSING,
    BUILT_IN_KINDS,
    MIB,
    REDIS_CEILING_BYTES,
    SEARCH_RESULTS,
    TRANSCRIPT,
    USER_PREFERENCES,
    CacheKind,
)

DAY = timedelta(days=1)


@pytest.mark.parametrize(
    "kind, lifetime, tiers",
    [
        (TRANSCRIPT, 30 * DAY, {"redis", "sql", "object_store"}),
        (AI_ENHANCEMENT, 7 * DAY, {"redis", "sql", "object_store"}),
        (AUDIO_PREPROCESSING, 7 * DAY, {"redis", "sql", "object_store"}),
        (SEARCH_RESULTS, DAY, {"redis", "sql"}),
        (USER_PREFERENCES, DAY / 2, {"redis", "sql"}),
    ],
    ids=["transcript", "ai-enhancement", "audio-preprocessing", "search-results", "user-preferences"],
)
def test_the_five_kinds(kind: CacheKind, lifetime: timedelta, tiers: set[str]) -> None:
    assert kind in BUILT_IN_KINDS
    assert (kind.ttl, kind.tiers) == (lifetime, tiers)
    assert str(kind) == kind.name


def test_only_transcripts_are_replicated_and_only_audio_is_file_contents() -> None:
    assert [kind for kind in BUILT_IN_KINDS if kind.replica] == [TRANSCRIPT]
    assert [kind for kind in BUILT_IN_KINDS if kind.large_binary] == [AUDIO_PREPROCESSING]


def test_a_further_kind_is_one_line() -> None:
    assert CacheKind("diarization", ttl=14 * DAY).tiers == {"redis", "sql", "object_store"}


@pytest.mark.parametrize(
    "declaration, reason",
    [
        ({"ttl": None}, "positive timedelta"),
        ({"ttl": 3600}, "positive timedelta"),
        ({"ttl": timedelta(0)}, "nothing is kept for ever"),
        ({"ttl": -DAY}, "nothing is kept for ever"),
        ({"name": ""}, "a name is"),
        ({"name": "Transcript"}, "a name is"),
        ({"name": "a:b"}, "a name is"),
        ({"name": "../x"}, "a name is"),
        ({"name": "x" * 49}, "a name is"),
        ({"tiers": frozenset({"sql", "tape"})}, "unknown tiers.*tape"),
        ({"tiers": frozenset({"redis"})}, "must include 'sql'"),
        ({"tiers": frozenset({"sql"}), "replica": True}, "replica=True needs 'object_store'"),
        ({"tiers": frozenset({"sql", "redis"}), "large_binary": True}, "large_binary=True needs"),
        ({"redis_max_bytes": REDIS_CEILING_BYTES + 1}, "large data into Redis"),
        ({"redis_max_bytes": 100 * MIB}, "large data into Redis"),
    ],
)
def test_a_kind_that_cannot_work_is_refused(declaration: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        CacheKind(**dict[str, Any](name="mine", ttl=DAY) | declaration)


def test_a_kind_without_a_lifetime_is_refused() -> None:
    with pytest.raises(TypeError, match="ttl"):
        CacheKind("mine")  # pyright: ignore[reportCallIssue]
