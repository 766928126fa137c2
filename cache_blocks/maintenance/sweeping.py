"""Sweeping files: blobs, unfinished objects and local copies that nothing refers to and nobody has touched lately."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

from cache_blocks.blobs import GRACE_SECONDS
from cache_blocks.errors import TierUnavailableError
from cache_blocks.maintenance.walking import Progress, Walker, batched, object_store_errors

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

_TEMPORARY: Final = ".tmp-"


@dataclass(slots=True)
class Collected:
    """What a collection has removed, or would remove.

    Attributes:
        expired: Entries that had expired.
        invalidated: Entries that had been invalidated.
        replicas: Expired or invalidated copies in other tiers that SQL knew nothing of.
        blobs: Contents of files that no entry referred to.
        unfinished: Objects that somebody began to write and never finished, on S3 uploads in parts.
        local_files: Copies on this machine of contents that no entry referred to.
        events: Events that were too old.
        leases: Leases that had ended.
        bytes_freed: Bytes of the entries' payloads, blobs, unfinished objects and local files.
        told: Invalidations that a tier had missed and has now been told.
        untold: Tiers that still have to be told of an invalidation.
        errors: What could not be done, and why. The rest has been done; the next collection tries again.
    """

    expired: int = 0
    invalidated: int = 0
    replicas: int = 0
    blobs: int = 0
    unfinished: int = 0
    local_files: int = 0
    events: int = 0
    leases: int = 0
    bytes_freed: int = 0
    told: int = 0
    untold: list[str] = field(default_factory=list[str])
    errors: list[str] = field(default_factory=list[str])

    def failed(self, error: TierUnavailableError) -> None:
        """Note, once, what could not be done."""
        if str(error) not in self.errors:
            self.errors.append(str(error))

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Sweeper:
    """Deletes files that nothing refers to.

    Attributes:
        walker: The tiers.
        collected: Takes the counts.
        now: Time that ages are judged by, in seconds since the epoch.
        dry_run: Only count.
        doomed: Keys whose references do not count any more.
        live_elsewhere: Digests that copies refer to which SQL does not know; None when they could not all be read.
    """

    walker: Walker
    collected: Collected
    now: float
    dry_run: bool
    doomed: frozenset[str]
    live_elsewhere: set[str] | None

    def blobs(self, on_progress: Progress) -> None:
        """Delete blobs past their grace time that neither SQL nor a copy that SQL does not know refers to."""
        if self.live_elsewhere is None:
            self.collected.errors.append("blobs: left alone, because a tier that cannot be read may refer to them")
            return
        aged = self.walker.cache.blobs.aged(self.now)
        for batch in batched(aged):
            referred = self._referred([digest for digest, _ in batch])
            for digest, size in batch:
                if digest not in referred and self._delete_blob(digest):
                    self.collected.blobs += 1
                    self.collected.bytes_freed += size
            on_progress("blobs", len(batch))

    def _delete_blob(self, digest: str) -> bool:
        """Look again, because a writer may have taken up the blob since it was listed; then delete it."""
        if self.dry_run:
            return True
        if self._is_young(self.walker.blob_path(digest)) or self._referred([digest]):
            return False
        return self.walker.cache.blobs.delete([digest]) > 0

    def _referred(self, digests: Sequence[str]) -> set[str]:
        live = {digest for digest, key in self.walker.referring(digests) if key not in self.doomed}
        return live | ((self.live_elsewhere or set()) & set(digests))

    def unfinished(self, on_progress: Progress) -> None:
        """Delete objects, and uploads in parts, that were begun before the grace time and never published."""
        store = self.walker.cache.parts.store
        with object_store_errors():
            for path, details in store.walk(store.path(self.walker.namespace)):
                if not path.rpartition("/")[2].startswith(_TEMPORARY) or self._is_young(path):
                    continue
                self.collected.unfinished += 1 if self.dry_run else store.delete([path])
                self.collected.bytes_freed += int(details["size"])
                on_progress("unfinished objects", 1)
            for upload in store.unfinished_uploads(store.path(self.walker.namespace), self.now - GRACE_SECONDS):
                if self.dry_run or store.abort_upload(upload):
                    self.collected.unfinished += 1
                    self.collected.bytes_freed += upload.bytes
                    on_progress("unfinished objects", 1)

    def _is_young(self, path: str) -> bool:
        """Return whether an object is within its grace time; one that is gone needs no collecting either."""
        with object_store_errors():
            fs = self.walker.cache.parts.store.fs
            fs.invalidate_cache()
            try:
                modified = cast("datetime", fs.modified(path))
                return modified.timestamp() > self.now - GRACE_SECONDS
            except FileNotFoundError:
                return True

    def local(self, on_progress: Progress) -> None:
        """Delete this machine's copies of blobs that nothing refers to, past the grace time."""
        for batch in batched(self.walker.local_files.glob("*/*")):
            aged = {folder.name: sizes for folder in batch if (sizes := self._aged_files(folder)) is not None}
            for digest in aged.keys() - self._referred(list(aged)):
                self._delete_local(aged[digest])
            on_progress("local copies", len(batch))

    def _aged_files(self, folder: Path) -> dict[Path, int] | None:
        """Return the files of a folder with their sizes; None if one is young, or another process removes them now."""
        try:
            details = {path: path.stat() for path in folder.iterdir()}
        except (FileNotFoundError, NotADirectoryError):
            return None
        if any(stat.st_mtime > self.now - GRACE_SECONDS for stat in details.values()):
            return None
        return {path: stat.st_size for path, stat in details.items()}

    def _delete_local(self, sizes: dict[Path, int]) -> None:
        for path, size in sizes.items():
            self.collected.local_files += 1
            self.collected.bytes_freed += size
            if not self.dry_run:
                path.unlink(missing_ok=True)
