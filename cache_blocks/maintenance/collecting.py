"""Collecting garbage: what has expired or was invalidated, and what nothing refers to any more.

Nothing here holds a lock while it works. A row is deleted only if it still has the fence it was judged by, a blob
only if nothing refers to it and nobody has touched it within its grace time, both looked at again right before.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from cache_blocks.entry import scopes_of
from cache_blocks.errors import TierUnavailableError
from cache_blocks.maintenance.sweeping import Collected, Sweeper
from cache_blocks.maintenance.walking import (
    ROWS,
    Progress,
    Walker,
    batched,
    blob_table,
    entry_table,
    tag_table,
    unheard,
)
from cache_blocks.plan import judge
from cache_blocks.schema import EventRow, LeaseRow, table

if TYPE_CHECKING:
    from cache_blocks.cache import TieredCache
    from cache_blocks.tiers.base import Tier

EVENT_SECONDS: Final = 30 * 86400
"""How long events are kept."""

_event, _lease = (table(row) for row in (EventRow, LeaseRow))


def collect(
    cache: TieredCache, *, now: float | None = None, dry_run: bool = False, on_progress: Progress = unheard
) -> Collected:
    """Delete what has expired, was invalidated, or is referred to by nothing; tell tiers what they have missed.

    A tier that does not answer is named in ``errors``, and the rest is done without it.

    Args:
        cache: The cache whose namespace is collected.
        now: Time that everything is judged by, in seconds since the epoch.
        dry_run: Only count.
        on_progress: Told how far it is.
    """
    collector = _Collector(cache, time.time() if now is None else now, dry_run, on_progress)
    steps = (
        collector.tell,
        collector.entries,
        collector.copies,
        collector.history,
        collector.files,
    )
    for step in steps:
        try:
            step()
        except TierUnavailableError as error:
            collector.collected.failed(error)
    return collector.collected


@dataclass(frozen=True, slots=True)
class _Doomed:
    key: str
    fence: int
    stored_bytes: int
    expired: bool


class _Collector:
    def __init__(self, cache: TieredCache, now: float, dry_run: bool, on_progress: Progress) -> None:  # noqa: FBT001
        self._cache = cache
        self._walker = Walker(cache)
        self._database = cache.parts.database
        self._namespace = cache.settings.namespace
        self._now = now
        self._dry_run = dry_run
        self._on_progress = on_progress
        self._doomed: set[str] = set()
        self._live_elsewhere: set[str] | None = None
        self.collected = Collected()

    def tell(self) -> None:
        """Tell tiers the invalidations that they have missed."""
        before = self._untold()
        if before and not self._dry_run:
            self._cache.parts.invalidator.retry()
        after = self._untold() if before else {}
        self.collected.told = sum(before.values()) - sum(after.values())
        self.collected.untold = sorted(after)

    def _untold(self) -> dict[str, int]:
        generations = self._cache.parts.generations
        counts = {tier.name: len(generations.untold(tier.name)) for tier in self._walker.copies}
        return {tier: count for tier, count in counts.items() if count}

    def entries(self) -> None:
        """Delete expired and invalidated rows, and their copies in the other tiers."""
        last = ""
        while page := self._page(last):
            last = page[-1]["key"]
            doomed = {one.key: one for one in self._judged(page)}
            gone = set(doomed) if self._dry_run else self._delete_rows(list(doomed.values()))
            self._doomed |= gone
            for key in gone:
                self.collected.bytes_freed += doomed[key].stored_bytes
                self.collected.expired += doomed[key].expired
                self.collected.invalidated += not doomed[key].expired
            if gone and not self._dry_run:
                self._delete_copies({key: doomed[key].fence for key in gone})
            self._on_progress("entries", len(page))

    def _page(self, after: str) -> Sequence[sa.RowMapping]:
        columns = (entry_table.c[name] for name in ("key", "fence", "expires_at", "generations", "stored_bytes"))
        statement = (
            sa.select(*columns)
            .where(entry_table.c.namespace == self._namespace, entry_table.c.key > after)
            .order_by(entry_table.c.key)
            .limit(ROWS)
        )
        with self._database.read() as connection:
            return connection.execute(statement).mappings().all()

    def _judged(self, page: Sequence[sa.RowMapping]) -> list[_Doomed]:
        tags = self._walker.tags([row["key"] for row in page])
        scopes = {row["key"]: scopes_of(row["key"], tags[row["key"]]) for row in page}
        numbers = self._walker.generations(scope for some in scopes.values() for scope in some)
        doomed: list[_Doomed] = []
        for row in page:
            expired = row["expires_at"] <= self._now
            current = [numbers[scope] for scope in scopes[row["key"]]]
            if expired or current != list(row["generations"]):
                doomed.append(_Doomed(row["key"], row["fence"], row["stored_bytes"], expired))
        return doomed

    def _delete_rows(self, doomed: Sequence[_Doomed]) -> set[str]:
        """Delete rows that still have the fence they were judged by; return the keys of those that were deleted."""
        if not doomed:
            return set()
        pairs = [(one.key, one.fence) for one in doomed]
        judged = sa.tuple_(entry_table.c.key, entry_table.c.fence).in_(pairs)
        statement = sa.delete(entry_table).where(entry_table.c.namespace == self._namespace, judged)
        with self._database.begin() as connection:
            gone = set(connection.execute(statement.returning(entry_table.c.key)).scalars())
            for side in (tag_table, blob_table):
                connection.execute(sa.delete(side).where(side.c.namespace == self._namespace, side.c.key.in_(gone)))
        return gone

    def _delete_copies(self, fences: Mapping[str, int]) -> None:
        """Delete the copies of deleted rows; a copy with a higher fence belongs to a later computation."""
        for tier in self._walker.copies:
            try:
                found = self._walker.read(tier, list(fences)).entries
                self._walker.delete(tier, [key for key, entry in found.items() if entry.fence <= fences[key]])
            except TierUnavailableError as error:
                self.collected.failed(error)

    def copies(self) -> None:
        """Delete expired and invalidated copies that SQL does not know, and learn which blobs the others refer to."""
        live: set[str] = set()
        readable = True
        for tier in self._walker.copies:
            try:
                live |= self._strangers(tier)
            except TierUnavailableError as error:
                self.collected.failed(error)
                readable = False
        self._live_elsewhere = live if readable else None

    def _strangers(self, tier: Tier) -> set[str]:
        live: set[str] = set()
        for keys in batched(tier.keys(), 64):
            self._on_progress(f"copies in {tier.name}", len(keys))
            known = self._walker.known(keys)
            strangers = [key for key in keys if key not in known]
            if not strangers:
                continue
            entries = self._walker.read(tier, strangers).entries
            numbers = self._walker.generations_of(entries.values())
            doomed: list[str] = []
            for key, entry in entries.items():
                verdict = judge(entry, numbers, self._now)
                if verdict is None or verdict.is_hit:
                    live.update(entry.blobs)
                else:
                    doomed.append(key)
                    self.collected.bytes_freed += entry.stored_bytes
            self.collected.replicas += len(doomed) if self._dry_run else self._walker.delete(tier, doomed)
        return live

    def files(self) -> None:
        """Delete contents of files that nothing refers to, and what was begun and never finished."""
        sweeper = Sweeper(
            self._walker, self.collected, self._now, self._dry_run, frozenset(self._doomed), self._live_elsewhere
        )
        for sweep in (sweeper.blobs, sweeper.unfinished, sweeper.local):
            try:
                sweep(self._on_progress)
            except TierUnavailableError as error:
                self.collected.failed(error)

    def history(self) -> None:
        """Delete ended leases, side rows without an entry, and events that are too old."""
        old = (_event.c.namespace == self._namespace) & (_event.c.at < self._now - EVENT_SECONDS)
        ended = (_lease.c.namespace == self._namespace) & (_lease.c.expires_at <= self._now)
        self.collected.events = self._delete_where(_event, _event.c.id, old)
        self.collected.leases = self._delete_where(_lease, _lease.c.key, ended)
        for side in (tag_table, blob_table):
            mine = (entry_table.c.namespace == side.c.namespace) & (entry_table.c.key == side.c.key)
            orphan = (side.c.namespace == self._namespace) & ~sa.exists().where(mine)
            self._delete_where(side, side.c.key, orphan)

    def _delete_where(self, rows: sa.Table, name: sa.Column[Any], condition: sa.ColumnElement[bool]) -> int:
        if self._dry_run:
            return self._walker.count(rows, condition)
        deleted = 0
        while True:
            with self._database.begin() as connection:
                some = connection.execute(sa.select(name).where(condition).limit(ROWS)).scalars().all()
                if not some:
                    return deleted
                deleted += connection.execute(sa.delete(rows).where(condition, name.in_(some))).rowcount
