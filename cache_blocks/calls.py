"""One call whose result is cached, and what a lookup of it found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cache_blocks.entry import NO_VALUE, Lookup, scopes_of
from cache_blocks.kinds import CacheKind
from cache_blocks.plan import Request
from cache_blocks.records import record


@record
class Call:
    """One call whose result is cached.

    Attributes:
        key: ``kind:digest``.
        kind: Policy of the result.
        tags: Labels under which it can be invalidated.
        annotation: What the value comes back as.
        manifest: Makes the named parts of the key, which only a miss needs.
        expires_in: Seconds that shorten the kind's lifetime, if given.
        private: Whether the result is sealed, and key and tags are names that say nothing; see `cache_blocks.private`.
    """

    key: str
    kind: CacheKind
    tags: tuple[str, ...] = ()
    annotation: Any = Any
    manifest: Callable[[], Mapping[str, Any]] = dict
    expires_in: float | None = None
    private: bool = False

    @property
    def request(self) -> Request:
        """The lookup that this call begins with."""
        return Request(self.key, self.tags, replicated=self.kind.replica, private=self.private)

    @property
    def scopes(self) -> tuple[str, ...]:
        """Scopes whose invalidation makes the result a miss."""
        return scopes_of(self.key, self.tags)


@record
class Found:
    """A lookup with its decoded value, `NO_VALUE` unless it is a hit."""

    lookup: Lookup
    value: Any = NO_VALUE

    def costing(self, seconds: float) -> Found:
        """Return the same, with what it cost."""
        return Found(self.lookup.costing(seconds), self.value)
