"""Collecting garbage: what has expired or was invalidated, and what nothing refers to any more.

Nothing here holds a lock while it works. A row is deleted only if it still has the fence it was judged by, a blob
only if nothing refers to it and nobody has touched it within its grace time, both looked at again right before.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from cache_blocks import tallies
from cache_blocks.errors import TierUnavailableError
from cache_blocks.maintenance.expiring import RowCollector
from cache_blocks.maintenance.sweeping import Collected, Sweeper
from cache_blocks.maintenance.walking import ENVELOPES, ROWS, Progress, Walker, batched, unheard
from cache_blocks.plan import judge
from cache_blocks.schema import EventRow, LeaseRow, RunRow, table

if TYPE_CHECKING:
    from cache_blocks.cache import TieredCache
    from cache_blocks.tiers.base import Tier

TALLY_DAYS: Final = 400
"""How long it is known what the events of a day added up to."""

_event, _lease, _run = (table(row) for row in (EventRow, LeaseRow, RunRow))


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
        collector.rows.expired,
        collector.rows.invalidated,
        collector.copies,
        collector.history,
        collector.fold,
        collector.files,
    )
    for step in steps:
        try:
            step()
        except TierUnavailableError as error:
            collector.collected.failed(error)
    return collector.collected


class _Collector:
    def __init__(self, cache: TieredCache, now: float, dry_run: bool, on_progress: Progress) -> None:  # noqa: FBT001
        self._cache = cache
        self._walker = Walker(cache)
        self._database = cache.parts.database
        self._namespace = cache.settings.namespace
        self._now = now
        self._dry_run = dry_run
        self._on_progress = on_progress
        self._live_elsewhere: set[str] | None = None
        self.collected = Collected()
        self.rows = RowCollector(self._walker, self.collected, now, dry_run, on_progress)

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
        for keys in batched(tier.keys()):
            self._on_progress(f"copies in {tier.name}", len(keys))
            known = self._walker.known(keys)
            for strangers in batched((key for key in keys if key not in known), ENVELOPES):
                live |= self._judge_strangers(tier, strangers)
        return live

    def _judge_strangers(self, tier: Tier, strangers: list[str]) -> set[str]:
        """Delete those that are no hits; return the blobs that the others refer to."""
        live: set[str] = set()
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
            self._walker, self.collected, self._now, self._dry_run, frozenset(self.rows.doomed), self._live_elsewhere
        )
        for sweep in (sweeper.blobs, sweeper.unfinished, sweeper.local):
            try:
                sweep(self._on_progress)
            except TierUnavailableError as error:
                self.collected.failed(error)

    def history(self) -> None:
        """Delete ended leases, events that are too old, and what days and runs of long ago added up to."""
        kept = self._cache.settings.event_days * tallies.DAY_SECONDS
        old = (_event.c.namespace == self._namespace) & (_event.c.at < self._now - kept)
        ended = (_lease.c.namespace == self._namespace) & (_lease.c.expires_at <= self._now)
        self.collected.events = self._delete_where(_event, _event.c.id, old)
        self.collected.leases = self._delete_where(_lease, _lease.c.key, ended)
        days = tallies.event_tally
        first = int(self._now // tallies.DAY_SECONDS) - TALLY_DAYS
        if not self._dry_run:
            with self._database.begin() as connection:
                connection.execute(sa.delete(days).where(days.c.namespace == self._namespace, days.c.day < first))
                long_ago = _run.c.at < first * tallies.DAY_SECONDS
                connection.execute(sa.delete(_run).where(_run.c.namespace == self._namespace, long_ago))

    def fold(self) -> None:
        """Fold the tallies of connections that are gone."""
        if not self._dry_run:
            for tally in (tallies.entry_tally, tallies.event_tally):
                tallies.fold(self._database, self._namespace, tally)

    def _delete_where(self, rows: sa.Table, name: sa.Column[Any], condition: sa.ColumnElement[bool]) -> int:
        """Delete in batches, each found before its transaction begins; return how many."""
        if self._dry_run:
            return self._walker.count(rows, condition)
        deleted = 0
        while True:
            with self._database.read() as connection:
                some = connection.execute(sa.select(name).where(condition).limit(ROWS)).scalars().all()
            if not some:
                return deleted
            with self._database.begin() as connection:
                deleted += connection.execute(sa.delete(rows).where(condition, self._walker.among(name, some))).rowcount
            self._on_progress(rows.name.removeprefix("cache_blocks_"), len(some))
