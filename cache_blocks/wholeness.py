"""Whether a stored blob still has the bytes that were stored, as far as a lookup can tell without reading them.

- A folder: every damage. The bytes are read and their digest checked; a file whose `stat` has not changed since this
  process read it is not read again.
- A remote store: everything that wrote the object anew, which includes every truncation. An entry carries the store's
  own mark of the bytes as they were stored (ETag, else checksum, else time of writing), and the lookup, which asks for
  existence and size anyway, compares it. Another mark is not yet damage, since equal bytes may be stored twice: then
  the bytes are read, once per process and mark, and their digest decides.
- Not noticed by a lookup: bytes that decay inside a remote store without its knowing (S3 and its like check their own),
  and, where the mark is a time, what was overwritten within that clock's tick.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING, Any, Final

from cache_blocks.fingerprint import digest_path

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cache_blocks.files import CachedFile
    from cache_blocks.tiers.object_store import ObjectStore

_REMEMBERED: Final = 10_000
"""How many marks a process remembers."""
_MARKS: Final = (
    *("ETag", "etag", "md5Hash", "content_md5"),
    *("mtime", "LastModified", "last_modified", "updated", "created"),
)
"""What stores call that which they tell versions of an object by, best first."""


class Wholeness:
    """Judges the blobs of one object store; what the store raises comes through.

    Args:
        store: Where the blobs are.
        folder: Where those that have to be read are put for a moment.
    """

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._verified: dict[str, str] = {}  # by digest, the mark of bytes that this process has stored or read

    def details(self, path: str) -> dict[str, Any] | None:
        """Return what the store says of an object, or None when there is none."""
        try:
            self._store.fs.invalidate_cache()
            return self._store.details(path)
        except FileNotFoundError:
            return None

    def is_intact(self, path: str, digest: str, mark: str, found: Mapping[str, Any]) -> bool:
        """Whether an object of the right size has the right bytes; FileNotFoundError when it has gone meanwhile.

        Args:
            path: The object.
            digest: Digest of the right bytes.
            mark: Mark of the object when it was stored; without it a remote object is read.
            found: Its details.
        """
        if self._store.local_root is not None:
            return digest_path(path) == digest
        if _mark(found) in ("", mark, self._verified.get(digest)):
            return True
        return self._is_right(path, digest) and self.remember(digest, found) != ""

    def _is_right(self, path: str, digest: str) -> bool:
        """Whether a remote object's bytes are the right ones; reads them."""
        copy = self._folder / digest[:2] / digest / f".{secrets.token_hex(6)}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._store.fetch_file(path, copy)
            return digest_path(copy) == digest
        finally:
            copy.unlink(missing_ok=True)

    def is_proven(self, path: str, file: CachedFile, found: Mapping[str, Any]) -> bool:
        """Whether an object of the right size is known to have a file's bytes, so that it need not be stored again."""
        try:
            if self._store.local_root is not None:
                return digest_path(path) == file.digest
        except FileNotFoundError:
            return False
        present = _mark(found)
        return bool(present) and present in (self._verified.get(file.digest), _md5(file.local_path))

    def remember(self, digest: str, found: Mapping[str, Any]) -> str:
        """Remember, and return, the mark of bytes that were just stored or read; none where damage is seen anyway."""
        if self._store.local_root is not None:
            return ""
        while len(self._verified) >= _REMEMBERED:
            self._verified.pop(next(iter(self._verified)), None)
        self._verified[digest] = _mark(found)
        return self._verified[digest]


def _mark(details: Mapping[str, Any]) -> str:
    return next((str(details[name]).strip('"') for name in _MARKS if details.get(name)), "")


def _md5(source: Path | None) -> str:
    """Return what S3 gives as the mark of an object that was stored in one piece."""
    if source is None:
        return ""
    with source.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
