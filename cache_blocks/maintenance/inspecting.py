"""Inspection: which entries there are, and everything about one of them."""

from __future__ import annotations

import difflib
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from cache_blocks.entry import Entry, check_key
from cache_blocks.errors import InvalidKeyError, TierUnavailableError
from cache_blocks.events import CacheEvent
from cache_blocks.invalidation import scope_of
from cache_blocks.maintenance.walking import Walker, batched, entry_table, tag_table
from cache_blocks.plan import judge
from cache_blocks.schema import LARGE_BYTES, EventRow, is_large, table
from cache_blocks.tallies import entries_under

if TYPE_CHECKING:
    from cache_blocks.cache import TieredCache

_event = table(EventRow)
_CANDIDATES: Final = 1000
_SUGGESTIONS: Final = 3
_EVER: Final = 1e18


@dataclass(frozen=True, slots=True)
class EntrySummary:
    """One row of a listing.

    Attributes:
        key: ``kind:digest``.
        kind: Name of the kind.
        task: Name of the task that computed it; empty when none did.
        tags: Labels under which it can be invalidated.
        created_at: End of the computation, in seconds since the epoch.
        expires_at: End of the entry, likewise.
        compute_seconds: What computing took.
        stored_bytes: Bytes of the payload as stored.
        blob_bytes: Bytes of the files that it refers to.
        placement: Tiers that may hold its payload.
    """

    key: str
    kind: str
    task: str
    tags: list[str]
    created_at: float
    expires_at: float
    compute_seconds: float
    stored_bytes: int
    blob_bytes: int
    placement: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class EntryDetails:
    """Everything about one entry.

    Attributes:
        key: ``kind:digest``.
        state: ``hit``, ``expired``, ``invalidated``, or ``unknown`` when a generation cannot be learnt.
        reason: Why it is not a hit.
        entry: Newest intact copy; None when there is only a row without a payload.
        tiers: By tier ``held``, ``absent``, ``pointer`` (the payload is in the object store), ``corrupt`` or why it
            does not answer.
        manifest: Named parts that went into the key.
        missing_blobs: Digests of files that it refers to and that are gone.
        events: What happened to it, oldest first.
    """

    key: str
    state: str
    reason: str
    entry: Entry | None
    tiers: dict[str, str]
    manifest: dict[str, Any]
    missing_blobs: list[str]
    events: list[CacheEvent] = field(default_factory=list[CacheEvent])

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes, the payload left out, for JSON."""
        entry: dict[str, Any] = {}
        if self.entry is not None:
            names = ("created_at", "expires_at", "compute_seconds", "tags", "fence", "size", "stored_bytes")
            entry = {name: getattr(self.entry, name) for name in names}
            entry |= {"blobs": dict(self.entry.blobs), "usage": dict(self.entry.usage)}
            entry["placement"] = sorted(self.entry.placement)
        return {
            "key": self.key,
            "state": self.state,
            "reason": self.reason,
            "tiers": self.tiers,
            **entry,
            "manifest": self.manifest,
            "missing_blobs": self.missing_blobs,
            "events": [asdict(event) for event in self.events],
        }


def ls(
    cache: TieredCache,
    *,
    kind: str | None = None,
    tag: str | None = None,
    task: str | None = None,
    older_than: float | None = None,
    larger_than: int | None = None,
    flow_run: str | None = None,
    limit: int = 50,
    after: str | None = None,
) -> list[EntrySummary]:
    """Return a page of the entries that SQL has, newest first, by walking an index and not all entries.

    Args:
        cache: The cache.
        kind: Only of this kind.
        tag: Only with this tag.
        task: Only of the task of this name.
        older_than: Only computed more than this many seconds ago.
        larger_than: Only with more than this many bytes of payload and files.
        flow_run: Only those that the flow run of this id has looked up or computed.
        limit: How many at most.
        after: Key of the last entry of the page before.

    Raises:
        InvalidKeyError: There is no entry ``after`` any more.
        TierUnavailableError: SQL does not answer.
    """
    namespace = cache.settings.namespace
    columns = [entry_table.c[name] for name in EntrySummary.__dataclass_fields__ if name != "tags"]
    statement = sa.select(*columns).where(entry_table.c.namespace == namespace)
    walked = entry_table if tag is None else tag_table
    if kind is not None:
        statement = statement.where(entry_table.c.kind == kind)
    if task is not None:
        statement = statement.where(entry_table.c.task == task)
    if tag is not None:
        statement = statement.join(tag_table, _same_entry).where(tag_table.c.namespace == namespace)
        statement = statement.where(tag_table.c.tag.in_(cache.privacy.tags_of(tag)))
    statement = statement.where(walked.c.created_at < _EVER)  # so that SQLite walks the index that has it
    if older_than is not None:
        statement = statement.where(walked.c.created_at < time.time() - older_than)
    if larger_than is not None:
        statement = statement.where(entry_table.c.stored_bytes + entry_table.c.blob_bytes > larger_than)
        if larger_than >= LARGE_BYTES and not cache.parts.database.is_sqlite:
            # PostgreSQL weighs their index, by how many there are; SQLite would always take it, and sort them all.
            statement = statement.where(is_large())
    if flow_run is not None:
        of_run = (_event.c.namespace == namespace) & (_event.c.flow_run_id == flow_run)
        statement = statement.where(entry_table.c.key.in_(sa.select(_event.c.key).where(of_run)))
    if after is not None:
        created_at = _created_at(cache, after)
        beyond = (walked.c.created_at < created_at) | (walked.c.key < after)
        statement = statement.where(walked.c.created_at <= created_at, beyond)
    statement = statement.order_by(walked.c.created_at.desc(), walked.c.key.desc()).limit(limit)
    with cache.parts.database.read() as connection:
        rows = connection.execute(statement).mappings().all()
    return _summaries(Walker(cache), rows)


_same_entry = (tag_table.c.namespace == entry_table.c.namespace) & (tag_table.c.key == entry_table.c.key)


def _created_at(cache: TieredCache, key: str) -> float:
    statement = sa.select(entry_table.c.created_at).where(
        entry_table.c.namespace == cache.settings.namespace, entry_table.c.key == key
    )
    with cache.parts.database.read() as connection:
        created_at: float | None = connection.execute(statement).scalar()
    if created_at is None:
        raise InvalidKeyError(f"there is no entry {key[:80]!r} any more to go on after; begin with the first page")
    return created_at


def _summaries(walker: Walker, rows: Sequence[sa.RowMapping]) -> list[EntrySummary]:
    tags: dict[str, list[str]] = {}
    for batch in batched(row["key"] for row in rows):
        tags |= walker.tags(batch)
    summaries: list[EntrySummary] = []
    for row in rows:
        values: dict[str, Any] = dict(row) | {"placement": str(row["placement"]).split(","), "tags": tags[row["key"]]}
        summaries.append(EntrySummary(**values))
    return summaries


def count(cache: TieredCache, *, key: str | None = None, kind: str | None = None, tag: str | None = None) -> int:
    """Return how many entries of SQL an invalidation of this would concern.

    Raises:
        InvalidKeyError: More than one is given, or it is not well-formed.
        TierUnavailableError: SQL does not answer.
    """
    with cache.parts.database.read() as connection:
        scopes = [scope_of(key=key, kind=kind, tag=name) for name in cache.privacy.tags_of(tag)] if tag else None
        scopes = scopes or [scope_of(key=key, kind=kind, tag=tag)]
        return sum(entries_under(connection, cache.settings.namespace, scope) for scope in scopes)


def show(cache: TieredCache, key: str) -> EntryDetails | None:
    """Return everything about an entry; None when no tier that answers has it. Changes nothing but corrupt copies.

    Raises:
        InvalidKeyError: The key is not well-formed.
    """
    check_key(key)
    walker, copies, tiers = Walker(cache), list[Entry](), dict[str, str]()
    missing, events = list[str](), list[CacheEvent]()
    for tier in cache.parts.chain.tiers:
        try:
            answer = walker.read(tier, [key])
        except TierUnavailableError as error:
            tiers[tier.name] = error.why
            continue
        copies.extend(answer.entries.values())
        held = "held" if key in answer.entries else "absent"
        tiers[tier.name] = "corrupt" if key in answer.corrupt else "pointer" if key in answer.elsewhere else held
    if not copies and "pointer" not in tiers.values() and "corrupt" not in tiers.values():
        return None
    newest = max(copies, key=lambda entry: (entry.fence, bool(entry.manifest)), default=None)
    state, reason = _state(cache, newest)
    manifest = cache.privacy.opened(key, newest.manifest) if newest else {}
    # A tier that is down is named in `tiers`; what only it could tell is left empty.
    with suppress(TierUnavailableError):
        missing.extend(cache.blobs.missing(newest.blobs, newest.marks) if newest else ())
    with suppress(TierUnavailableError):
        events.extend(cache.parts.events.of_key(key))
    return EntryDetails(key, state, reason, newest, tiers, manifest, missing, events)


def _state(cache: TieredCache, entry: Entry | None) -> tuple[str, str]:
    if entry is None:
        return "corrupt", "no tier has its payload intact"
    try:
        verdict = judge(entry, cache.parts.chain.generations(entry.scopes), time.time())
    except TierUnavailableError as error:
        return "unknown", str(error)
    return (str(verdict.outcome), verdict.reason) if verdict else ("unknown", "its generation could not be learnt")


def closest(cache: TieredCache, key: str) -> list[str]:
    """Return up to three keys that somebody who typed ``key`` may have meant: those with it, else similar ones.

    Raises:
        TierUnavailableError: SQL does not answer.
    """
    column = entry_table.c.key
    newest = sa.select(column).where(entry_table.c.namespace == cache.settings.namespace)
    newest = newest.order_by(entry_table.c.created_at.desc())
    beginning = column.startswith(key, autoescape=True) if ":" in key else column.contains(key, autoescape=True)
    with cache.parts.database.read() as connection:
        begun = connection.execute(newest.where(beginning).limit(_SUGGESTIONS)).scalars().all()
        if begun:
            return list(begun)
        candidates: Sequence[str] = connection.execute(newest.limit(_CANDIDATES)).scalars().all()
    return difflib.get_close_matches(key, candidates, n=_SUGGESTIONS)
