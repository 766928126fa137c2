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

import secrets
from typing import TYPE_CHECKING, Any, Final

from cache_blocks.tiers.s3_parts import etag_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cache_blocks.files import CachedFile
    from cache_blocks.private.files import PrivateFiles
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
        private: Knows what is in the private ones.
    """

    def __init__(self, store: ObjectStore, folder: Path, private: PrivateFiles) -> None:
        self._store = store
        self._private = private
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
            return self._private.holds(path, digest)
        if _mark(found) in ("", mark, self._verified.get(digest)):
            return True
        return self._is_right(path, digest) and self.remember(digest, found) != ""

    def _is_right(self, path: str, digest: str) -> bool:
        """Whether a remote object's bytes are the right ones; reads them."""
        copy = self._folder / digest[:2] / digest / f".{secrets.token_hex(6)}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._store.fetch_file(path, copy)
            return self._private.holds(copy, digest)
        finally:
            copy.unlink(missing_ok=True)

    def is_proven(self, path: str, file: CachedFile, found: Mapping[str, Any]) -> bool:
        """Whether an object of the right size is known to have a file's bytes, so that it need not be stored again."""
        try:
            if self._store.local_root is not None:
                return self._private.holds(path, self._private.name_of(file))
        except FileNotFoundError:
            return False
        known = self._verified.get(self._private.name_of(file)), self._expected(file.local_path)
        return (present := _mark(found)) != "" and present in known

    def _expected(self, source: Path | None) -> str:
        """Return the mark that S3 gives to a file's bytes, as far as it can be known."""
        return etag_of(source) if source is not None and self._store.is_s3 else ""

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
