"""Forgetting a recording: everything derived from it is physically erased, and looked for again afterwards.

What lies outside the tiers is outside of this: backups, old versions in a versioned bucket, a server's own log
(PostgreSQL's WAL, Redis's append-only file) until it is recycled, the memory of other processes until they end.
"""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from cache_blocks.errors import InvalidationIncompleteError, InvalidKeyError, TierUnavailableError
from cache_blocks.fingerprint import digest_path, forget_digests
from cache_blocks.maintenance.collecting import collect
from cache_blocks.maintenance.tracing import TAG_PREFIX, Trace, trace
from cache_blocks.maintenance.walking import (
    Progress,
    Walker,
    batched,
    blob_table,
    entry_table,
    object_store_errors,
    tag_table,
    unheard,
)
from cache_blocks.schema import EventRow, table
from cache_blocks.tiers.base import describe

if TYPE_CHECKING:
    from cache_blocks.cache import TieredCache
    from cache_blocks.database import Database

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_event = table(EventRow)

Also = Callable[[str], object]
"""Takes the digest of a recording and removes what a pipeline keeps of it outside the cache."""


@dataclass(slots=True)
class Forgotten:
    """What was erased, and what could not be.

    Attributes:
        digest: Digest of the recording.
        entries: Keys of the entries derived from it.
        copies: Number of copies of these entries, by tier.
        blobs: Digests of the files that were its alone.
        shared: Digests of files that another recording has too; they are that one's and stay.
        events: Number of events about it.
        left: By tier, what is still there or could not be looked for. Empty means that it is proven to be gone.
    """

    digest: str
    entries: list[str] = field(default_factory=list[str])
    copies: dict[str, int] = field(default_factory=dict[str, int])
    blobs: list[str] = field(default_factory=list[str])
    shared: list[str] = field(default_factory=list[str])
    events: int = 0
    left: dict[str, list[str]] = field(default_factory=lambda: defaultdict[str, list[str]](list))

    @property
    def complete(self) -> bool:
        """Whether a search of all tiers has found nothing any more."""
        return not self.left

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes, for JSON."""
        names = ("digest", "entries", "copies", "blobs", "shared", "events")
        return {name: getattr(self, name) for name in names} | {"complete": self.complete, "left": dict(self.left)}


def digest_of_recording(recording: str | Path) -> str:
    """Return the digest of a recording, given as its file or as the digest itself.

    Raises:
        InvalidKeyError: It is neither.
    """
    if _DIGEST.fullmatch(str(recording)):
        return str(recording)
    if Path(recording).is_file():
        return digest_path(recording)
    raise InvalidKeyError(
        f"{str(recording)!r} is neither a file nor a digest of 64 hexadecimal digits; `cache-blocks show KEY` tells "
        f"the digest after '{TAG_PREFIX}' among an entry's tags"
    )


def forget(
    cache: TieredCache,
    recording: str | Path,
    *,
    also: Sequence[Also] = (),
    dry_run: bool = False,
    on_progress: Progress = unheard,
) -> Forgotten:
    """Erase everything derived from a recording from every tier, and look for it again.

    Its tag is invalidated first, so that what a writer in the middle of it still stores is never served, and does not
    stay: SQL and Redis take no such entry, the writer takes back what it has put elsewhere, and its files unless
    another entry refers to them. What a writer leaves that dies in the middle, or cannot reach SQL, goes with a later
    collection. If ``left`` is not empty, call again once the tiers named there answer.

    Args:
        cache: The cache.
        recording: The file, or its digest.
        also: What else to call with the digest, for what a pipeline keeps outside the cache. What they invalidate is
            erased as well.
        dry_run: Only find out what would be erased.
        on_progress: Told how far it is.

    Raises:
        InvalidKeyError: The recording is neither a file nor a digest.
        TierUnavailableError: SQL does not answer; nothing has been erased.
    """
    forgetter = _Forgetter(cache, digest_of_recording(recording), on_progress)
    if not dry_run:
        forgetter.invalidate(tag=f"{TAG_PREFIX}{forgetter.forgotten.digest}")
    found = forgetter.find()
    if not dry_run:
        for function in also:
            function(forgetter.forgotten.digest)
        forgetter.erase(found)
        forgetter.prove(found)
    return forgetter.forgotten


class _Forgetter:
    def __init__(self, cache: TieredCache, digest: str, on_progress: Progress) -> None:
        self._cache = cache
        self._walker = Walker(cache)
        self._on_progress = on_progress
        self.forgotten = Forgotten(digest)

    def invalidate(self, **what: str) -> None:
        """Make entries misses before they are erased."""
        try:
            self._cache.invalidate(**what)
        except InvalidationIncompleteError as error:
            for tier in error.untold:
                self._leave(tier, "has not been told of the invalidation")

    def find(self) -> Trace:
        """Find what there is."""
        found = trace(self._walker, self.forgotten.digest, self._on_progress)
        self.forgotten.entries = sorted(found.all_keys)
        self.forgotten.copies = {tier: len(keys) for tier, keys in found.keys.items() if keys}
        self.forgotten.blobs = sorted(found.own_blobs)
        self.forgotten.shared = sorted(found.shared)
        return found

    def erase(self, found: Trace) -> None:
        """Erase it, fastest tier last, so that nothing is copied there again meanwhile."""
        for key in sorted(found.untagged):
            self.invalidate(key=key)
        for tier in reversed(self._cache.parts.chain.tiers):
            self._attempt(tier.name, self._walker.delete, tier, self.forgotten.entries)
        self._attempt("object_store", self._cache.blobs.delete, sorted(found.own_blobs))
        self._attempt("sql", self._erase_events)
        self._attempt("digest memo", forget_digests, [self.forgotten.digest, *found.own_blobs])
        for error in collect(self._cache, on_progress=self._on_progress).errors:
            self._leave("collection", error)
        self._on_progress("compacting the database", 1)
        self._attempt("sql", scrub, self._cache.parts.database)

    def _erase_events(self) -> None:
        """Erase the events of the entries, and what the same runs said about the same subject."""
        self._cache.parts.events.flush()
        mine = _event.c.namespace == self._walker.namespace
        for batch in batched(self.forgotten.entries):
            with self._cache.parts.database.begin() as connection:
                about = sa.select(_event.c.flow_run_id, _event.c.subject).distinct()
                pairs = connection.execute(about.where(mine, _event.c.key.in_(batch), _event.c.subject != "")).all()
                conditions = [_event.c.key.in_(batch)]
                conditions += [(_event.c.flow_run_id == run) & (_event.c.subject == subject) for run, subject in pairs]
                for some in batched(conditions, 100):
                    self.forgotten.events += connection.execute(sa.delete(_event).where(mine, sa.or_(*some))).rowcount

    def prove(self, erased: Trace) -> None:
        """Search every tier again and note what is left."""
        again = trace(self._walker, self.forgotten.digest, self._on_progress, erased)
        for tier, why in again.unreadable.items():
            self._leave(tier, f"could not be searched: {why}")
        for tier, keys in again.keys.items():
            for key in sorted(keys):
                self._leave(tier, key)
        self._attempt("sql", self._prove_rows)
        self._attempt("object_store", self._prove_blobs, erased.own_blobs)

    def _prove_rows(self) -> None:
        for batch in batched(self.forgotten.entries):
            for key in sorted(self._walker.known(batch)):
                self._leave("sql", key)
            for side in (tag_table, blob_table, _event):
                mine = (side.c.namespace == self._walker.namespace) & side.c.key.in_(batch)
                if rows := self._walker.count(side, mine):
                    self._leave("sql", f"{rows} rows of {side.name}")

    def _prove_blobs(self, digests: Iterable[str]) -> None:
        for digest in digests:
            if any((self._walker.local_files / digest[:2] / digest).glob("*")):
                self._leave("local files", digest)
            with object_store_errors():
                if self._cache.parts.store.exists(self._walker.blob_path(digest)) is not None:
                    self._leave("object_store", f"blob {digest}")

    def _attempt(self, tier: str, function: Callable[..., object], *arguments: object) -> None:
        try:
            function(*arguments)
        except TierUnavailableError as error:
            self._leave(tier, error.why)

    def _leave(self, tier: str, what: str) -> None:
        if what not in self.forgotten.left[tier]:
            self.forgotten.left[tier].append(what)


def scrub(database: Database) -> None:
    """Make deleted rows unreadable: SQLite leaves them in free pages and its log, PostgreSQL in dead tuples.

    Raises:
        TierUnavailableError: Somebody else holds the database; deleted rows may still be in its file.
    """
    with database.unhurried() as driver:
        if not database.is_sqlite:
            for rows in (tag_table, blob_table, _event, entry_table):
                # It locks nobody out, unless it gives pages at the end of a file back to the system.
                driver.execute(f"VACUUM (TRUNCATE FALSE) {rows.name}")
            return
        try:
            driver.execute("VACUUM")
            busy = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except sqlite3.Error as error:
            raise TierUnavailableError("sql", f"its file could not be compacted ({describe(error)})") from error
    if busy:
        raise TierUnavailableError("sql", "its log could not be emptied, another process is reading")
