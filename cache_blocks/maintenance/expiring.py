"""Deleting rows that have expired or were invalidated, and their copies in the other tiers.

What has expired is found through an index, what was invalidated by going through the scopes whose number has risen;
rows that stay are not looked at. Deletion is in batches with short transactions: lookups and writers go on between
them. A row is deleted only if it is still as it was judged, which is looked at again right then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from cache_blocks import tallies
from cache_blocks.entry import scopes_of
from cache_blocks.errors import TierUnavailableError
from cache_blocks.maintenance.walking import ROWS, Progress, Walker, entry_table, tag_table
from cache_blocks.schema import GenerationRow, table
from cache_blocks.tiers.sql import SEEDED, lock_in_order

if TYPE_CHECKING:
    from cache_blocks.maintenance.sweeping import Collected

_COPY_BYTES: Final = 16 * 1024 * 1024
"""Payload bytes of copies that are read at once."""

_generation = table(GenerationRow)
_expiry = entry_table.c.expires_at


@dataclass(slots=True)
class RowCollector:
    """Deletes rows and their copies.

    Attributes:
        walker: The tiers.
        collected: Takes the counts.
        now: Time that expiry is judged by, in seconds since the epoch.
        dry_run: Only count.
        on_progress: Told how far it is.
        doomed: Keys that a dry run would have deleted; empty otherwise, so that memory does not grow with their number.
    """

    walker: Walker
    collected: Collected
    now: float
    dry_run: bool
    on_progress: Progress
    doomed: set[str] = field(default_factory=set[str])

    def expired(self) -> None:
        """Delete what has expired."""
        with self.walker.cache.parts.database.read() as connection:
            kinds = tallies.kinds(connection, self.walker.namespace)
        for kind in kinds:
            for keys in self._pages(entry_table, _expiry, (entry_table.c.kind == kind) & (_expiry <= self.now)):
                self.collected.expired += self._delete(keys, _expiry <= self.now)

    def invalidated(self) -> None:
        """Delete what was invalidated: what is under a scope whose number has risen and is not `settled`."""
        mine = _generation.c.namespace == self.walker.namespace
        risen = mine & (_generation.c.number > _generation.c.settled) & (_generation.c.scope != SEEDED)
        with self.walker.cache.parts.database.read() as connection:
            scopes = connection.execute(sa.select(_generation.c.scope, _generation.c.number).where(risen)).all()
        for scope, number in scopes:
            for keys in self._under(scope):
                self._judge(keys)
            if not self.dry_run:
                swept = sa.update(_generation).where(mine, _generation.c.scope == scope)
                with self.walker.cache.parts.database.begin() as connection:
                    connection.execute(swept.values(settled=_generation.c.swept, swept=number))

    def _under(self, scope: str) -> Iterator[list[str]]:
        what, _, value = scope.partition(":")
        match what:
            case "key":
                return iter([[value]])
            case "tag":
                return self._pages(tag_table, tag_table.c.created_at, tag_table.c.tag == value)
            case "kind":
                return self._pages(entry_table, entry_table.c.created_at, entry_table.c.kind == value)
            case _:
                return self._pages(entry_table, entry_table.c.created_at, sa.true())

    def _pages(
        self, rows: sa.Table, order: sa.ColumnElement[float], condition: sa.ColumnElement[bool]
    ) -> Iterator[list[str]]:
        """Yield the keys of rows in pages, in the order of an index, without holding a transaction open."""
        beyond: sa.ColumnElement[bool] = sa.true()
        statement = sa.select(rows.c.key, order.label("place")).order_by(order, rows.c.key).limit(ROWS)
        statement = statement.where(rows.c.namespace == self.walker.namespace, condition)
        while True:
            with self.walker.cache.parts.database.read() as connection:
                page = connection.execute(statement.where(beyond)).all()
            if page:
                yield [row.key for row in page]
                self.on_progress("entries", len(page))
            if len(page) < ROWS:
                return
            beyond = (order >= page[-1].place) & ((order > page[-1].place) | (rows.c.key > page[-1].key))

    def _judge(self, keys: Sequence[str]) -> None:
        """Delete those of these rows whose generations are not the current ones."""
        statement = sa.select(*(entry_table.c[name] for name in ("key", "fence", "expires_at", "generations"))).where(
            entry_table.c.namespace == self.walker.namespace, self.walker.among(entry_table.c.key, keys)
        )
        with self.walker.cache.parts.database.read() as connection:
            rows = connection.execute(statement).all()
        tags = self.walker.tags(keys)
        scopes = {row.key: scopes_of(row.key, tags[row.key]) for row in rows}
        numbers = self.walker.generations(scope for some in scopes.values() for scope in some)
        doomed = [
            (row.key, row.fence)
            for row in rows
            if row.expires_at > self.now and [numbers[scope] for scope in scopes[row.key]] != list(row.generations)
        ]
        if doomed:
            judged = sa.tuple_(entry_table.c.key, entry_table.c.fence).in_(doomed)
            self.collected.invalidated += self._delete([key for key, _ in doomed], judged)

    def _delete(self, keys: Sequence[str], still: sa.ColumnElement[bool]) -> int:
        """Delete the rows of these keys that are still as they were judged, and their copies; return how many."""
        mine = (entry_table.c.namespace == self.walker.namespace) & self.walker.among(entry_table.c.key, keys)
        columns = [entry_table.c[name] for name in ("key", "fence", "stored_bytes", "placement")]
        database = self.walker.cache.parts.database
        if self.dry_run:
            with database.read() as connection:
                rows = connection.execute(sa.select(*columns).where(mine, still)).all()
            rows = [row for row in rows if row.key not in self.doomed]
            self.doomed.update(row.key for row in rows)
        else:
            with database.begin() as connection:
                lock_in_order(connection, mine & still)
                rows = connection.execute(sa.delete(entry_table).where(mine, still).returning(*columns)).all()
            self._delete_copies(rows)
        self.collected.bytes_freed += sum(row.stored_bytes for row in rows)
        return len(rows)

    def _delete_copies(self, rows: Sequence[sa.Row[Any]]) -> None:
        """Delete the copies of deleted rows; a copy with a higher fence belongs to a later computation."""
        for tier in self.walker.copies:
            place = "redis" if tier.name == "memory" else tier.name
            fences = {row.key: row.fence for row in rows if place in row.placement.split(",")}
            try:
                for keys in _handfuls([row for row in rows if row.key in fences]):
                    found = self.walker.read(tier, keys).entries
                    older = [key for key, entry in found.items() if entry.fence <= fences[key]]
                    self.walker.delete(tier, older)
            except TierUnavailableError as error:
                self.collected.failed(error)


def _handfuls(rows: Sequence[sa.Row[Any]]) -> Iterator[list[str]]:
    """Yield keys in batches whose copies fit into memory."""
    keys: list[str] = []
    size = 0
    for row in rows:
        if keys and size + row.stored_bytes > _COPY_BYTES:
            yield keys
            keys, size = [], 0
        keys.append(row.key)
        size += row.stored_bytes
    if keys:
        yield keys
