"""A chain of tiers, fastest first; itself a tier.

Reading asks each tier only for what the ones before could not settle, and copies what it finds to the faster
ones. Writing goes the other way: the durable tier first, because it knows which of two writers has won.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, TypeVar

from cache_blocks.entry import Entry, Lookup
from cache_blocks.errors import TierError, TierUnavailableError
from cache_blocks.plan import Request, TierAnswer, Walk, promotions, stands
from cache_blocks.tiers.base import Tier
from cache_blocks.tiers.breaker import Breaker

logger = logging.getLogger("cache_blocks")

R = TypeVar("R")

_WRITE_ORDER: Final = ("sql", "object_store", "redis", "memory")


@dataclass(slots=True)
class Written:
    """What became of a write.

    Attributes:
        stored: Keys by tier.
        lost: Reasons by tier that should have stored something and did not.
        superseded: Keys of which a later computation has won, or which have been invalidated meanwhile.
    """

    stored: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    lost: dict[str, str] = field(default_factory=dict[str, str])
    superseded: set[str] = field(default_factory=set[str])


@dataclass(frozen=True, slots=True)
class _Reservation:
    """Places that a tier keeps for copies of these generations, see `Tier.reserve`."""

    tier: Tier
    token: str
    scopes: tuple[str, ...]


class Chain(Tier):
    """Several tiers as one.

    Args:
        tiers: Tiers of one namespace, fastest first.
        breakers: Breaker of each tier by name; made here when not given.
    """

    name: ClassVar[str] = "chain"
    knows_generations: ClassVar[bool] = True

    def __init__(self, tiers: Sequence[Tier], breakers: Mapping[str, Breaker] | None = None) -> None:
        super().__init__(tiers[0].namespace)
        self.tiers = tuple(tiers)
        self._names = [tier.name for tier in tiers]
        self._order = (*tiers, *(tier for tier in tiers if tier.knows_generations))
        self.breakers = dict(breakers or {tier.name: Breaker(tier.name) for tier in tiers})

    def lookup(self, requests: Sequence[Request], now: float, *, promote: bool = True) -> dict[str, Lookup]:
        """Return one answer a key; the outcome is HIT only for an intact, unexpired, not invalidated entry.

        Args:
            requests: What to look up.
            now: Time that expiry is judged by, in seconds since the epoch.
            promote: Whether hits are copied to the faster tiers, for the time that is left to them.
        """
        walk = Walk(requests, now)
        reserved: list[_Reservation] = []
        for tier in self._order:
            if walk.is_over:
                break
            self._ask(walk, tier, reserved)
        found = walk.finish()
        self._seed(reserved, walk.generations)
        if promote:
            self._promote(found)
        return found

    def generations(self, scopes: Sequence[str]) -> dict[str, int]:
        """Return the numbers of these scopes from the most truthful tier that answers.

        Raises:
            TierUnavailableError: None that answers knows them all.
        """
        why = "no tier of the chain knows generations"
        for tier in reversed([tier for tier in self.tiers if tier.knows_generations]):
            try:
                known = self.guarded(tier, tier.read, (), scopes).generations
            except TierUnavailableError as error:
                why = str(error)
                continue
            if all(scope in known for scope in scopes):
                return dict(known)
        raise TierUnavailableError(self.name, why)

    def read(self, keys: Sequence[str], scopes: Sequence[str] = ()) -> TierAnswer:
        """Return the valid entries of these keys, from wherever they are."""
        found = self.lookup([Request(key) for key in keys], time.time())
        corrupt = {key: hit.reason for key, hit in found.items() if hit.outcome == "corrupt"}
        generations = self.generations(scopes) if scopes else {}
        return TierAnswer({key: hit.entry for key, hit in found.items() if hit.entry}, corrupt, generations)

    def write(self, entries: Sequence[Entry]) -> set[str]:
        """Store entries wherever they belong; return the keys that at least one tier has stored."""
        written = self.write_through(entries)
        return set[str]().union(*written.stored.values())

    def write_through(self, entries: Sequence[Entry]) -> Written:
        """Store entries, durable tier first; a tier that fails is named, not raised."""
        written = Written()
        standing = list(entries)
        for tier in sorted(self.tiers, key=lambda tier: _WRITE_ORDER.index(tier.name)):
            items = [entry for entry in standing if _belongs(entry, tier.name)]
            if not items:
                continue
            try:
                stored = self.breakers[tier.name].write(tier.write, items)
            except TierError as error:
                written.lost[tier.name] = error.why
                continue
            written.stored[tier.name] = stored
            if tier.name == "sql":
                written.superseded = {entry.key for entry in items} - stored
                standing = [entry for entry in standing if entry.key in stored]
        self._drop_dangling(standing, written)
        self._take_back(standing, written)
        return written

    def delete(self, keys: Sequence[str]) -> int:
        """Remove entries from every tier; return how many keys the tier that had most of them had.

        Raises:
            TierUnavailableError: A tier did not answer, so that copies may remain there.
        """
        counts = [self.guarded(tier, tier.delete, keys) for tier in self.tiers]
        return max(counts, default=0)

    def keys(self) -> Iterator[str]:
        """Yield the keys that any tier has, each once."""
        seen: set[str] = set()
        for tier in self.tiers:
            for key in tier.keys():  # noqa: SIM118 - a tier is no dict
                if key not in seen:
                    seen.add(key)
                    yield key

    def ping(self) -> str:
        """Return a line per tier."""
        return "; ".join(f"{tier.name}: {tier.ping()}" for tier in self.tiers)

    def close(self) -> None:
        """Close all tiers."""
        for tier in self.tiers:
            tier.close()

    def tier(self, name: str) -> Tier:
        """Return the tier of this name."""
        return next(tier for tier in self.tiers if tier.name == name)

    def guarded(self, tier: Tier, function: Callable[..., R], *args: object) -> R:
        """Call a tier through its breaker."""
        return self.breakers[tier.name].call(function, *args)

    def _ask(self, walk: Walk, tier: Tier, reserved: list[_Reservation]) -> None:
        """Put every question to one tier that it can settle; tags found on the way may need a second one."""
        while question := walk.question(tier.name, knows_generations=tier.knows_generations):
            try:
                answer = self.guarded(tier, tier.read, question.keys, question.scopes)
            except TierUnavailableError as error:
                walk.fail(tier.name, question, error.why)
                return
            if missing := tuple([scope for scope in question.scopes if scope not in answer.generations]):
                self._quietly("reservation", tier, self._reserve, tier, missing, reserved)
            walk.take(tier.name, answer)

    @staticmethod
    def _reserve(tier: Tier, scopes: tuple[str, ...], reserved: list[_Reservation]) -> None:
        if token := tier.reserve(scopes):
            reserved.append(_Reservation(tier, token, scopes))

    def _seed(self, reserved: Sequence[_Reservation], generations: Mapping[str, int]) -> None:
        for one in reserved:
            numbers = {scope: generations[scope] for scope in one.scopes if scope in generations}
            if numbers:
                self._quietly("seed", one.tier, one.tier.seed, numbers, one.token)

    def _promote(self, found: Mapping[str, Lookup]) -> None:
        wanted: dict[str, list[Entry]] = {}
        for hit in found.values():
            for name in promotions(hit, self._names) if hit.entry else ():
                assert hit.entry is not None  # noqa: S101 - narrowed above
                wanted.setdefault(name, []).append(hit.entry)
        for name, entries in wanted.items():
            tier = self.tier(name)
            self._quietly("promotion", tier, self.breakers[name].write, tier.write, entries)

    def _quietly(self, what: str, tier: Tier, function: Callable[..., object], *args: object) -> None:
        """Do what only makes later lookups faster; the breaker has logged an outage already."""
        try:
            self.guarded(tier, function, *args)
        except TierError as error:
            logger.debug("%s skipped: %s", what, error)

    def _take_back(self, entries: Sequence[Entry], written: Written) -> None:
        """Remove copies of what was invalidated while they were written from tiers that know no generations.

        Who invalidates and then erases has erased what was written before; this is for what was written after.
        """
        blind = [tier for tier in self.tiers if not tier.knows_generations and written.stored.get(tier.name)]
        if not blind or "sql" not in written.stored:
            return
        sql = self.tier("sql")
        scopes = sorted({scope for entry in entries for scope in entry.scopes})
        try:
            numbers = self.guarded(sql, sql.read, (), scopes).generations
        except TierUnavailableError:
            return  # nobody is served it, and the next collection removes it
        fences = {entry.key: entry.fence for entry in entries if not stands(entry, numbers)}
        for tier in blind if fences else ():
            self._quietly("clean-up", tier, _delete_up_to, tier, fences)
        written.superseded.update(fences)

    def _drop_dangling(self, entries: Sequence[Entry], written: Written) -> None:
        """Remove rows that point to an object which could not be written."""
        if "object_store" not in written.lost or "sql" not in written.stored:
            return
        dangling = [entry.key for entry in entries if "sql" not in entry.placement]
        if dangling:
            sql = self.tier("sql")
            self._quietly("clean-up", sql, sql.delete, dangling)
            written.stored["sql"] -= set(dangling)


def _delete_up_to(tier: Tier, fences: Mapping[str, int]) -> None:
    """Delete copies, but none of a later computation, which has a higher fence."""
    found = tier.read(list(fences)).entries
    tier.delete([key for key, entry in found.items() if entry.fence <= fences[key]])


def _belongs(entry: Entry, tier: str) -> bool:
    return tier == "sql" or ("redis" if tier == "memory" else tier) in entry.placement
