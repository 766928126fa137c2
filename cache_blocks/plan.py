"""Decisions without I/O: what the tiers answered, and what follows from it.

`Walk` is the heart of a lookup. The chain asks it what to ask the next tier, tells it the answer, and at the
end takes one `Lookup` a key. It never touches a tier, so its tests need none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cache_blocks.entry import Entry, Lookup, Outcome, scopes_of
from cache_blocks.kinds import DESCRIPTOR_BYTES
from cache_blocks.records import record

if TYPE_CHECKING:
    from cache_blocks.kinds import CacheKind

UNKNOWN_GENERATION: Final = "its generation could not be learnt"
NEVER_SEEN: Final = "never seen"
KEY_MISSING: Final = "its private key is missing"
IN_CLEAR: Final = "it is stored in clear, and its kind is private"
INVALIDATED_BY: Final = "invalidated by "
"""How the reason begins; the scope follows."""


@record
class Request:
    """One key to look up.

    Attributes:
        key: The key.
        tags: Tags that the entry is expected to have, so that their generations come with it.
        replicated: Whether the object store may have a copy that SQL does not know of.
        private: Whether only a sealed entry counts.
    """

    key: str
    tags: tuple[str, ...] = ()
    replicated: bool = True
    private: bool = False


@record
class TierAnswer:
    """What one tier said to one question.

    Attributes:
        entries: Intact entries by key, valid or not.
        corrupt: Reasons by key, of copies that are not what was written.
        generations: Numbers by scope, as far as the tier knows them.
        elsewhere: Fence by key, of entries whose payload this tier points to in the object store.
    """

    entries: Mapping[str, Entry] = field(default_factory=dict[str, Entry])
    corrupt: Mapping[str, str] = field(default_factory=dict[str, str])
    generations: Mapping[str, int] = field(default_factory=dict[str, int])
    elsewhere: Mapping[str, int] = field(default_factory=dict[str, int])


@record
class Question:
    """Keys and scopes to ask a tier for, in one round trip."""

    keys: tuple[str, ...]
    scopes: tuple[str, ...]


@dataclass(slots=True)
class _Open:
    """State of one key during a walk."""

    request: Request
    scopes: tuple[str, ...]
    notes: list[Lookup]
    candidate: tuple[str, Entry] | None = None
    fence: int | None = None


def judge(entry: Entry, generations: Mapping[str, int], now: float, tier: str = "") -> Lookup | None:
    """Return the verdict on an intact entry, or None while a generation is unknown.

    An entry counts only if none of its scopes has been invalidated since its computing began; that needs no
    comparison of clocks. An unknown scope never hides one that is known to have been invalidated.
    """
    if entry.expires_at <= now:
        return Lookup(Outcome.EXPIRED, tier, reason=f"expired {_ago(now - entry.expires_at)} ago")
    unknown = False
    for scope, number in zip(entry.scopes, entry.generations, strict=True):
        known = generations.get(scope)
        if known is None:
            unknown = True
        elif known != number:
            return Lookup(Outcome.INVALIDATED, tier, reason=f"{INVALIDATED_BY}{scope.removesuffix(':' + entry.key)}")
    return None if unknown else Lookup(Outcome.HIT, tier, entry)


def stands(entry: Entry, generations: Mapping[str, int]) -> bool:
    """Whether no known generation says that an entry has been invalidated."""
    pairs = zip(entry.scopes, entry.generations, strict=True)
    return all(generations.get(scope, number) == number for scope, number in pairs)


class Walk:
    """One lookup of some keys through the tiers, fastest first.

    Args:
        requests: What to look up.
        now: Time of the lookup, in seconds since the epoch.
    """

    def __init__(self, requests: Sequence[Request], now: float) -> None:
        self._now = now
        self._open = {one.key: _Open(one, scopes_of(one.key, one.tags), []) for one in requests}
        self._settled: dict[str, Lookup] = {}
        self._asked: dict[str, tuple[set[str], set[str]]] = {}  # keys and scopes, by tier
        self.generations: dict[str, int] = {}

    @property
    def is_over(self) -> bool:
        """Whether every key is a hit: no tier can add anything."""
        return not self._open

    def question(self, tier: str, *, knows_generations: bool) -> Question | None:
        """Return what to ask this tier, or None when it can add nothing. A tier is asked nothing twice."""
        if not self._open:
            return None
        visited, asked = self._asked.setdefault(tier, (set(), set()))
        keys = [
            key
            for key, state in self._open.items()
            if state.candidate is None and key not in visited and self._may_have(tier, state)
        ]
        scopes = [scope for scope in self._unknown_scopes() if scope not in asked] if knows_generations else []
        visited.update(keys)
        asked.update(scopes)
        return Question(tuple(keys), tuple(scopes)) if keys or scopes else None

    def take(self, tier: str, answer: TierAnswer) -> None:
        """Learn a tier's answer."""
        self.generations.update(answer.generations)
        for key, reason in answer.corrupt.items():
            self._note(key, Lookup(Outcome.CORRUPT, tier, reason=reason))
        for key, fence in answer.elsewhere.items():
            if key in self._open:
                self._open[key].fence = fence
        for key, entry in answer.entries.items():
            self._consider(tier, key, entry)
        for key, state in list(self._open.items()):
            if state.candidate is not None:
                self._settle_candidate(key, state)

    def fail(self, tier: str, question: Question, why: str) -> None:
        """Learn that a tier did not answer."""
        for key in question.keys or tuple(self._open):
            self._note(key, Lookup(Outcome.TIER_DOWN, tier, reason=f"{tier}: {why}"))

    def finish(self) -> dict[str, Lookup]:
        """Return one `Lookup` a key; whatever is still open is a miss with its most telling reason."""
        for key, state in self._open.items():
            if state.candidate is not None:
                self._note(key, Lookup(Outcome.TIER_DOWN, state.candidate[0], reason=UNKNOWN_GENERATION))
            self._settled[key] = _most_telling(state.notes)
        self._open = {}
        return self._settled

    def _unknown_scopes(self) -> dict[str, None]:
        """Return what is not known yet of the scopes that decide, each once."""
        wanted: dict[str, None] = {}
        for state in self._open.values():
            for scope in state.candidate[1].scopes if state.candidate else state.scopes:
                if scope not in self.generations:
                    wanted[scope] = None
        return wanted

    @staticmethod
    def _may_have(tier: str, state: _Open) -> bool:
        return tier != "object_store" or state.request.replicated or state.fence is not None

    def _consider(self, tier: str, key: str, entry: Entry) -> None:
        state = self._open.get(key)
        if state is None:
            return
        if state.fence is not None and entry.fence < state.fence:
            self._note(key, Lookup(Outcome.MISS, tier, reason="the copy is older than what SQL knows of"))
            return
        state.candidate = (tier, entry)

    def _settle_candidate(self, key: str, state: _Open) -> None:
        assert state.candidate is not None  # noqa: S101 - only called with one
        tier, entry = state.candidate
        verdict = judge(entry, self.generations, self._now, tier)
        if verdict is None:
            return
        state.candidate = None
        if verdict.is_hit:
            self._settled[key] = verdict
            del self._open[key]
        else:
            self._note(key, verdict)

    def _note(self, key: str, note: Lookup) -> None:
        if key in self._open:
            self._open[key].notes.append(note)


_TELLING: Final = (Outcome.CORRUPT, Outcome.INVALIDATED, Outcome.EXPIRED, Outcome.TIER_DOWN, Outcome.MISS)


def _most_telling(notes: Sequence[Lookup]) -> Lookup:
    for outcome in _TELLING:
        for note in notes:
            if note.outcome is outcome:
                return note
    return Lookup(Outcome.MISS, reason=NEVER_SEEN)


def placement(kind: CacheKind, stored_bytes: int) -> frozenset[str]:
    """Return the tiers that keep the payload of an entry of this size.

    SQL has a row for every entry. When ``sql`` is not in the answer that row is a pointer, and the payload is in
    the object store alone. An empty answer means that the entry cannot be kept.
    """
    ceiling = DESCRIPTOR_BYTES if kind.large_binary else stored_bytes
    tiers: set[str] = set()
    if stored_bytes <= min(kind.sql_max_bytes, ceiling):
        tiers.add("sql")
    if "redis" in kind.tiers and stored_bytes <= min(kind.redis_max_bytes, ceiling):
        tiers.add("redis")
    if kind.replica or ("sql" not in tiers and "object_store" in kind.tiers):
        tiers.add("object_store")
    return frozenset(tiers if tiers & {"sql", "object_store"} else ())


def limit_nearby(kind: CacheKind, stored_bytes: int) -> int:
    """Return the size beyond which results of a kind are not kept, when one takes four fifths of it; otherwise 0."""
    if "object_store" in kind.tiers or stored_bytes * 5 < kind.sql_max_bytes * 4:
        return 0
    return kind.sql_max_bytes


def promotions(lookup: Lookup, tiers: Iterable[str]) -> tuple[str, ...]:
    """Return the faster tiers that a hit should be copied to.

    Args:
        lookup: The hit.
        tiers: Names of all tiers, fastest first. SQL always gets its row, be it a pointer.
    """
    faster: list[str] = []
    for tier in tiers:
        if tier == lookup.tier:
            break
        place = "redis" if tier == "memory" else tier
        if tier == "sql" or (lookup.entry is not None and place in lookup.entry.placement):
            faster.append(tier)
    return tuple(faster)


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
