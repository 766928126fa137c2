"""Contents of files: stored once under their digest, and verified before they are used.

Where the object store is a folder, a lookup reads the bytes and checks their digest; a file whose `stat` has not
changed since this process read it is not read again. Of a remote store a lookup asks existence and size. Damage that
leaves the size alone is found there when the bytes come to this machine: the copy is removed and `BlobMissingError`
raised, so that the next lookup misses and the result is computed anew.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cache_blocks.errors import BlobMissingError, CacheError, InvalidKeyError, TierUnavailableError
from cache_blocks.files import CachedFile
from cache_blocks.fingerprint import digest_bytes, digest_path, is_digest
from cache_blocks.tiers.base import describe

if TYPE_CHECKING:
    from cache_blocks.tiers.breaker import Breaker
    from cache_blocks.tiers.object_store import ObjectStore

R = TypeVar("R")

GRACE_SECONDS: Final = 3600.0
"""A blob younger than this is never collected: its entry may be about to be written."""


class BlobStore:
    """Blobs of one namespace in the object store, with verified local copies.

    Args:
        store: Where the blobs are.
        breaker: Breaker of the object store.
        namespace: Environment that the blobs belong to.
        folder: Where local copies go.
    """

    def __init__(self, store: ObjectStore, breaker: Breaker, namespace: str, folder: Path) -> None:
        self._store = store
        self._breaker = breaker
        self._namespace = namespace
        self._folder = folder

    def put(self, file: CachedFile) -> None:
        """Store a file's bytes unless they are there; a blob that is there is made young again.

        Raises:
            TierUnavailableError: The object store is down, slow or full.
            BlobMissingError: The produced file is gone or has changed since it was wrapped.
        """
        path = self._path(file.digest)
        if self._guarded(self._is_young, file.digest, file.size):
            return
        source = file.path
        if not source.exists() or digest_path(source) != file.digest:
            raise BlobMissingError(f"{file.name} is gone or has changed since its task returned it")
        self._guarded(self._store.write_file, path, source)

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

    def missing(self, sizes: Mapping[str, int]) -> list[str]:
        """Return the digests, of these, whose bytes are not whole in the object store; what is damaged goes.

        Raises:
            TierUnavailableError: The object store does not answer.
        """
        return [digest for digest, size in sizes.items() if not self._guarded(self._is_whole, digest, size)]

    def delete(self, digests: Iterable[str]) -> int:
        """Remove blobs, local copies too; return how many the object store had."""
        digests = [digest for digest in digests if is_digest(digest)]  # anything else is the name of no blob
        for digest in digests:
            folder = self._folder / digest[:2] / digest
            for copy in folder.glob("*") if folder.is_dir() else ():
                copy.unlink(missing_ok=True)
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

    def _is_whole(self, digest: str, size: int) -> bool:
        """Whether the object store has these bytes, as far as it can tell (see the module); remove what is damaged."""
        path = self._path(digest)
        try:
            found = self._store.exists(path)
            if found == size and (self._store.local_root is None or digest_path(path) == digest):
                return True
        except FileNotFoundError:  # collected since we have asked for its size
            return False
        self._store.delete([path])
        return False

    def _is_young(self, digest: str, size: int) -> bool:
        if not self._is_whole(digest, size):
            return False
        return time.time() - _modified(self._store.details(self._path(digest))) < GRACE_SECONDS / 2

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
        raise TierUnavailableError("object_store", describe(error)) from error


def _modified(details: dict[str, Any]) -> float:
    """Return when an object was last written, in seconds since the epoch; stores name it differently."""
    value = details.get("mtime") or details.get("LastModified") or details.get("created") or 0.0
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return float(value)
