"""Contents of files: stored once under their digest, and verified before they are used.

What a lookup notices of a damaged blob is told in `wholeness`. What it does not notice is found when the bytes come
to this machine, before anybody uses them: the blob is removed and `BlobMissingError` raised in the task that wanted the
file. From then on every lookup of it, in any process and whatever tier the entry is in, is a miss, and the result is
computed anew. A local copy that was verified serves without the store.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cache_blocks.errors import BlobMissingError, CacheError, InvalidKeyError, TierUnavailableError
from cache_blocks.files import CachedFile
from cache_blocks.fingerprint import digest_bytes, digest_path, is_digest
from cache_blocks.tiers.base import unavailable
from cache_blocks.wholeness import Wholeness

if TYPE_CHECKING:
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
        folder: Where local copies go.
        referring: Returns which of some blobs an entry refers to, by SQL's word.
    """

    def __init__(
        self,
        store: ObjectStore,
        breaker: Breaker,
        namespace: str,
        folder: Path,
        referring: Callable[[Sequence[str]], set[str]],
    ) -> None:
        self._store = store
        self._breaker = breaker
        self._namespace = namespace
        self._folder = folder
        self._referring = referring
        self._wholeness = Wholeness(store, folder)

    def put(self, file: CachedFile) -> str:
        """Store a file's bytes unless they are there; a blob that is there is made young again.

        Returns:
            The store's mark of the bytes, see the module; empty where there is none.

        Raises:
            TierUnavailableError: The object store is down, slow or full.
            BlobMissingError: The produced file is gone or has changed since it was wrapped.
        """
        path = self._path(file.digest)
        found = self._guarded(self._wholeness.details, path)
        if found is None or not self._guarded(self._is_young_and_whole, file, found):
            source = file.path
            if not source.exists() or digest_path(source) != file.digest:
                raise BlobMissingError(f"{file.name} is gone or has changed since its task returned it")
            self._breaker.write(_translate, self._store.write_file, path, source)
            found = self._guarded(self._wholeness.details, path)
        return self._wholeness.remember(file.digest, found or {})

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
        if kept and self._guarded(self._wholeness.details, self._path(file.digest)) is not None:
            return True
        referred = self._is_referred(file.digest)
        while True:
            if referred:
                self.put(file)
            else:
                self._guarded(self._store.delete, [self._path(file.digest)])
            before, referred = referred, self._is_referred(file.digest)
            if referred == before:
                break
        if not referred:
            self._delete_local(file.digest)
        return referred

    def _is_referred(self, digest: str) -> bool:
        return digest in self._referring([digest])

    def materialise(self, file: CachedFile) -> Path:
        """Return a local copy with exactly the file's bytes, fetched at most once per machine.

        Raises:
            BlobMissingError: The object store does not have them, has them damaged, or does not answer.
        """
        target = self._folder / file.digest[:2] / file.digest / file.name
        if target.exists() and target.stat().st_size == file.size and digest_path(target) == file.digest:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{secrets.token_hex(6)}-{file.name}"[:200])
        try:
            self._guarded(self._store.fetch_file, self._path(file.digest), partial)
            self._check(file, partial)
            partial.replace(target)
        except FileNotFoundError as error:
            if isinstance(error, BlobMissingError):
                raise
            raise BlobMissingError(f"the bytes of {file.name} ({file.digest[:12]}…) are not stored") from error
        except TierUnavailableError as error:
            raise BlobMissingError(f"the bytes of {file.name} cannot be fetched: {error}") from error
        finally:
            partial.unlink(missing_ok=True)
        return target

    def spool(self, data: bytes) -> CachedFile:
        """Return bytes as a file on this machine, to be `put`."""
        digest = digest_bytes(data)
        target = self._folder / digest[:2] / digest / "contents"
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{secrets.token_hex(6)}")
        partial.write_bytes(data)
        partial.replace(target)
        file = CachedFile(digest, len(data), target.name, "application/octet-stream")
        file.bind(self, target)
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
        with ThreadPoolExecutor(min(len(sizes), _REQUESTS), "blobs") as pool:  # each is a request
            return [digest for digest, gone in zip(sizes, pool.map(is_gone, sizes), strict=True) if gone]

    def delete(self, digests: Iterable[str]) -> int:
        """Remove blobs, local copies too; return how many the object store had."""
        digests = [digest for digest in digests if is_digest(digest)]  # anything else is the name of no blob
        for digest in digests:
            self._delete_local(digest)
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
        if digest_path(copy) != file.digest:
            self._guarded(self._store.delete, [self._path(file.digest)])
            raise BlobMissingError(f"the stored bytes of {file.name} were damaged; they have been removed")

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
        if int(found["size"]) != file.size or time.time() - _modified(found) >= GRACE_SECONDS / 2:
            return False
        return self._wholeness.is_proven(self._path(file.digest), file, found)

    def _delete_local(self, digest: str) -> None:
        folder = self._folder / digest[:2] / digest
        for copy in folder.glob("*") if folder.is_dir() else ():
            copy.unlink(missing_ok=True)

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
