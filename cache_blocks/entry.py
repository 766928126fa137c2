"""What the cache keeps and what a lookup says: `Entry`, `Outcome`, `Lookup`, `NO_VALUE`."""

from __future__ import annotations

import re
from dataclasses import field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, final

from cache_blocks.errors import InvalidKeyError
from cache_blocks.records import record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_KEY = re.compile(r"(?P<kind>[a-z][a-z0-9_-]{0,47}):(?P<digest>[A-Za-z0-9][A-Za-z0-9_.-]{0,159})")
_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
MAX_TAG_LENGTH: Final = 200
MAX_TAGS: Final = 32
SCOPES_WITHOUT_TAGS: Final = 3
"""How many scopes every key has; each tag is one more. See `scopes_of`."""


@final
class NoValue:
    """Type of `NO_VALUE`: "nothing cached", which differs from a cached ``None``. It is falsy."""

    _instance: NoValue | None = None

    def __new__(cls) -> NoValue:
        """Return the one instance."""
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cls._instance

    def __repr__(self) -> str:
        return "NO_VALUE"

    def __bool__(self) -> bool:
        return False

    def __reduce__(self) -> str:
        """Stay the one instance when pickled."""
        return "NO_VALUE"


NO_VALUE: Final = NoValue()


class Outcome(StrEnum):
    """What a lookup found."""

    HIT = "hit"
    MISS = "miss"
    EXPIRED = "expired"
    INVALIDATED = "invalidated"
    CORRUPT = "corrupt"
    TIER_DOWN = "tier_down"
    BYPASSED = "bypassed"


@record
class Entry:
    """One cached result.

    Attributes:
        key: ``kind:digest``.
        namespace: Environment that the entry belongs to.
        created_at: End of the computation, in seconds since the epoch.
        expires_at: The one absolute end of all copies, in seconds since the epoch.
        compute_seconds: How long computing took; what a hit saves.
        tags: Labels under which the entry can be invalidated.
        generations: Numbers of `scopes` when computing began, in that order.
        fence: Number that rises with every computation of a key; of two writers the higher one wins.
        placement: Tiers that may hold the entry.
        size: Bytes of the payload before compression.
        payload: LZ4 frame over JSON.
        blobs: Size in bytes, by digest, of the blobs that the payload refers to.
        marks: What the object store tells their stored bytes apart by, by digest; see `blobs`.
        usage: What the computation consumed, such as ``{"audio_seconds": 12.5}``.
        manifest: Named parts that went into the key; empty in copies that need to stay small.
    """

    key: str
    namespace: str
    created_at: float
    expires_at: float
    compute_seconds: float
    tags: tuple[str, ...]
    generations: tuple[int, ...]
    fence: int
    placement: frozenset[str]
    size: int
    payload: bytes
    blobs: Mapping[str, int] = field(default_factory=dict[str, int])
    marks: Mapping[str, str] = field(default_factory=dict[str, str])
    usage: Mapping[str, float] = field(default_factory=dict[str, float])
    manifest: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def kind(self) -> str:
        """Name of the kind: the part of the key before the colon."""
        return self.key.partition(":")[0]

    @property
    def scopes(self) -> tuple[str, ...]:
        """Scopes whose generations decide whether the entry is still valid."""
        return scopes_of(self.key, self.tags)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the compressed payload."""
        return len(self.payload)


@record
class Lookup:
    """Answer to one lookup.

    Attributes:
        outcome: What was found.
        tier: Tier that answered a hit, or that spoilt the lookup; empty when no tier is to blame.
        entry: The entry of a hit, else None.
        reason: Why it is not a hit, in words for a person; empty for a hit.
        seconds: What the lookup cost.
    """

    outcome: Outcome
    tier: str = ""
    entry: Entry | None = None
    reason: str = ""
    seconds: float = 0.0

    @property
    def is_hit(self) -> bool:
        """Whether there is a valid entry."""
        return self.outcome is Outcome.HIT

    def costing(self, seconds: float) -> Lookup:
        """Return the same answer, with what it cost."""
        return Lookup(self.outcome, self.tier, self.entry, self.reason, seconds)


def scopes_of(key: str, tags: Iterable[str]) -> tuple[str, ...]:
    """Return the scopes of a key: everything, its kind, itself, and each of its tags."""
    kind = key.partition(":")[0]
    return ("all", f"kind:{kind}", f"key:{key}", *(f"tag:{tag}" for tag in tags))


def check_key(key: str) -> str:
    """Return ``key`` if it is ``kind:digest``.

    Raises:
        InvalidKeyError: It is not; such a key could leave its prefix in a tier.
    """
    if not is_key(key):
        raise InvalidKeyError(
            f"{key[:80]!r} is not a key: 'kind:digest' is expected, a kind's name, a colon, and up to 160 letters, "
            "digits, '_', '.' or '-'"
        )
    return key


def is_key(key: str) -> bool:
    """Whether ``key`` is ``kind:digest``."""
    return bool(_KEY.fullmatch(key)) and ".." not in key


def check_namespace(namespace: str) -> str:
    """Return ``namespace`` if it is well-formed, else raise `InvalidKeyError`."""
    if not _NAMESPACE.fullmatch(namespace):
        raise InvalidKeyError(f"{namespace[:80]!r} is not a namespace: 1 to 64 letters, digits, '_' or '-'")
    return namespace


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return the tags sorted and without repeats.

    Raises:
        InvalidKeyError: A tag is empty, too long or holds control characters, or there are too many.
    """
    unique = sorted(set(tags))
    for tag in unique:
        if not tag or len(tag) > MAX_TAG_LENGTH or _CONTROL.search(tag):
            raise InvalidKeyError(
                f"tag {tag[:80]!r}: 1 to {MAX_TAG_LENGTH} characters without control characters are expected"
            )
    if len(unique) > MAX_TAGS:
        raise InvalidKeyError(f"{len(unique)} tags; at most {MAX_TAGS} are kept with an entry")
    return tuple(unique)
