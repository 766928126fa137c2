"""One call whose result is cached, and what a lookup of it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cache_blocks.entry import NO_VALUE, Lookup, scopes_of
from cache_blocks.kinds import CacheKind
from cache_blocks.plan import Request


@dataclass(frozen=True, slots=True)
class Call:
    """One call whose result is cached.

    Attributes:
        key: ``kind:digest``.
        kind: Policy of the result.
        tags: Labels under which it can be invalidated.
        annotation: What the value comes back as.
        manifest: Named parts of the key.
        expires_in: Seconds that shorten the kind's lifetime, if given.
    """

    key: str
    kind: CacheKind
    tags: tuple[str, ...] = ()
    annotation: Any = Any
    manifest: Mapping[str, Any] | None = None
    expires_in: float | None = None

    @property
    def request(self) -> Request:
        """The lookup that this call begins with."""
        return Request(self.key, self.tags, replicated=self.kind.replica)

    @property
    def scopes(self) -> tuple[str, ...]:
        """Scopes whose invalidation makes the result a miss."""
        return scopes_of(self.key, self.tags)


@dataclass(frozen=True, slots=True)
class Found:
    """A lookup with its decoded value, `NO_VALUE` unless it is a hit."""

    lookup: Lookup
    value: Any = NO_VALUE
