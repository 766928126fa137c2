"""Contents of files: stored once under their digest, and verified before they are used.

What a lookup notices of a damaged blob is told in `wholeness`. What it does not notice is found when the bytes come
to this machine, before anybody uses them: the blob is removed and `BlobMissingError` raised in the task that wanted the
file. From then on every lookup of it, in any process and whatever tier the entry is in, is a miss, and the result is
computed anew. A local copy that was verified serves without the store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cache_blocks.errors import (
    BlobMissingError,
    CacheError,
    CorruptEntryError,
    InvalidKeyError,
    PrivateKeyMissingError,
    TierUnavailableError,
)
from cache_blocks.events import origin_now, originating
from cache_blocks.files import CachedFile
from cache_blocks.fingerprint import digest_bytes, digest_path, is_digest
from cache_blocks.tiers.base import unavailable
from cache_blocks.wholeness import Wholeness

if TYPE_CHECKING:
    from cache_blocks.local_files import LocalCopy, LocalFiles
    from cache_blocks.private.files import PrivateFiles
    from cache_blocks.tiers.breaker import Breaker
    from cache_blocks.tiers.object_store import ObjectStore

R = TypeVar("R")

_REQUESTS: Final = 16
"""How many at the same time."""
GRACE_SECONDS: Final = 3600.0
"""A blob younger than this is never collected: its entry may be about to be written."""


class BlobStore:
    """Blobs of one namespace in the object store, with verified local copies.

    Args:
        store: Where the blobs are.
        breaker: Breaker of the object store.
        namespace: Environment that the blobs belong to.
        local: Where local copies go.
        referring: Returns which of some blobs an entry refers to, by SQL's word.
        private: Names, seals and opens the private ones.
    """

    def __init__(
        self,
        store: ObjectStore,
        breaker: Breaker,
        namespace: str,
        local: LocalFiles,
        referring: Callable[[Sequence[str]], set[str]],
        private: PrivateFiles,
    ) -> None:
        self._store = store
        self._breaker = breaker
        self._namespace = namespace
        self._local = local
        self._referring = referring
        self.private = private
        self._wholeness = Wholeness(store, local.folder, private)

    def put(self, file: CachedFile) -> str:
        """Store a file's bytes unless they are there; a blob that is there is made young again.

        Returns:
            The store's mark of the bytes, see the module; empty where there is none.

        Raises:
            TierUnavailableError: The object store is down, slow or full.
            BlobMissingError: The produced file is gone or has changed since it was wrapped.
        """
        name = self.private.name_of(file)
        path = self._path(name)
        found = self._guarded(self._wholeness.details, path)
        written = found is None and self._write(file, only_new=True)
        if found is None:
            found = self._guarded(self._wholeness.details, path)
        if not written and (found is None or not self._guarded(self._is_young_and_whole, file, found)):
            self._write(file, only_new=False)
            found = self._guarded(self._wholeness.details, path)
        return self._wholeness.remember(name, found or {})

    def _write(self, file: CachedFile, *, only_new: bool) -> bool:
        """Send a file's bytes; return whether they are stored now, and not left out for what was there."""
        source = file.path
        if not source.exists() or digest_path(source) != file.digest:
            raise BlobMissingError(f"{self.private.shown(file)} is gone or has changed since its task returned it")
        write = partial(self._store.write_file, only_new=only_new)
        with self.private.stored_form(file, source) as stored:
            return self._breaker.write(_translate, write, self._path(self.private.name_of(file)), stored)

    def settle(self, files: Sequence[CachedFile], *, kept: bool) -> bool:
        """After their entry was written, or refused: see that blobs are there if, and only if, an entry refers to them.

        A writer that is refused removes what it stored, unless somebody else refers to it. Between its look and its
        removing another one may have taken up the blob. So each looks again after it has acted: the one that removed
        for references, the one that referred for the blob; whoever comes last sees what the other did, and mends it.

        Returns:
            Whether all of them are in the store.

        Raises:
            TierUnavailableError: The object store or SQL does not answer.
            BlobMissingError: A blob has to be stored once more, and the produced file is gone.
        """
        present = [self._settle_one(file, kept=kept) for file in files]
        return all(present)

    def _settle_one(self, file: CachedFile, *, kept: bool) -> bool:
        name = self.private.name_of(file)
        if kept and self._guarded(self._wholeness.details, self._path(name)) is not None:
            return True
        referred = self._is_referred(name)
        while True:
            if referred:
                self.put(file)
            else:
                self._guarded(self._store.delete, [self._path(name)])
            before, referred = referred, self._is_referred(name)
            if referred == before:
                break
        if not referred:
            self._local.remove(name)
        return referred

    def _is_referred(self, digest: str) -> bool:
        return digest in self._referring([digest])

    def materialise(self, file: CachedFile) -> LocalCopy:
        """Return a local copy with exactly the file's bytes, fetched at most once per machine.

        Raises:
            BlobMissingError: The object store does not have them, has them damaged, or does not answer.
        """
        try:
            return self._copy_of(file, lambda target: self._fetch(file, target))
        except (PrivateKeyMissingError, TierUnavailableError) as error:
            raise BlobMissingError(f"the bytes of {self.private.shown(file)} cannot be fetched: {error}") from error

    def _copy_of(self, file: CachedFile, write: Callable[[Path], object]) -> LocalCopy:
        """Return a local copy, under the name of the blob: who removes the blob finds it."""
        name = self.private.local_name_of(file)
        return self._local.copy_of(file.digest, name, write, blob=self.private.name_of(file))

    def _fetch(self, file: CachedFile, target: Path) -> None:
        try:
            self._guarded(self._store.fetch_file, self._path(self.private.name_of(file)), target)
            self._check(file, target)
        except FileNotFoundError as error:
            if isinstance(error, BlobMissingError):
                raise
            raise BlobMissingError(f"the bytes of {self.private.shown(file)} are not stored") from error

    def spool(self, data: bytes, *, private: bool = False) -> CachedFile:
        """Return bytes as a file on this machine, to be `put`.

        Raises:
            PrivateKeyMissingError: It is private, and there is no key ring.
        """
        file = CachedFile(digest_bytes(data), len(data), "contents", "application/octet-stream", private=private)
        file.bind(self, self._copy_of(file, lambda target: target.write_bytes(data)))
        return file

    def missing(self, sizes: Mapping[str, int], marks: Mapping[str, str] = MappingProxyType({})) -> list[str]:
        """Return the digests, of these, whose bytes are not whole in the object store; what is damaged goes.

        Args:
            sizes: Bytes by digest.
            marks: The store's marks of the bytes as they were stored; without its mark a remote blob is read.

        Raises:
            TierUnavailableError: The object store does not answer.
        """

        def is_gone(digest: str) -> bool:
            return not self._guarded(self._is_whole, digest, sizes[digest], marks.get(digest, ""))

        if self._store.local_root is not None or len(sizes) < 2:  # noqa: PLR2004 - none or one
            return [digest for digest in sizes if is_gone(digest)]
        origin = origin_now()

        def is_gone_for_us(digest: str) -> bool:
            with originating(origin):
                return is_gone(digest)

        with ThreadPoolExecutor(min(len(sizes), _REQUESTS), "blobs") as pool:  # each is a request
            return [digest for digest, gone in zip(sizes, pool.map(is_gone_for_us, sizes), strict=True) if gone]

    def mark_of(self, digest: str) -> str:
        """Return the store's mark of a blob that was just stored, see `put`; empty where there is none."""
        return self._wholeness.remember(digest, self._guarded(self._wholeness.details, self._path(digest)) or {})

    def delete(self, digests: Iterable[str]) -> int:
        """Remove blobs, local copies too; return how many the object store had."""
        digests = [digest for digest in digests if is_digest(digest)]  # anything else is the name of no blob
        for digest in digests:
            self._local.remove(digest)
        return self._guarded(self._store.delete, [self._path(digest) for digest in digests])

    def aged(self, now: float | None = None) -> list[tuple[str, int]]:
        """Return digest and size of every blob that is past its grace time."""
        limit = (time.time() if now is None else now) - GRACE_SECONDS
        prefix = self._store.path(self._namespace, "blobs")
        found: list[tuple[str, dict[str, Any]]] = self._guarded(lambda: list(self._store.walk(prefix)))
        aged = [
            (path.rsplit("/", 1)[-1], int(details["size"])) for path, details in found if _modified(details) <= limit
        ]
        return [(name, size) for name, size in aged if is_digest(name)]

    def _check(self, file: CachedFile, copy: Path) -> None:
        """Refuse a copy that is not the file, and remove what it was copied from."""
        try:
            self.private.open_in_place(file, copy)
            intact = digest_path(copy) == file.digest
        except CorruptEntryError:
            intact = False
        if not intact:
            self._guarded(self._store.delete, [self._path(self.private.name_of(file))])
            what = self.private.shown(file)
            raise BlobMissingError(f"the stored bytes of {what} were damaged; they have been removed")

    def _is_whole(self, digest: str, size: int, mark: str) -> bool:
        """Whether the object store has these bytes, as far as it can tell; remove what is damaged."""
        path = self._path(digest)
        if (found := self._wholeness.details(path)) is None:
            return False
        try:
            if int(found["size"]) == size and self._wholeness.is_intact(path, digest, mark, found):
                return True
        except FileNotFoundError:  # collected since we have asked for its size
            return False
        self._store.delete([path])
        return False

    def _is_young_and_whole(self, file: CachedFile, found: Mapping[str, Any]) -> bool:
        """Whether a blob need not be stored again."""
        if int(found["size"]) != self.private.size_of(file) or time.time() - _modified(found) >= GRACE_SECONDS / 2:
            return False
        return self._wholeness.is_proven(self._path(self.private.name_of(file)), file, found)

    def _path(self, digest: str) -> str:
        """Return where a blob is; what is no digest could leave this folder.

        Raises:
            InvalidKeyError: It is none.
        """
        if not is_digest(digest):
            raise InvalidKeyError(f"{digest[:80]!r} is not the digest of a blob")
        return self._store.path(self._namespace, "blobs", digest[:2], digest)

    def _guarded(self, function: Callable[..., R], *arguments: Any) -> R:
        return self._breaker.call(_translate, function, *arguments)


def _translate(function: Callable[..., R], *arguments: Any) -> R:
    try:
        return function(*arguments)
    except (FileNotFoundError, CacheError):
        raise
    except Exception as error:
        raise unavailable("object_store", error) from error


def _modified(details: Mapping[str, Any]) -> float:
    """Return when an object was last written, in seconds since the epoch; stores name it differently."""
    value = details.get("mtime") or details.get("LastModified") or details.get("created") or 0.0
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return float(value)
