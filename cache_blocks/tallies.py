"""Tallies: what entries and events add up to, so that nobody has to look at a million rows to count them.

The database keeps them itself, by triggers, in the transaction that changes the rows: they are exact whoever writes.
In PostgreSQL each connection adds to a row of its own, so that no writer waits for another; maintenance folds the
rows of connections that are gone into one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from cache_blocks.schema import EntryRow, EntryTallyRow, EventTallyRow, TagRow, table

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from cache_blocks.database import Database

DAY_SECONDS: Final = 86400
_FOLDED_AT_ONCE: Final = 10_000

entry_tally, event_tally = table(EntryTallyRow), table(EventTallyRow)
_entry, _tag = table(EntryRow), table(TagRow)


def kinds(connection: Connection, namespace: str) -> list[str]:
    """Return the kinds of which there are entries, sorted."""
    statement = (
        sa.select(entry_tally.c.kind)
        .where(entry_tally.c.namespace == namespace)
        .group_by(entry_tally.c.kind)
        .having(sa.func.sum(entry_tally.c.entries) > 0)
        .order_by(entry_tally.c.kind)
    )
    return list(connection.execute(statement).scalars())


def entries_under(connection: Connection, namespace: str, scope: str) -> int:
    """Return how many entries there are under a scope, expired ones among them, without looking at each."""
    what, _, value = scope.partition(":")
    counted: dict[str, Callable[[], sa.Select[Any]]] = {
        "all": lambda: sa.select(sa.func.sum(entry_tally.c.entries)).where(entry_tally.c.namespace == namespace),
        "kind": lambda: counted["all"]().where(entry_tally.c.kind == value),
        "key": lambda: sa.select(sa.func.count()).where(_entry.c.namespace == namespace, _entry.c.key == value),
        "tag": lambda: sa.select(sa.func.count()).where(_tag.c.namespace == namespace, _tag.c.tag == value),
    }
    return int(connection.execute(counted[what]()).scalar_one() or 0)


def fold(database: Database, namespace: str, tally: sa.Table) -> None:
    """Add the rows of other connections to this one's. Rows that somebody is changing are left for the next time."""
    if database.is_sqlite:
        return  # it has one writer at a time, and one row
    statement = _folding(namespace, tally)
    folded = _FOLDED_AT_ONCE
    while folded == _FOLDED_AT_ONCE:
        with database.begin() as connection:
            folded = connection.execute(statement).scalar_one()


def _folding(namespace: str, tally: sa.Table) -> sa.Select[int]:
    from sqlalchemy.dialects import postgresql

    mine = sa.func.pg_backend_pid()
    names = [column for column in tally.primary_key.columns if column.name != "shard"]
    sums = [column for column in tally.columns if not column.primary_key]
    others = (
        sa.select(*tally.primary_key.columns)
        .where(tally.c.namespace == namespace, tally.c.shard != mine)
        .limit(_FOLDED_AT_ONCE)
        .with_for_update(skip_locked=True)
        .cte("others")
    )
    of_others = sa.and_(*(tally.c[column.name] == others.c[column.name] for column in tally.primary_key.columns))
    gone = sa.delete(tally).where(of_others).returning(*tally.columns).cte("gone")
    added = sa.select(
        *(gone.c[column.name] for column in names), mine, *(sa.func.sum(gone.c[column.name]) for column in sums)
    ).group_by(*(gone.c[column.name] for column in names))
    columns = [*(column.name for column in names), "shard", *(column.name for column in sums)]
    insert = postgresql.insert(tally).from_select(columns, added)
    insert = insert.on_conflict_do_update(
        index_elements=[*(column.name for column in names), "shard"],
        set_={column.name: column + insert.excluded[column.name] for column in sums},
    )
    return sa.select(sa.func.count()).select_from(gone).add_cte(insert.returning(tally.c.shard).cte("kept"))
