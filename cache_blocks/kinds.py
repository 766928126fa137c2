"""Kinds of results: one policy each for lifetime, places and sizes.

A further kind is one line::

    DIARIZATION = CacheKind("diarization", ttl=timedelta(days=14))
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from cache_blocks.errors import ConfigurationError

KIB: Final = 1024
MIB: Final = 1024 * KIB
DESCRIPTOR_BYTES: Final = 16 * KIB
"""What a kind of large binary results may put into Redis or SQL: the descriptor, never the contents."""
REDIS_CEILING_BYTES: Final = 8 * MIB
"""No kind may put larger payloads into Redis: one such value delays every other client."""

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,47}")


class CacheTTL:
    """Lifetimes of the built-in kinds."""

    TRANSCRIPT: Final = timedelta(days=30)
    AI_ENHANCEMENT: Final = timedelta(days=7)
    AUDIO_PREPROCESSING: Final = timedelta(days=7)
    SEARCH_RESULTS: Final = timedelta(hours=24)
    USER_PREFERENCES: Final = timedelta(hours=12)


@dataclass(frozen=True)
class CacheKind:
    """A class of results with one policy.

    Attributes:
        name: Lower-case name; the part of every key before the colon.
        ttl: Lifetime of an entry, counted from the end of its computation.
        tiers: Where entries may live, any of ``redis`` (or the in-process hot tier that stands in for it),
            ``sql`` and ``object_store``.
        redis_max_bytes: Larger stored payloads stay out of Redis.
        sql_max_bytes: Larger stored payloads go to the object store, and SQL keeps a pointer.
        replica: Keep a copy in the object store whatever the size, so that the result survives a lost database.
        large_binary: Results are file contents: they go to the object store only, and Redis and SQL keep a
            small descriptor.
        admit_seconds: Results that took less than this to compute are not worth keeping.
        private: Results, what they were computed from and what they are called are kept encrypted, or as digests that
            only who has the key ring can make. Needs ``CACHE_BLOCKS_PRIVATE_KEYS``.

    Raises:
        ConfigurationError: The lifetime is missing, or the places contradict each other.
    """

    name: str
    ttl: timedelta
    tiers: frozenset[str] = frozenset({"redis", "sql", "object_store"})
    redis_max_bytes: int = 256 * KIB
    sql_max_bytes: int = 4 * MIB
    replica: bool = False
    large_binary: bool = False
    admit_seconds: float = 0.0
    private: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "tiers", frozenset(self.tiers))
        for problem in _problems(self):
            raise ConfigurationError(f"kind {self.name!r}: {problem}")

    def __str__(self) -> str:
        return self.name


def _problems(kind: CacheKind) -> list[str]:
    """What is wrong with a declaration, in words that say the way out."""
    found: list[str] = []
    if not _NAME.fullmatch(kind.name):
        found.append("a name is lower-case letters, digits, '-' and '_', starting with a letter, at most 48 long")
    if not isinstance(kind.ttl, timedelta) or kind.ttl <= timedelta(0):  # pyright: ignore[reportUnnecessaryIsInstance]
        found.append("ttl must be a positive timedelta, such as timedelta(days=7); nothing is kept for ever")
    if unknown := kind.tiers - {"redis", "sql", "object_store"}:
        found.append(f"unknown tiers {sorted(unknown)}; there are 'redis', 'sql' and 'object_store'")
    if "sql" not in kind.tiers:
        found.append("tiers must include 'sql': it holds the truth about invalidation and is searched by maintenance")
    if kind.replica and "object_store" not in kind.tiers:
        found.append("replica=True needs 'object_store' among the tiers")
    if kind.large_binary and "object_store" not in kind.tiers:
        found.append("large_binary=True needs 'object_store' among the tiers: file contents live nowhere else")
    if kind.redis_max_bytes > REDIS_CEILING_BYTES:
        found.append(
            f"redis_max_bytes={kind.redis_max_bytes} would put large data into Redis; at most {REDIS_CEILING_BYTES}, "
            "larger payloads are kept in SQL and the object store"
        )
    return found


TRANSCRIPT: Final = CacheKind("transcript", ttl=CacheTTL.TRANSCRIPT, replica=True)
"""Speech turned to text: the most expensive results, replicated to the object store."""
AI_ENHANCEMENT: Final = CacheKind("ai-enhancement", ttl=CacheTTL.AI_ENHANCEMENT)
"""Text improved by a model: costs money; large ones move to the object store."""
AUDIO_PREPROCESSING: Final = CacheKind("audio-preprocessing", ttl=CacheTTL.AUDIO_PREPROCESSING, large_binary=True)
"""Normalised audio: bytes in the object store only, a descriptor in Redis and SQL."""
SEARCH_RESULTS: Final = CacheKind("search-results", ttl=CacheTTL.SEARCH_RESULTS, tiers=frozenset({"redis", "sql"}))
"""Answers of the full-text search."""
USER_PREFERENCES: Final = CacheKind(
    "user-preferences", ttl=CacheTTL.USER_PREFERENCES, tiers=frozenset({"redis", "sql"})
)
"""A user's language, style and vocabulary."""

BUILT_IN_KINDS: Final = (TRANSCRIPT, AI_ENHANCEMENT, AUDIO_PREPROCESSING, SEARCH_RESULTS, USER_PREFERENCES)
