"""Metrics: what events add up to. Pure; the report and the command line show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cache_blocks import events as actions
from cache_blocks.entry import Outcome

if TYPE_CHECKING:
    from cache_blocks.events import CacheEvent


@dataclass(slots=True)
class KindMetrics:
    """Lookups of one kind.

    Attributes:
        hits: Lookups that found a valid entry.
        misses: Lookups that did not; `BYPASSED` ones, which did not look, are not among them.
        bypassed: Calls that looked away, on request or because they could not have a key.
        by_tier: Hits by tier.
        by_outcome: Misses and bypasses by outcome.
        stored_bytes: Bytes of payload that hits brought, as stored.
        seconds_saved: Seconds of computing that hits have spared, less what the lookups cost.
        lookup_seconds: What all lookups cost.
    """

    hits: int = 0
    misses: int = 0
    bypassed: int = 0
    by_tier: Counter[str] = field(default_factory=Counter[str])
    by_outcome: Counter[str] = field(default_factory=Counter[str])
    stored_bytes: int = 0
    seconds_saved: float = 0.0
    lookup_seconds: float = 0.0

    @property
    def total(self) -> int:
        """Number of lookups."""
        return self.hits + self.misses

    @property
    def hit_rate(self) -> float:
        """Share of lookups that hit, 0 to 1; 0 when there were none."""
        return self.hits / self.total if self.total else 0.0

    def add(self, event: CacheEvent) -> None:
        """Count one lookup."""
        self.lookup_seconds += event.seconds
        if event.outcome == Outcome.HIT:
            self.hits += 1
            self.by_tier[event.tier] += 1
            self.stored_bytes += event.stored_bytes
            self.seconds_saved += event.seconds_saved
            return
        self.by_outcome[event.outcome] += 1
        if event.outcome == Outcome.BYPASSED:
            self.bypassed += 1
        else:
            self.misses += 1


@dataclass(slots=True)
class CacheMetrics:
    """Hits and misses, by kind and tier.

    Attributes:
        by_kind: Metrics of each kind that was looked up.
        lost_writes: Writes by tier that the tier did not take.
        shared: Misses that took the result of an equal call instead of computing.
        unleased: Computations without a lease, because the place of leases was down.
        unstored: Results that could not be kept.
        outages: How often a tier went down, by tier.
    """

    by_kind: dict[str, KindMetrics] = field(default_factory=dict[str, KindMetrics])
    lost_writes: Counter[str] = field(default_factory=Counter[str])
    shared: int = 0
    unleased: int = 0
    unstored: int = 0
    outages: Counter[str] = field(default_factory=Counter[str])

    @classmethod
    def from_events(cls, events: Iterable[CacheEvent]) -> CacheMetrics:
        """Return what these events add up to."""
        metrics = cls()
        for event in events:
            metrics.add(event)
        return metrics

    def add(self, event: CacheEvent) -> None:
        """Count one event."""
        match event.action:
            case actions.LOOKUP:
                self.by_kind.setdefault(event.kind, KindMetrics()).add(event)
            case actions.LOST:
                self.lost_writes[event.tier] += 1
            case actions.SHARED:
                self.shared += 1
            case actions.UNLEASED:
                self.unleased += 1
            case actions.UNSTORED:
                self.unstored += 1
            case actions.TIER_DOWN:
                self.outages[event.tier] += 1
            case _:
                pass

    @property
    def hits(self) -> int:
        """Number of hits."""
        return sum(kind.hits for kind in self.by_kind.values())

    @property
    def misses(self) -> int:
        """Number of misses."""
        return sum(kind.misses for kind in self.by_kind.values())

    @property
    def total(self) -> int:
        """Number of lookups."""
        return self.hits + self.misses

    @property
    def hit_rate(self) -> float:
        """Share of lookups that hit, 0 to 1; 0 when there were none."""
        return self.hits / self.total if self.total else 0.0

    @property
    def by_tier(self) -> Counter[str]:
        """Hits by tier."""
        return sum((kind.by_tier for kind in self.by_kind.values()), Counter[str]())

    @property
    def seconds_saved(self) -> float:
        """Seconds of computing that hits have spared, less what their lookups cost."""
        return sum(kind.seconds_saved for kind in self.by_kind.values())
