"""Statistics: what is kept and what it has saved, by aggregate queries."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from cache_blocks import events as actions
from cache_blocks.entry import Outcome
from cache_blocks.metrics import CacheMetrics, KindMetrics
from cache_blocks.schema import EntryRow, EventRow, table

if TYPE_CHECKING:
    from cache_blocks.cache import TieredCache

METRICS_SECONDS: Final = 30 * 86400
"""How far back hits and misses are counted."""

_entry, _event = (table(row) for row in (EntryRow, EventRow))


@dataclass(frozen=True, slots=True)
class KindStats:
    """Entries of one kind.

    Attributes:
        entries: How many SQL has, expired ones that are not collected yet among them.
        expired: How many of them have expired.
        stored_bytes: Bytes of their payloads as stored.
        blob_bytes: Bytes of the files that they refer to; a file that two refer to counts twice.
        compute_seconds: What computing them took.
        oldest: When the oldest was computed, in seconds since the epoch.
        newest: When the newest was.
        next_expiry: When the next one expires; None when all have.
    """

    entries: int
    expired: int
    stored_bytes: int
    blob_bytes: int
    compute_seconds: float
    oldest: float
    newest: float
    next_expiry: float | None


@dataclass(frozen=True, slots=True)
class Stats:
    """What a cache keeps and what it has saved.

    Attributes:
        namespace: Environment that is counted.
        kinds: Entries by kind.
        metrics: Hits and misses of the last 30 days.
    """

    namespace: str
    kinds: dict[str, KindStats] = field(default_factory=dict[str, KindStats])
    metrics: CacheMetrics = field(default_factory=CacheMetrics)

    @property
    def entries(self) -> int:
        """Number of entries of all kinds."""
        return sum(kind.entries for kind in self.kinds.values())

    @property
    def stored_bytes(self) -> int:
        """Bytes of all payloads as stored."""
        return sum(kind.stored_bytes for kind in self.kinds.values())

    def as_dict(self) -> dict[str, Any]:
        """Return everything, sums and rates too, for JSON."""
        return {
            "namespace": self.namespace,
            "entries": self.entries,
            "stored_bytes": self.stored_bytes,
            "kinds": {name: asdict(kind) for name, kind in self.kinds.items()},
            "metrics": {
                **_plain(self.metrics, ("hits", "misses", "total", "hit_rate", "by_tier", "seconds_saved")),
                **_plain(self.metrics, ("lost_writes", "shared", "unleased", "unstored", "outages")),
                "by_kind": {
                    name: _plain(kind, (*KindMetrics.__dataclass_fields__, "total", "hit_rate"))
                    for name, kind in self.metrics.by_kind.items()
                },
            },
        }


def _plain(metrics: CacheMetrics | KindMetrics, names: Iterable[str]) -> dict[str, Any]:
    """Return these attributes; `dataclasses.asdict` turns a `Counter` into one of its pairs."""
    values = {name: getattr(metrics, name) for name in names}
    return {
        name: {str(key): number for key, number in value.items()} if isinstance(value, Counter) else value  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        for name, value in values.items()
    }


def stats(cache: TieredCache, *, now: float | None = None) -> Stats:
    """Return what a cache keeps, by kind, and its hits and misses of the last 30 days.

    Raises:
        TierUnavailableError: SQL does not answer.
    """
    now = time.time() if now is None else now
    cache.parts.events.flush()
    with cache.parts.database.read() as connection:
        kinds = connection.execute(_kinds(cache.settings.namespace, now)).mappings().all()
        events = connection.execute(_events(cache.settings.namespace, now)).mappings().all()
    by_kind = {row["kind"]: _kind_stats(row) for row in kinds}
    return Stats(cache.settings.namespace, by_kind, _metrics(events))


def _kinds(namespace: str, now: float) -> sa.Executable:
    expires = _entry.c.expires_at
    return (
        sa.select(
            _entry.c.kind,
            sa.func.count().label("entries"),
            sa.func.sum(sa.case((expires <= now, 1), else_=0)).label("expired"),
            sa.func.sum(_entry.c.stored_bytes).label("stored_bytes"),
            sa.func.sum(_entry.c.blob_bytes).label("blob_bytes"),
            sa.func.sum(_entry.c.compute_seconds).label("compute_seconds"),
            sa.func.min(_entry.c.created_at).label("oldest"),
            sa.func.max(_entry.c.created_at).label("newest"),
            sa.func.min(sa.case((expires > now, expires))).label("next_expiry"),
        )
        .where(_entry.c.namespace == namespace)
        .group_by(_entry.c.kind)
        .order_by(_entry.c.kind)
    )


def _kind_stats(row: sa.RowMapping) -> KindStats:
    """PostgreSQL sums big integers to decimals, which JSON does not know."""
    whole = {name: int(row[name]) for name in ("entries", "expired", "stored_bytes", "blob_bytes")}
    next_expiry: float | None = row["next_expiry"]
    return KindStats(
        **whole,
        compute_seconds=float(row["compute_seconds"]),
        oldest=float(row["oldest"]),
        newest=float(row["newest"]),
        next_expiry=next_expiry,
    )


def _events(namespace: str, now: float) -> sa.Executable:
    what = (_event.c.action, _event.c.kind, _event.c.outcome, _event.c.tier)
    return (
        sa.select(
            *what,
            sa.func.count().label("number"),
            sa.func.sum(_event.c.stored_bytes).label("stored_bytes"),
            sa.func.sum(_event.c.seconds).label("seconds"),
            sa.func.sum(_event.c.seconds_saved).label("seconds_saved"),
        )
        .where(_event.c.namespace == namespace, _event.c.at >= now - METRICS_SECONDS)
        .group_by(*what)
    )


def _metrics(rows: Iterable[sa.RowMapping]) -> CacheMetrics:
    """Return what `CacheMetrics.from_events` would, from events that SQL has added up already."""
    metrics = CacheMetrics()
    for row in rows:
        number = int(row["number"])
        match row["action"]:
            case actions.LOOKUP:
                _add_lookups(metrics.by_kind.setdefault(row["kind"], KindMetrics()), row, number)
            case actions.LOST:
                metrics.lost_writes[row["tier"]] += number
            case actions.SHARED:
                metrics.shared += number
            case actions.UNLEASED:
                metrics.unleased += number
            case actions.UNSTORED:
                metrics.unstored += number
            case actions.TIER_DOWN:
                metrics.outages[row["tier"]] += number
            case _:
                pass
    return metrics


def _add_lookups(kind: KindMetrics, row: sa.RowMapping, number: int) -> None:
    kind.lookup_seconds += float(row["seconds"])
    if row["outcome"] == Outcome.HIT:
        kind.hits += number
        kind.by_tier[row["tier"]] += number
        kind.stored_bytes += int(row["stored_bytes"])
        kind.seconds_saved += float(row["seconds_saved"])
        return
    kind.by_outcome[row["outcome"]] += number
    if row["outcome"] == Outcome.BYPASSED:
        kind.bypassed += number
    else:
        kind.misses += number
