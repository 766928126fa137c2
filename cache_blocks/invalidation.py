"""Invalidation by generations: one number per scope, whatever the number of entries under it.

An entry carries the numbers that held when its computing began. Raising a number makes every such entry a
miss, in every process, without a scan and without comparing clocks. SQL holds the truth; the object store
mirrors it, so that an emptied database does not revive what was invalidated; Redis holds copies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cache_blocks import forking
from cache_blocks.entry import check_key, check_tags
from cache_blocks.errors import InvalidationIncompleteError, InvalidKeyError, TierUnavailableError

if TYPE_CHECKING:
    from cache_blocks.generations import Generations
    from cache_blocks.tiers.breaker import Breaker


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
        self._lock = forking.lock()

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

    def invalidate_all(self, scopes: Sequence[str]) -> Invalidation:
        """Do as `invalidate` does with several scopes, each whatever became of the others in tiers besides SQL."""
        done: list[Invalidation | InvalidationIncompleteError] = []
        for scope in scopes:
            try:
                done.append(self.invalidate(scope))
            except InvalidationIncompleteError as error:
                done.append(error)
        told = [tier for tier in ("sql", *self._tellers) if all(tier in one.told for one in done)]
        entries = sum(one.entries for one in done)
        if untold := [tier for tier in self._tellers if tier not in told]:
            raise InvalidationIncompleteError(told, untold, entries)
        return Invalidation(tuple(told), entries)

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
