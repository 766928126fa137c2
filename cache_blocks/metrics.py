"""Metrics: what events add up to. Pure; the report and the command line show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cache_blocks import events as actions
from cache_blocks.entry import Outcome
from cache_blocks.wording import bytes_in_words, counted

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
        money_saved: What computing them again would have cost, in the currency of the settings.
        seconds_saved_by_tier: ``seconds_saved`` by tier.
        money_saved_by_tier: ``money_saved`` by tier.
        lookup_seconds: What all lookups cost.
        computed: Results that were computed.
        compute_seconds: What computing them took.
        money_spent: What computing them cost.
    """

    hits: int = 0
    misses: int = 0
    bypassed: int = 0
    by_tier: Counter[str] = field(default_factory=Counter[str])
    by_outcome: Counter[str] = field(default_factory=Counter[str])
    stored_bytes: int = 0
    seconds_saved: float = 0.0
    money_saved: float = 0.0
    seconds_saved_by_tier: dict[str, float] = field(default_factory=dict[str, float])
    money_saved_by_tier: dict[str, float] = field(default_factory=dict[str, float])
    lookup_seconds: float = 0.0
    computed: int = 0
    compute_seconds: float = 0.0
    money_spent: float = 0.0

    @property
    def total(self) -> int:
        """Number of lookups."""
        return self.hits + self.misses

    @property
    def hit_rate(self) -> float:
        """Share of lookups that hit, 0 to 1; 0 when there were none."""
        return self.hits / self.total if self.total else 0.0

    def add(self, event: CacheEvent, number: int = 1) -> None:
        """Count one lookup, or the sum of several."""
        self.lookup_seconds += event.seconds
        if event.outcome == Outcome.HIT:
            self.hits += number
            self.by_tier[event.tier] += number
            self.stored_bytes += event.stored_bytes
            self._add_savings(event.tier, event.seconds_saved, event.money_saved)
            return
        self.by_outcome[event.outcome] += number
        if event.outcome == Outcome.BYPASSED:
            self.bypassed += number
        else:
            self.misses += number

    def add_computed(self, event: CacheEvent, number: int = 1) -> None:
        """Count one computation, or the sum of several."""
        self.computed += number
        self.compute_seconds += event.seconds
        self.money_spent += event.money

    def merge(self, other: KindMetrics) -> None:
        """Count what another has counted too."""
        self.hits += other.hits
        self.misses += other.misses
        self.bypassed += other.bypassed
        self.by_tier.update(other.by_tier)
        self.by_outcome.update(other.by_outcome)
        self.stored_bytes += other.stored_bytes
        for tier, seconds in other.seconds_saved_by_tier.items():
            self._add_savings(tier, seconds, other.money_saved_by_tier[tier])
        self.lookup_seconds += other.lookup_seconds
        self.computed += other.computed
        self.compute_seconds += other.compute_seconds
        self.money_spent += other.money_spent

    def _add_savings(self, tier: str, seconds: float, money: float) -> None:
        self.seconds_saved += seconds
        self.money_saved += money
        self.seconds_saved_by_tier[tier] = self.seconds_saved_by_tier.get(tier, 0.0) + seconds
        self.money_saved_by_tier[tier] = self.money_saved_by_tier.get(tier, 0.0) + money


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
        requests: To the object store, by what they are billed as: ``put`` (writing and listing), ``get``, ``delete``.
        transfer: Bytes ``up`` to the object store and ``down`` from it.
    """

    by_kind: dict[str, KindMetrics] = field(default_factory=dict[str, KindMetrics])
    lost_writes: Counter[str] = field(default_factory=Counter[str])
    shared: int = 0
    unleased: int = 0
    unstored: int = 0
    outages: Counter[str] = field(default_factory=Counter[str])
    requests: Counter[str] = field(default_factory=Counter[str])
    transfer: Counter[str] = field(default_factory=Counter[str])

    @classmethod
    def from_events(cls, events: Iterable[CacheEvent]) -> CacheMetrics:
        """Return what these events add up to."""
        metrics = cls()
        for event in events:
            metrics.add(event)
        return metrics

    def add(self, event: CacheEvent, number: int = 1) -> None:
        """Count one event, or the sum of several that have action, kind, outcome and tier in common."""
        match event.action:
            case actions.LOOKUP:
                self._of_kind(event.kind).add(event, number)
            case actions.COMPUTED:
                self._of_kind(event.kind).add_computed(event, number)
            case actions.LOST:
                self.lost_writes[event.tier] += number
            case actions.SHARED:
                self.shared += number
            case actions.UNLEASED:
                self.unleased += number
            case actions.UNSTORED:
                self.unstored += number
            case actions.TIER_DOWN:
                self.outages[event.tier] += number
            case actions.REQUESTS:
                self.requests[event.outcome] += event.stored_bytes
            case actions.TRANSFER:
                self.transfer[event.outcome] += event.stored_bytes
            case _:
                pass

    def _of_kind(self, kind: str) -> KindMetrics:
        if kind not in self.by_kind:
            self.by_kind[kind] = KindMetrics()
        return self.by_kind[kind]

    @property
    def whole(self) -> KindMetrics:
        """What all kinds add up to."""
        whole = KindMetrics()
        for kind in self.by_kind.values():
            whole.merge(kind)
        return whole

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

    @property
    def money_saved(self) -> float:
        """What computing the hits again would have cost, in the currency of the settings."""
        return sum(kind.money_saved for kind in self.by_kind.values())


def traffic_in_words(metrics: CacheMetrics) -> str:
    """Return what was asked of the object store, and what that is for 1,000 lookups; nothing if nothing was."""
    requests = sum(metrics.requests.values())
    if not requests:
        return ""
    by_class = ", ".join(f"{name} {metrics.requests[name]:,}" for name in ("put", "get", "delete"))
    up, down = metrics.transfer["up"], metrics.transfer["down"]
    words = f"{counted(requests, 'request')} ({by_class}), {bytes_in_words(up)} up, {bytes_in_words(down)} down"
    if not metrics.total:
        return words
    each = 1000 / metrics.total
    return (
        f"{words}; for 1,000 lookups {requests * each:,.0f} requests, {bytes_in_words(round(up * each))} up, "
        f"{bytes_in_words(round(down * each))} down"
    )
