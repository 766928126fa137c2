"""Statistics: what is kept and what it has saved, from tallies and the ends of indexes, however much there is."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from cache_blocks.maintenance import trends
from cache_blocks.maintenance.trends import By, LargeEntry, MissCause, Trend
from cache_blocks.metrics import CacheMetrics, KindMetrics
from cache_blocks.schema import EntryRow, table
from cache_blocks.tallies import DAY_SECONDS, entry_tally

if TYPE_CHECKING:
    from cache_blocks.cache import TieredCache

METRICS_DAYS: Final = 30
"""How far back hits and misses are counted: today, and as many whole days (UTC) before it."""

_entry = table(EntryRow)


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
        metrics: Hits and misses since ``since``.
        since: Begin of the first day (UTC) whose hits and misses are counted, in seconds since the epoch.
        currency: Of all money; empty where no prices are set.
        by: What the trends are by: ``day``, ``kind``, ``task`` or ``flow``.
        trends: How each of them has done.
        causes: Why most lookups missed.
        biggest: The entries that take most room, of those of 64 KiB and more.
        never_read: Of the 2,000 biggest, those older than a day that were not read as long as events are kept.
    """

    namespace: str
    kinds: dict[str, KindStats] = field(default_factory=dict[str, KindStats])
    metrics: CacheMetrics = field(default_factory=CacheMetrics)
    since: float = 0.0
    currency: str = ""
    by: By = "day"
    trends: Sequence[Trend] = ()
    causes: Sequence[MissCause] = ()
    biggest: Sequence[LargeEntry] = ()
    never_read: Sequence[LargeEntry] = ()

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
                **_plain(
                    self.metrics, ("hits", "misses", "total", "hit_rate", "by_tier", "seconds_saved", "money_saved")
                ),
                **_plain(self.metrics, ("lost_writes", "shared", "unleased", "unstored", "outages")),
                **_plain(self.metrics, ("requests", "transfer")),
                "by_kind": {
                    name: _plain(kind, (*KindMetrics.__dataclass_fields__, "total", "hit_rate"))
                    for name, kind in self.metrics.by_kind.items()
                },
            },
            "since": self.since,
            "currency": self.currency,
            "by": self.by,
            **{
                name: [asdict(each) for each in getattr(self, name)]
                for name in ("trends", "causes", "biggest", "never_read")
            },
        }


def _plain(metrics: CacheMetrics | KindMetrics, names: Iterable[str]) -> dict[str, Any]:
    """Return these attributes; `dataclasses.asdict` turns a `Counter` into one of its pairs."""
    values = {name: getattr(metrics, name) for name in names}
    return {
        name: {str(key): number for key, number in value.items()} if isinstance(value, Counter) else value  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        for name, value in values.items()
    }


def stats(
    cache: TieredCache, *, by: By = "day", since_seconds: float = METRICS_DAYS * DAY_SECONDS, now: float | None = None
) -> Stats:
    """Return what a cache keeps, by kind, how it has done of late, and why it missed.

    It takes no longer for a million entries and events than for a few; only what waits to be collected is counted.

    Args:
        cache: The cache whose namespace is counted.
        by: What trends are by.
        since_seconds: How far back hits and misses are counted: to the begin of that day (UTC), 400 days at most.
        now: The time, in seconds since the epoch.

    Raises:
        TierUnavailableError: SQL does not answer.
    """
    now = time.time() if now is None else now
    since = now - since_seconds
    namespace = cache.settings.namespace
    cache.parts.events.flush()
    with cache.parts.database.read() as connection:
        kinds = connection.execute(_kinds(namespace, now)).mappings().all()
        return Stats(
            namespace=namespace,
            kinds={row["kind"]: _kind_stats(row) for row in kinds},
            metrics=trends.metrics_since(connection, namespace, since),
            since=since // DAY_SECONDS * DAY_SECONDS,
            currency=cache.settings.currency if cache.settings.costs else "",
            by=by,
            trends=trends.trends(connection, namespace, by, since),
            causes=trends.causes(connection, namespace, since),
            biggest=trends.biggest(connection, namespace),
            never_read=trends.never_read(connection, namespace, now),
        )


def _kinds(namespace: str, now: float) -> sa.Executable:
    tally = entry_tally.c
    of_kind = (_entry.c.namespace == namespace) & (_entry.c.kind == tally.kind)
    created, expires = _entry.c.created_at, _entry.c.expires_at

    def found(what: sa.ColumnElement[Any], *conditions: sa.ColumnElement[bool]) -> sa.ScalarSelect[Any]:
        return sa.select(what).where(of_kind, *conditions).correlate(entry_tally).scalar_subquery()

    return (
        sa.select(
            tally.kind,
            *(sa.func.sum(tally[name]).label(name) for name in ("entries", "stored_bytes", "blob_bytes")),
            sa.func.sum(tally.compute_seconds).label("compute_seconds"),
            found(sa.func.count(), expires <= now).label("expired"),
            found(sa.func.min(created)).label("oldest"),
            found(sa.func.max(created)).label("newest"),
            found(sa.func.min(expires), expires > now).label("next_expiry"),
        )
        .where(tally.namespace == namespace)
        .group_by(tally.kind)
        .having(sa.func.sum(tally.entries) > 0)
        .order_by(tally.kind)
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
