"""Trends: how a cache has done by day, kind, task or flow, why it missed, and which entries are in the way.

All of it comes from tallies and the end of an index, so that it takes no longer for a million entries than for a few.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, Literal

import sqlalchemy as sa

from cache_blocks import events as actions
from cache_blocks.entry import Outcome
from cache_blocks.event_log import IS_HIT
from cache_blocks.events import CacheEvent
from cache_blocks.metrics import CacheMetrics, KindMetrics
from cache_blocks.schema import EntryRow, EventRow, is_large, table
from cache_blocks.tallies import DAY_SECONDS, event_tally

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

By = Literal["day", "kind", "task", "flow"]

TOP: Final = 10
"""How many causes and entries are listed."""
LOOKED_THROUGH: Final = 2_000
"""Among how many of the biggest entries those are looked for that nobody has read."""

_SUMS: Final = ("stored_bytes", "seconds", "seconds_saved", "money", "money_saved")
_entry, _event = table(EntryRow), table(EventRow)
_size = _entry.c.stored_bytes + _entry.c.blob_bytes
_NO_LOOKUP: Final = ("", Outcome.HIT, Outcome.BYPASSED)


@dataclass(frozen=True, slots=True)
class Trend:
    """Lookups and computations of one day, kind, task or flow.

    Attributes:
        name: Which: a day in UTC such as ``2026-11-22``, or a name, which is empty where nobody has said it.
        lookups: Number of lookups.
        hits: How many of them hit.
        hit_rate: Their share, 0 to 1.
        seconds_saved: Seconds of computing that the hits have spared, less what their lookups cost.
        money_saved: What computing them again would have cost, in the currency of the settings.
        computed: Results that were computed.
        compute_seconds: What computing them took.
        money_spent: What computing them cost.
    """

    name: str
    lookups: int
    hits: int
    hit_rate: float
    seconds_saved: float
    money_saved: float
    computed: int
    compute_seconds: float
    money_spent: float

    @classmethod
    def of(cls, name: str, whole: KindMetrics) -> Trend:
        """Return what these metrics say."""
        return cls(
            name=name,
            lookups=whole.total,
            hits=whole.hits,
            hit_rate=whole.hit_rate,
            seconds_saved=whole.seconds_saved,
            money_saved=whole.money_saved,
            computed=whole.computed,
            compute_seconds=whole.compute_seconds,
            money_spent=whole.money_spent,
        )


@dataclass(frozen=True, slots=True)
class MissCause:
    """Misses that have their cause in common.

    Attributes:
        kind: Name of the kind.
        cause: Such as ``never seen``, ``expired`` or ``changed: engine.model``.
        misses: How many there were.
    """

    kind: str
    cause: str
    misses: int


@dataclass(frozen=True, slots=True)
class LargeEntry:
    """An entry that takes much room.

    Attributes:
        key: Its key.
        task: Task that has computed it.
        subject: What it is about, such as a file's name.
        created_at: When it was computed, in seconds since the epoch.
        bytes: Its payload as stored, and the files that it refers to.
    """

    key: str
    task: str
    subject: str
    created_at: float
    bytes: int


def metrics_since(connection: Connection, namespace: str, since: float) -> CacheMetrics:
    """Return what `CacheMetrics.from_events` would of all events since a day (UTC)."""
    return _metrics(_sums(connection, namespace, since, sa.literal("").label("name")))


def trends(connection: Connection, namespace: str, by: By, since: float) -> list[Trend]:
    """Return how the cache has done since a day (UTC): days in their order, others by number of lookups."""
    rows = _sums(connection, namespace, since, event_tally.c[by].label("name"))
    found = [
        Trend.of(_day(name) if by == "day" else name, _metrics(of_name).whole)
        for name, of_name in groupby(rows, key=lambda row: row["name"])
    ]
    told = [trend for trend in found if trend.lookups or trend.computed]
    return told if by == "day" else sorted(told, key=lambda trend: (-trend.lookups, trend.name))


def causes(connection: Connection, namespace: str, since: float) -> list[MissCause]:
    """Return the most frequent causes of misses since a day (UTC)."""
    tally = event_tally.c
    number = sa.func.sum(tally.events)
    statement = (
        sa.select(tally.kind, tally.cause, number.label("misses"))
        .where(tally.namespace == namespace, tally.day >= int(since // DAY_SECONDS), tally.action == actions.LOOKUP)
        .where(tally.outcome.not_in(_NO_LOOKUP))
        .group_by(tally.kind, tally.cause)
        .order_by(number.desc(), tally.kind, tally.cause)
        .limit(TOP)
    )
    return [MissCause(row.kind, row.cause, int(row.misses)) for row in connection.execute(statement)]


def biggest(connection: Connection, namespace: str) -> list[LargeEntry]:
    """Return the biggest entries, of those of `schema.LARGE_BYTES` and more."""
    return list(_entries(connection, _by_size(namespace).limit(TOP)))


def never_read(connection: Connection, namespace: str, now: float) -> list[LargeEntry]:
    """Return the biggest entries that are older than a day and that no event, as long as those are kept, shows read."""
    large = _by_size(namespace).limit(LOOKED_THROUGH).subquery()
    mine = (_event.c.namespace == namespace) & (_event.c.key == large.c.key)
    # A subquery that asks for one row, and no EXISTS, for which PostgreSQL would read all events there are.
    read = sa.select(_event.c.id).where(mine, IS_HIT).limit(1).scalar_subquery()
    had_time = large.c.created_at <= now - DAY_SECONDS
    statement = (
        sa.select(large).where(had_time, read.is_(None)).order_by(large.c.bytes.desc(), large.c.key.desc()).limit(TOP)
    )
    return list(_entries(connection, statement))


def _by_size(namespace: str) -> sa.Select[Any]:
    columns = (_entry.c[name] for name in ("key", "task", "subject", "created_at"))
    order = _size.desc(), _entry.c.key.desc()
    mine = _entry.c.namespace == namespace
    return sa.select(*columns, _size.label("bytes")).where(mine, is_large()).order_by(*order)


def _entries(connection: Connection, statement: sa.Select[Any]) -> Iterator[LargeEntry]:
    for row in connection.execute(statement).mappings():
        yield LargeEntry(**row)


def _sums(connection: Connection, namespace: str, since: float, name: sa.ColumnElement[Any]) -> list[sa.RowMapping]:
    """Return what the events of each name, action, kind, outcome and tier add up to, in the order of names."""
    tally = event_tally.c
    what = (tally.action, tally.kind, tally.outcome, tally.tier)
    statement = (
        sa.select(
            name,
            *what,
            sa.func.sum(tally.events).label("number"),
            *(sa.func.sum(tally[each]).label(each) for each in _SUMS),
        )
        .where(tally.namespace == namespace, tally.day >= int(since // DAY_SECONDS))
        .group_by(sa.text("name"), *what)
        .order_by(sa.text("name"))
    )
    return list(connection.execute(statement).mappings())


def _metrics(rows: Iterable[sa.RowMapping]) -> CacheMetrics:
    """Return what `CacheMetrics.from_events` would, from events that SQL has added up already."""
    metrics = CacheMetrics()
    for row in rows:
        event = CacheEvent(
            action=row["action"],
            kind=row["kind"],
            outcome=row["outcome"],
            tier=row["tier"],
            stored_bytes=int(row["stored_bytes"]),
            seconds=float(row["seconds"]),
            seconds_saved=float(row["seconds_saved"]),
            money=float(row["money"]),
            money_saved=float(row["money_saved"]),
        )
        metrics.add(event, int(row["number"]))
    return metrics


def _day(number: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(number * DAY_SECONDS))
