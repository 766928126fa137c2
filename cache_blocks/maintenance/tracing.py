"""Tracing a recording: which entries and blobs were derived from it, in every tier.

An entry belongs to a recording when it carries the tag ``recording:DIGEST``. One without any such tag belongs to it
when it refers to, or has among its inputs, a file that only this recording's entries have. What another recording
has as well (the same sound in two containers) is the other one's too, and stays.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import sqlalchemy as sa

from cache_blocks.canonical import digest_value
from cache_blocks.entry import Entry
from cache_blocks.errors import TierUnavailableError
from cache_blocks.files import CachedFile
from cache_blocks.fingerprint import is_digest
from cache_blocks.maintenance.walking import (
    Progress,
    Walker,
    batched,
    blob_table,
    entry_table,
    tag_table,
    unheard,
)

TAG_PREFIX: Final = "recording:"
"""What the tag of a recording's entries begins with; its digest follows."""


@dataclass(slots=True)
class Trace:
    """What was derived from a recording.

    Attributes:
        keys: Its entries' keys by tier.
        untagged: Those of them that do not carry its tag.
        blobs: Digests of the files that its entries refer to.
        shared: Those of them that a live entry of another recording refers to.
        unreadable: Tiers that could not be read, and why.
    """

    keys: dict[str, set[str]] = field(default_factory=lambda: defaultdict[str, set[str]](set))
    untagged: set[str] = field(default_factory=set[str])
    blobs: set[str] = field(default_factory=set[str])
    shared: set[str] = field(default_factory=set[str])
    unreadable: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def all_keys(self) -> set[str]:
        """Keys of the recording's entries in any tier."""
        return set[str]().union(*self.keys.values())

    @property
    def own_blobs(self) -> set[str]:
        """Digests of the files that are this recording's alone."""
        return self.blobs - self.shared


def trace(walker: Walker, digest: str, on_progress: Progress = unheard, erased: Trace | None = None) -> Trace:
    """Find everything in every tier that was derived from a recording.

    Args:
        walker: The tiers.
        digest: Digest of the recording's bytes.
        on_progress: Told how far it is.
        erased: What is known to have been derived from it, and counts if it is found.

    Raises:
        TierUnavailableError: SQL does not answer.
    """
    tracer = _Tracer(walker, digest, on_progress, erased or Trace())
    while True:
        tracer.look_in_sql()
        before = tracer.trace.own_blobs
        tracer.look_in_copies()
        if tracer.trace.own_blobs == before:
            return tracer.trace


class _Tracer:
    def __init__(self, walker: Walker, digest: str, on_progress: Progress, erased: Trace) -> None:
        self._walker = walker
        self._digest = digest
        privacy = walker.cache.privacy
        tag = f"{TAG_PREFIX}{digest}"
        self._tags = {tag, privacy.tag(tag)} if privacy.has_ring else {tag}
        self._on_progress = on_progress
        self._others: set[str] = set()
        self._erased = erased.all_keys
        self.trace = Trace(blobs=erased.own_blobs)

    def look_in_sql(self) -> None:
        """Take up what SQL has, until that leads to nothing more."""
        while found := ((tagged := self._tagged()) | self._touching()) - self.trace.keys["sql"]:
            self.trace.untagged |= found - tagged
            self._take_rows(found)

    def _tagged(self) -> set[str]:
        statement = sa.select(tag_table.c.key).where(
            tag_table.c.namespace == self._walker.namespace, tag_table.c.tag.in_(self._tags)
        )
        with self._walker.cache.parts.database.read() as connection:
            return set(connection.execute(statement).scalars())

    def _take_rows(self, keys: Iterable[str]) -> None:
        found: set[str] = set()
        for batch in batched(keys):
            statement = sa.select(blob_table.c.digest).where(
                blob_table.c.namespace == self._walker.namespace, blob_table.c.key.in_(batch)
            )
            with self._walker.cache.parts.database.read() as connection:
                found.update(filter(is_digest, connection.execute(statement).scalars()))
            self.trace.keys["sql"].update(batch)
        self._take_blobs(found)

    def _take_blobs(self, digests: Iterable[str]) -> None:
        self.trace.blobs.update(digests)
        self.trace.shared = self.trace.blobs & self._others
        for batch in batched(self.trace.own_blobs):
            referring = self._walker.referring(batch)
            others = self._of_others({key for _, key in referring} - self.trace.keys["sql"])
            self.trace.shared.update(digest for digest, key in referring if key in others)

    def _of_others(self, keys: Iterable[str]) -> set[str]:
        """Return which of these keys are unexpired entries of other recordings."""
        others: set[str] = set()
        for batch in batched(keys):
            statement = sa.select(entry_table.c.key).where(
                entry_table.c.namespace == self._walker.namespace,
                entry_table.c.key.in_(batch),
                entry_table.c.expires_at > time.time(),
            )
            with self._walker.cache.parts.database.read() as connection:
                live = set(connection.execute(statement).scalars())
            tags = self._walker.tags(batch)
            others.update(key for key in live if self._is_others(tags[key]))
        return others

    def _touching(self) -> set[str]:
        """Return the keys without a recording's tag that refer to this one's own files, or have them as inputs."""
        keys: set[str] = set()
        for batch in batched(self.trace.own_blobs):
            keys.update(key for _, key in self._walker.referring(batch))
        manifest = sa.cast(entry_table.c.manifest, sa.Text)
        for mark in self._marks():
            statement = sa.select(entry_table.c.key).where(
                entry_table.c.namespace == self._walker.namespace, manifest.contains(mark)
            )
            with self._walker.cache.parts.database.read() as connection:
                keys.update(connection.execute(statement).scalars())
        tagged: set[str] = set()
        for batch in batched(keys):
            tagged.update(key for key, tags in self._walker.tags(batch).items() if self._is_others(tags))
        return keys - tagged

    def look_in_copies(self) -> None:
        """Take up what the other tiers have."""
        for tier in self._walker.copies:
            try:
                for keys, answer in self._walker.envelopes(tier):
                    self._take_entries(tier.name, answer.entries)
                    self._on_progress(f"searching {tier.name}", len(keys))
            except TierUnavailableError as error:
                self.trace.unreadable[tier.name] = error.why

    def _take_entries(self, tier: str, entries: Mapping[str, Entry]) -> None:
        marks = self._marks()
        known = self.trace.all_keys | self._erased
        for key, entry in entries.items():
            if not self._tags.isdisjoint(entry.tags) or key in known or self._touches(entry, marks):
                self.trace.keys[tier].add(key)
                if self._tags.isdisjoint(entry.tags):
                    self.trace.untagged.add(key)
                if entry.blobs:
                    self._take_blobs(entry.blobs)
            elif self._is_others(entry.tags) and entry.expires_at > time.time():
                self._others.update(entry.blobs)
                self.trace.shared |= self.trace.blobs & entry.blobs.keys()

    def _touches(self, entry: Entry, marks: set[str]) -> bool:
        if self._is_others(entry.tags):
            return False
        return bool(_inputs(entry) & marks) or bool(entry.blobs.keys() & self.trace.own_blobs)

    def _marks(self) -> set[str]:
        """Return what the recording, and each file that is its alone, counts as among the inputs of a manifest."""
        files = {self._digest, *self.trace.own_blobs}
        marks = {digest_value(CachedFile(digest, 0, "file", "application/octet-stream"), "file") for digest in files}
        privacy = self._walker.cache.privacy
        return marks | {privacy.input_digest(mark) for mark in marks} if privacy.has_ring else marks

    def _is_others(self, tags: Iterable[str]) -> bool:
        tags = list(tags)
        return self._tags.isdisjoint(tags) and any(tag.startswith(TAG_PREFIX) for tag in tags)


def _inputs(entry: Entry) -> set[str]:
    """Return the digests of the inputs that a manifest names; of one that is not ours, nothing."""
    try:
        return {str(part["digest"]) for part in entry.manifest.get("inputs", {}).values()}
    except (AttributeError, KeyError, TypeError):
        return set()
