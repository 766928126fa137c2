"""Rekeying: what older keys have sealed is sealed anew under the current one, in every tier, while it is used.

A copy is replaced in one step, by one that says the same, so that whoever has both keys can read every entry at every
moment, and a run that is interrupted, however, has lost nothing: the next one finds what is left by walking. What a
newer computation has replaced, or somebody has deleted meanwhile, stays so.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, cast

import sqlalchemy as sa

from cache_blocks import codec
from cache_blocks.errors import CacheError, CorruptEntryError, PrivateKeyMissingError, TierUnavailableError
from cache_blocks.fingerprint import is_digest
from cache_blocks.maintenance.walking import Progress, Walker, batched, entry_table, object_store_errors, unheard
from cache_blocks.private.sealing import HEADER_BYTES, id_of, is_sealed, label_of, seal, unseal

if TYPE_CHECKING:
    from cache_blocks.cache import TieredCache
    from cache_blocks.entry import Entry
    from cache_blocks.tiers.base import Tier

BLOBS: Final = "blobs"
_PAGE: Final = 64
_PASSES: Final = 5
"""After so many walks that each found something, somebody writes with an old key all the time."""


@dataclass(slots=True)
class Rekeyed:
    """What became of what older keys had sealed.

    Attributes:
        current: Id of the key that seals.
        rewritten: Number of copies sealed anew, by tier, and of ``blobs``.
        found: Number of sealed copies that the last walk has seen, by id of their key.
        old: Ids of the other keys of the ring.
        unreadable: Copies by tier, and ``blobs``, whose key the ring does not have, or that are damaged.
        errors: Tiers that could not be walked to the end, and why.
    """

    current: str
    old: list[str] = field(default_factory=list[str])
    rewritten: Counter[str] = field(default_factory=Counter[str])
    found: Counter[str] = field(default_factory=Counter[str])
    unreadable: dict[str, int] = field(default_factory=dict[str, int])
    errors: list[str] = field(default_factory=list[str])

    @property
    def dispensable(self) -> list[str]:
        """Ids of the keys that may go: a walk through everything has met nothing of theirs."""
        return [] if self.errors else [key for key in self.old if not self.found[key]]

    @property
    def complete(self) -> bool:
        """Whether everything that can be opened is sealed with the current key."""
        return self.dispensable == self.old and not self.errors

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes, for JSON."""
        return {
            "complete": self.complete,
            "current": self.current,
            "rewritten": dict(self.rewritten),
            "found": dict(self.found),
            "may_go": self.dispensable,
            "unreadable": self.unreadable,
            "errors": self.errors,
        }


def rekey(cache: TieredCache, *, dry_run: bool = False, on_progress: Progress = unheard) -> Rekeyed:
    """Seal everything with the current key that another key of the ring has sealed.

    Walks until a walk has found nothing to do, so that what it says of keys that may go has been seen. A worker that
    still writes with another key first in its ring makes more of the kind.

    Args:
        cache: The cache.
        dry_run: Only count.
        on_progress: Told how far it is.

    Raises:
        PrivateKeyMissingError: There is no key ring.
        ConfigurationError: It is malformed.
    """
    ring = cache.privacy.ring
    total, passes = Counter[str](), 0
    while True:
        done = Rekeyed(ring.current.id, [key.id for key in ring.keys[1:]])
        _Pass(cache, done, on_progress, dry_run=dry_run).run()
        total, passes = total + done.rewritten, passes + 1
        if dry_run or done.errors or not done.rewritten or passes == _PASSES:
            done.rewritten = total
            return done


class _Pass:
    """One walk: files first, so that entries can take up the marks of their new objects; then SQL, then its copies."""

    def __init__(self, cache: TieredCache, done: Rekeyed, on_progress: Progress, *, dry_run: bool) -> None:
        self._cache = cache
        self._walker = Walker(cache)
        self._done = done
        self._on_progress = on_progress
        self._dry_run = dry_run
        self._ring = cache.privacy.ring
        self._current = self._ring.current.label
        self._marks: dict[str, str] = {}

    def run(self) -> None:
        """Walk everything; a tier that does not answer is named, and the others are walked."""
        self._attempt(self._files)
        self._attempt(self._rows)
        for tier in self._walker.copies:
            self._attempt(self._copies, tier)

    def _attempt(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            function(*arguments)
        except TierUnavailableError as error:
            self._done.errors.append(str(error))

    # Entries

    def _rows(self) -> None:
        """Walk SQL's rows: envelopes, and the manifests that are kept beside them and beside pointers."""
        for keys in batched(self._walker.sql.keys(), _PAGE):
            columns = (entry_table.c.key, entry_table.c.fence, entry_table.c.manifest, entry_table.c.envelope)
            mine = (entry_table.c.namespace == self._walker.namespace) & self._walker.among(entry_table.c.key, keys)
            with self._cache.parts.database.read() as connection:
                rows = connection.execute(sa.select(*columns).where(mine)).mappings().all()
            for row in rows:
                self._row(dict(row))
            self._on_progress("entries in sql", len(keys))

    def _row(self, row: Mapping[Any, Any]) -> None:
        key, new = str(row["key"]), dict[str, Any]()
        manifest = self._manifest("sql", key, row["manifest"])
        if manifest != row["manifest"]:
            new["manifest"] = manifest
        if row["envelope"] is not None:
            try:
                entry = codec.unpack(bytes(row["envelope"]), key=key, namespace=self._walker.namespace)
            except CorruptEntryError:  # found, and removed, by whoever looks it up
                return
            if (resealed := self._entry("sql", entry)) is not entry:
                new["envelope"] = codec.pack(resealed)
        if not new or self._dry_run:
            return
        same = (entry_table.c.namespace == self._walker.namespace) & (entry_table.c.key == key)
        with self._cache.parts.database.begin() as connection:  # no row that has gone comes back, and no newer one goes
            update = sa.update(entry_table).where(same, entry_table.c.fence == row["fence"]).values(**new)
            self._done.rewritten["sql"] += connection.execute(update).rowcount

    def _copies(self, tier: Tier) -> None:
        for keys, answer in self._walker.envelopes(tier):
            changed = [
                resealed
                for entry in answer.entries.values()
                if (resealed := self._entry(tier.name, entry)) is not entry
            ]
            if changed and not self._dry_run:
                self._replace(tier, changed)
            self._on_progress(f"entries in {tier.name}", len(keys))

    def _replace(self, tier: Tier, entries: Sequence[Entry]) -> None:
        """Replace copies; one whose entry is forgotten while this is done is taken back, since it had been erased."""
        keys = [entry.key for entry in entries]
        before = self._walker.known(keys)
        stored = self._cache.parts.chain.guarded(tier, tier.write, entries)
        if gone := sorted(before - self._walker.known(keys)):
            self._walker.delete(tier, gone)
        self._done.rewritten[tier.name] += len(stored)

    def _entry(self, tier: str, entry: Entry) -> Entry:
        """Return an entry under the current key; the very same one if there is nothing to do."""
        payload = self._resealed(tier, entry.payload, "payload", entry.key)
        manifest = self._manifest(tier, entry.key, entry.manifest)
        marks = {name: self._marks.get(name, mark) for name, mark in entry.marks.items()}
        if payload is entry.payload and manifest == entry.manifest and marks == entry.marks:
            return entry
        return replace(entry, payload=payload, manifest=manifest, marks=marks)

    def _manifest(self, tier: str, key: str, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            sealed = base64.b64decode(manifest["sealed"], validate=True)
        except (KeyError, TypeError, binascii.Error, ValueError):
            return manifest
        resealed = self._resealed(tier, sealed, "manifest", key)
        return manifest if resealed is sealed else {**manifest, "sealed": base64.b64encode(resealed).decode()}

    def _resealed(self, tier: str, data: bytes, what: str, key: str) -> bytes:
        """Return sealed bytes under the current key; the very same ones if they are, or cannot be opened."""
        if not is_sealed(data) or not self._is_due(tier, data):
            return data
        place = (what, self._walker.namespace, key)
        try:
            return seal(unseal(data, self._ring, place), self._ring, place)
        except CacheError:
            self._give_up(tier)
            return data

    def _is_due(self, where: str, header: bytes) -> bool:
        """Whether something that begins so has to be sealed anew, and can be; counts what its key is."""
        self._done.found[id_of(header)] += 1
        label = label_of(header)
        if label == self._current:
            return False
        if label in self._ring.by_label:
            return True
        self._give_up(where)
        return False

    def _give_up(self, where: str) -> None:
        self._done.unreadable[where] = self._done.unreadable.get(where, 0) + 1

    # Files

    def _files(self) -> None:
        for name in self._names():
            header = self._header(name)
            if is_sealed(header) and len(header) == HEADER_BYTES and self._is_due(BLOBS, header) and not self._dry_run:
                self._file(name)
            self._on_progress(BLOBS, 1)

    def _names(self) -> Iterator[str]:
        store = self._cache.parts.store
        with object_store_errors():
            paths = [path for path, _ in store.walk(store.path(self._walker.namespace, BLOBS))]
        yield from filter(is_digest, (path.rpartition("/")[2] for path in paths))

    def _header(self, name: str) -> bytes:
        with object_store_errors():
            try:
                path = self._walker.blob_path(name)
                return cast("bytes", self._cache.parts.store.fs.cat_file(path, start=0, end=HEADER_BYTES))
            except FileNotFoundError:  # collected since it was listed
                return b""

    def _file(self, name: str) -> None:
        """Replace one blob; if the last entry that refers to it goes meanwhile, so does what was just stored."""
        blobs, store, path = self._cache.blobs, self._cache.parts.store, self._walker.blob_path(name)
        referred = bool(self._walker.referring([name]))
        folder = self._walker.local_files
        folder.mkdir(parents=True, exist_ok=True)
        old, new = (folder / f".{secrets.token_hex(6)}.{age}" for age in ("old", "new"))
        try:
            with object_store_errors():
                store.fetch_file(path, old)
                blobs.private.reseal(old, new, name)
                store.write_file(path, new)
            if referred and not self._walker.referring([name]):
                blobs.delete([name])
            elif mark := blobs.mark_of(name):
                self._marks[name] = mark
            self._done.rewritten[BLOBS] += 1
        except FileNotFoundError:
            return
        except (CorruptEntryError, PrivateKeyMissingError):
            self._give_up(BLOBS)
        finally:
            old.unlink(missing_ok=True)
            new.unlink(missing_ok=True)
