"""Invalidation by generations: one number per scope, whatever the number of entries under it.

An entry carries the numbers that held when its computing began. Raising a number makes every such entry a
miss, in every process, without a scan and without comparing clocks. SQL holds the truth; the object store
mirrors it, so that an emptied database does not revive what was invalidated; Redis holds copies.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from cache_blocks.entry import check_key, check_tags
from cache_blocks.errors import InvalidationIncompleteError, InvalidKeyError, TierUnavailableError
from cache_blocks.schema import EntryRow, FenceRow, GenerationRow, TagRow, UntoldRow, table
from cache_blocks.tiers.sql import SEEDED

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from cache_blocks.database import Database
    from cache_blocks.tiers.breaker import Breaker

_entry, _tag, _generation, _untold, _fence = (
    table(row) for row in (EntryRow, TagRow, GenerationRow, UntoldRow, FenceRow)
)


@dataclass(frozen=True, slots=True)
class Invalidation:
    """What an invalidation reached.

    Attributes:
        told: Tiers that know of it.
        entries: How many entries SQL had under what was invalidated.
    """

    told: tuple[str, ...]
    entries: int


def scope_of(*, key: str | None = None, kind: str | None = None, tag: str | None = None) -> str:
    """Return the one scope that is meant; none of the three means everything.

    Raises:
        InvalidKeyError: More than one is given, or it is not well-formed.
    """
    given = [(name, value) for name, value in (("key", key), ("kind", kind), ("tag", tag)) if value is not None]
    if len(given) > 1:
        msg = f"invalidate one of key, kind or tag at a time, not {' and '.join(name for name, _ in given)}"
        raise InvalidKeyError(msg)
    if not given:
        return "all"
    name, value = given[0]
    if name == "key":
        check_key(value)
    elif name == "tag":
        check_tags([value])
    else:
        check_key(f"{value}:x")
    return f"{name}:{value}"


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
        """Return a new fencing number and the numbers of these scopes, for a computation that begins now."""
        with self._database.begin() as connection:
            numbers = self._read(connection, [*scopes, SEEDED])
            first = int(time.time() * 1000)  # an emptied table must not give numbers that were given before
            statement = self._database.upsert(_fence).values(namespace=self._namespace, number=first)
            statement = statement.on_conflict_do_update(
                index_elements=["namespace"], set_={"number": _fence.c.number + 1}
            ).returning(_fence.c.number)
            fence = int(connection.execute(statement).scalar_one())
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
            statement = self._database.upsert(_generation).values(namespace=self._namespace, scope=scope, number=1)
            statement = statement.on_conflict_do_update(
                index_elements=["namespace", "scope"], set_={"number": _generation.c.number + 1}
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
            return number, self._count(connection, scope)

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

    def _read(self, connection: Connection, scopes: Sequence[str]) -> dict[str, int]:
        rows = connection.execute(
            sa.select(_generation.c.scope, _generation.c.number).where(
                _generation.c.namespace == self._namespace, _generation.c.scope.in_(scopes)
            )
        )
        return {row[0]: row[1] for row in rows}

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

    def _count(self, connection: Connection, scope: str) -> int:
        what, _, value = scope.partition(":")
        counted, conditions = _entry, {"key": _entry.c.key == value, "kind": _entry.c.kind == value}
        condition: Any = conditions.get(what, sa.true())
        if what == "tag":
            counted, condition = _tag, _tag.c.tag == value
        statement = sa.select(sa.func.count()).select_from(counted).where(counted.c.namespace == self._namespace)
        return int(connection.execute(statement.where(condition)).scalar_one())


Teller = Callable[[Mapping[str, int]], None]


class Invalidator:
    """Raises generations and tells every tier.

    Args:
        generations: The truth.
        tellers: By tier, what tells it numbers and raises `TierUnavailableError` when it could not.
        breakers: Breaker of each of these tiers.
    """

    def __init__(
        self, generations: Generations, tellers: Mapping[str, Teller], breakers: Mapping[str, Breaker]
    ) -> None:
        self._generations = generations
        self._tellers = dict(tellers)
        self._breakers = breakers
        self._owed: dict[str, dict[str, int]] = {
            tier: {} for tier in tellers
        }  # by this process, even if SQL is emptied
        self._lock = threading.Lock()

    def invalidate(self, scope: str) -> Invalidation:
        """Make every entry of a scope a miss, in every process, before this returns.

        Raises:
            TierUnavailableError: SQL does not answer; nothing has changed.
            InvalidationIncompleteError: SQL knows, another tier could not be told; it is retried.
        """
        number, entries = self._generations.advance(scope, list(self._tellers))
        untold = [tier for tier in self._tellers if not self._tell(tier, {scope: number})]
        told = ("sql", *(tier for tier in self._tellers if tier not in untold))
        if untold:
            raise InvalidationIncompleteError(told, untold, entries)
        return Invalidation(told, entries)

    def catch_up(self, tier: str) -> int:
        """Tell a tier what it has missed, before it is trusted again; return how many numbers.

        Raises:
            TierUnavailableError: It, or SQL, still does not answer.
        """
        if (teller := self._tellers.get(tier)) is None:
            return 0
        missed = _highest(self._generations.untold(tier), self._owed[tier])
        if missed:
            teller(missed)
            self._generations.told(tier, missed)
            with self._lock:
                owed = self._owed[tier].items()
                self._owed[tier] = {scope: number for scope, number in owed if number > missed.get(scope, 0)}
        return len(missed)

    def retry(self) -> list[str]:
        """Tell every tier what it has missed; return the names of those that still could not be told."""
        return [tier for tier in self._tellers if not self._attempt(tier)]

    def _attempt(self, tier: str) -> bool:
        try:
            self._breakers[tier].call(self.catch_up, tier)
        except TierUnavailableError:
            return False
        return True

    def _tell(self, tier: str, numbers: Mapping[str, int]) -> bool:
        breaker = self._breakers[tier]
        try:
            breaker.call(self._tellers[tier], numbers)
        except TierUnavailableError as error:
            with self._lock:
                self._owed[tier] = _highest(self._owed[tier], numbers)
            breaker.trip(error.why)  # also when it was skipped: a probe under way has not caught up with this
            return False
        with suppress(TierUnavailableError):  # it has been told; SQL will only have it told once more
            self._generations.told(tier, numbers)
        return True


def _highest(some: Mapping[str, int], others: Mapping[str, int]) -> dict[str, int]:
    """Return the numbers of both, by scope; of two the higher one."""
    return {scope: max(some.get(scope, 0), others.get(scope, 0)) for scope in some.keys() | others.keys()}
