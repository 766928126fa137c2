"""The numbers behind invalidation, in SQL: their truth.

The object store mirrors them, so that an emptied database does not revive what was invalidated. The row `SEEDED`
says that the table is whole; without it no number is believed before the mirror has been read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from cache_blocks.schema import FenceRow, GenerationRow, UntoldRow, table
from cache_blocks.tallies import entries_under
from cache_blocks.tiers.sql import SEEDED

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from cache_blocks.database import Database

_generation, _untold, _fence = (table(row) for row in (GenerationRow, UntoldRow, FenceRow))


class Generations:
    """The truth about invalidation, in SQL.

    Args:
        database: Connection.
        namespace: Environment.
        mirrored: Returns the numbers of the mirror in the object store.
    """

    def __init__(self, database: Database, namespace: str, mirrored: Callable[[], Mapping[str, int]]) -> None:
        self._database = database
        self._namespace = namespace
        self._mirrored = mirrored
        # Built once: SQLAlchemy takes longer to build a small statement than SQLite to run it.
        collected = sa.func.json_group_object if database.is_sqlite else sa.func.json_object_agg
        numbers = sa.select(collected(_generation.c.scope, _generation.c.number, type_=sa.JSON)).where(
            _generation.c.namespace == namespace, database.among(_generation.c.scope, "scopes")
        )
        first = database.upsert(_fence).values(namespace=namespace, number=sa.bindparam("first"))
        self._next_fence = first.on_conflict_do_update(
            index_elements=["namespace"], set_={"number": _fence.c.number + 1}
        ).returning(_fence.c.number, numbers.scalar_subquery())

    def reseed(self) -> dict[str, int]:
        """Fill an emptied table from the mirror and return what it now holds.

        Raises:
            TierUnavailableError: The mirror cannot be read; unknown numbers must not count as zero.
        """
        mirrored = dict(self._mirrored())
        with self._database.begin() as connection:
            for scope, number in mirrored.items():
                self._at_least(connection, scope, number)
            self._at_least(connection, SEEDED, 1)
            statement = sa.select(_generation.c.scope, _generation.c.number)
            rows = connection.execute(statement.where(_generation.c.namespace == self._namespace))
            return {row[0]: row[1] for row in rows}  # somebody may have raised them meanwhile

    def begin(self, scopes: Sequence[str]) -> tuple[int, dict[str, int]]:
        """Return a new fencing number and the numbers of these scopes, for a computation that begins now.

        Both come from one statement. What is invalidated while it waits for its turn may be in the first and not in
        the second, which then makes the result a miss; the reverse, which would not, cannot be.
        """
        first = int(time.time() * 1000)  # an emptied table must not give numbers that were given before
        with self._database.begin() as connection:
            row: Any = connection.execute(self._next_fence, {"first": first, "scopes": [*scopes, SEEDED]}).one()
        fence, numbers = int(row[0]), dict[str, int](row[1] or {})
        if SEEDED not in numbers:
            numbers = self.reseed()
        return fence, {scope: numbers.get(scope, 0) for scope in scopes}

    def advance(self, scope: str, tiers: Sequence[str]) -> tuple[int, int]:
        """Raise a scope's number and note which tiers have to be told, in one transaction.

        Returns:
            The new number, and how many entries SQL has under the scope.
        """
        while (advanced := self._advance(scope, tiers)) is None:
            self.reseed()
        return advanced

    def _advance(self, scope: str, tiers: Sequence[str]) -> tuple[int, int] | None:
        """See `advance`; None when the table has been emptied: counting from zero would repeat numbers."""
        with self._database.begin() as connection:
            if not self._is_seeded(connection):
                return None
            now = time.time()
            statement = self._database.upsert(_generation).values(
                namespace=self._namespace, scope=scope, number=1, raised_at=now
            )
            statement = statement.on_conflict_do_update(
                index_elements=["namespace", "scope"], set_={"number": _generation.c.number + 1, "raised_at": now}
            ).returning(_generation.c.number)
            number = int(connection.execute(statement).scalar_one())
            for tier in tiers:
                untold = self._database.upsert(_untold).values(
                    namespace=self._namespace, tier=tier, scope=scope, number=number
                )
                connection.execute(
                    untold.on_conflict_do_update(
                        index_elements=["namespace", "tier", "scope"], set_={"number": untold.excluded.number}
                    )
                )
            return number, entries_under(connection, self._namespace, scope)

    def untold(self, tier: str) -> dict[str, int]:
        """Return the numbers that a tier has not been told."""
        with self._database.read() as connection:
            rows = connection.execute(
                sa.select(_untold.c.scope, _untold.c.number).where(
                    _untold.c.namespace == self._namespace, _untold.c.tier == tier
                )
            )
            return {scope: number for scope, number in rows}  # noqa: C416 - rows are not pairs to a type checker

    def told(self, tier: str, numbers: Mapping[str, int]) -> None:
        """Note that a tier has been told these numbers.

        The truth is raised to them once more: it may have been emptied, and seeded from the mirror, before the
        mirror was told.
        """
        with self._database.begin() as connection:
            for scope, number in numbers.items():
                self._at_least(connection, scope, number)
                connection.execute(
                    sa.delete(_untold).where(
                        _untold.c.namespace == self._namespace,
                        _untold.c.tier == tier,
                        _untold.c.scope == scope,
                        _untold.c.number <= number,
                    )
                )

    def _is_seeded(self, connection: Connection) -> bool:
        """Whether the table is whole; in PostgreSQL it stays so until the transaction ends."""
        statement = sa.select(_generation.c.number).where(
            _generation.c.namespace == self._namespace, _generation.c.scope == SEEDED
        )
        return connection.execute(statement.with_for_update(read=True, key_share=True)).first() is not None

    def _at_least(self, connection: Connection, scope: str, number: int) -> None:
        statement = self._database.upsert(_generation).values(namespace=self._namespace, scope=scope, number=number)
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["namespace", "scope"],
                set_={"number": statement.excluded.number},
                where=_generation.c.number < statement.excluded.number,
            )
        )
