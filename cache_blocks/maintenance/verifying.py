"""Verification: read everything once and check its digest, so that damage is found before somebody needs it."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import sqlalchemy as sa

from cache_blocks.errors import TierUnavailableError
from cache_blocks.fingerprint import is_digest
from cache_blocks.maintenance.walking import Progress, Walker, batched, blob_table, object_store_errors, unheard

if TYPE_CHECKING:
    from cache_blocks.cache import TieredCache

BLOBS = "blobs"


@dataclass(slots=True)
class Verified:
    """What verification has found.

    Attributes:
        intact: Number of intact entries by tier, and of intact ``blobs``.
        corrupt: Keys by tier, and digests under ``blobs``, whose bytes were damaged; these copies have been removed.
        missing: Digests of blobs that entries refer to and that are not in the object store; those entries are misses.
        errors: Tiers that could not be read to the end, and why.
    """

    intact: Counter[str] = field(default_factory=Counter[str])
    corrupt: dict[str, list[str]] = field(default_factory=lambda: defaultdict[str, list[str]](list))
    missing: list[str] = field(default_factory=list[str])
    errors: list[str] = field(default_factory=list[str])

    @property
    def sound(self) -> bool:
        """Whether everything could be read and nothing was damaged or missing."""
        return not (self.corrupt or self.missing or self.errors)

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes, for JSON."""
        return {
            "sound": self.sound,
            "intact": dict(self.intact),
            "corrupt": dict(self.corrupt),
            "missing": self.missing,
            "errors": self.errors,
        }


def verify(cache: TieredCache, on_progress: Progress = unheard) -> Verified:
    """Read every entry in every tier and every blob, check digests, and remove damaged copies.

    A tier that does not answer is named in ``errors``, and the others are verified.
    """
    walker, verified = Walker(cache), Verified()
    for tier in cache.parts.chain.tiers:
        try:
            for keys, answer in walker.envelopes(tier):
                verified.intact[tier.name] += len(answer.entries) + len(answer.elsewhere)
                if answer.corrupt:
                    verified.corrupt[tier.name].extend(answer.corrupt)
                on_progress(f"entries in {tier.name}", len(keys))
        except TierUnavailableError as error:
            verified.errors.append(str(error))
    try:
        _verify_blobs(walker, verified, on_progress)
    except TierUnavailableError as error:
        verified.errors.append(str(error))
    return verified


def _verify_blobs(walker: Walker, verified: Verified, on_progress: Progress) -> None:
    store = walker.cache.parts.store
    with object_store_errors():
        digests = [path.rpartition("/")[2] for path, _ in store.walk(store.path(walker.namespace, BLOBS))]
    for digest in digests:
        if not is_digest(digest):
            continue
        intact = _is_intact(walker, digest)
        if intact is None:
            continue
        if intact:
            verified.intact[BLOBS] += 1
        else:
            walker.cache.blobs.delete([digest])
            verified.corrupt[BLOBS].append(digest)
        on_progress(BLOBS, 1)
    verified.missing.extend(_missing(walker, set(digests) - set(verified.corrupt.get(BLOBS, ()))))


def _is_intact(walker: Walker, digest: str) -> bool | None:
    """Return whether a blob has its digest; None when it has been deleted in the meantime."""
    with object_store_errors():
        try:
            with cast("BinaryIO", walker.cache.parts.store.fs.open(walker.blob_path(digest), "rb")) as stream:
                return walker.cache.blobs.private.judge(stream, digest)
        except FileNotFoundError:
            return None


def _missing(walker: Walker, present: set[str]) -> list[str]:
    """Return the digests that SQL's entries refer to and that are neither in the listing nor in the store now."""
    statement = sa.select(blob_table.c.digest).where(blob_table.c.namespace == walker.namespace).distinct()
    with walker.cache.parts.database.read() as connection:
        wanted = sorted(set(connection.execute(statement).scalars()) - present)
    referred = {digest for batch in batched(wanted) for digest, _ in walker.referring(batch)}
    with object_store_errors():
        store = walker.cache.parts.store
        return [
            digest
            for digest in sorted(referred)
            if not is_digest(digest) or store.exists(walker.blob_path(digest)) is None
        ]
