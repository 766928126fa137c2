"""From a request to a value: walk the tiers, see that files are there, decode."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cache_blocks.blobs import BlobStore
from cache_blocks.calls import Found
from cache_blocks.entry import Entry, Lookup, Outcome
from cache_blocks.errors import BlobMissingError, CorruptEntryError, PrivateKeyMissingError, TierUnavailableError
from cache_blocks.files import sourced_from
from cache_blocks.plan import KEY_MISSING, Request
from cache_blocks.private.privacy import Privacy, told
from cache_blocks.private.sealing import is_sealed
from cache_blocks.tiers.chain import Chain
from cache_blocks.values import codec_of


class Reader:
    """Looks up and decodes.

    Args:
        chain: The tiers.
        blobs: Contents of files.
        clock: Seconds since the epoch, by which expiry is judged.
        promote: Whether hits are copied to faster tiers.
        privacy: Opens what is sealed.
    """

    def __init__(
        self, chain: Chain, blobs: BlobStore, clock: Callable[[], float], privacy: Privacy, *, promote: bool
    ) -> None:
        self._chain = chain
        self._privacy = privacy
        self._blobs = blobs
        self._clock = clock
        self._promote = promote

    def look(self, requests: Sequence[Request], *, promote: bool = True) -> dict[str, Lookup]:
        """Return what there is under each key, or why there is nothing; decode nothing."""
        found = self._chain.lookup(requests, self._clock(), promote=promote and self._promote)
        for request in requests:
            if (entry := found[request.key].entry) is None:
                continue
            if (refused := self._privacy.refuse(entry, private=request.private)) is not None:
                found[request.key] = refused
        with_files = {key: lookup.entry for key, lookup in found.items() if lookup.entry and lookup.entry.blobs}
        return found | self._without_files(with_files) if with_files else found

    def find(self, requests: Sequence[Request], annotation: Any) -> dict[str, Found]:
        """Return what there is under each key, decoded, with what each lookup cost."""
        started = time.perf_counter()
        found = [(key, self.decode(lookup, annotation)) for key, lookup in self.look(requests).items()]
        seconds = (time.perf_counter() - started) / max(len(found), 1)
        return {key: one.costing(seconds) for key, one in found}

    def decode(self, lookup: Lookup, annotation: Any) -> Found:
        """Return a hit with its value; a hit that cannot be decoded is none."""
        if lookup.entry is None:
            return Found(lookup)
        try:
            return Found(lookup, self.value_of(lookup.entry, annotation))
        except PrivateKeyMissingError as error:  # that of a file whose contents are the value
            return Found(Lookup(Outcome.MISS, lookup.tier, reason=f"{KEY_MISSING}: {error}"))
        except (CorruptEntryError, BlobMissingError) as error:
            reason = told(error, private=is_sealed(lookup.entry.payload))
            return Found(Lookup(Outcome.CORRUPT, lookup.tier, reason=reason))

    def value_of(self, entry: Entry, annotation: Any) -> Any:
        """Return an entry's value; its files find their bytes in this cache."""
        return self.value_of_json(self.json_of(entry), annotation)

    def json_of(self, entry: Entry) -> bytes:
        """Return an entry's payload as JSON, opened if it is sealed; raises `CacheError` when it is not what it was."""
        return self._privacy.json_of(entry)

    def value_of_json(self, json: bytes, annotation: Any) -> Any:
        """Return the value of a payload."""
        with sourced_from(self._blobs):
            return codec_of(annotation).decode(json)

    def _without_files(self, entries: Mapping[str, Entry]) -> dict[str, Lookup]:
        """Return what becomes of the hits whose files are gone or damaged: they are none."""
        sizes = {digest: size for entry in entries.values() for digest, size in entry.blobs.items()}
        marks = {digest: mark for entry in entries.values() for digest, mark in entry.marks.items()}
        try:
            missing = set(self._blobs.missing(sizes, marks))
        except TierUnavailableError as error:
            return dict.fromkeys(entries, Lookup(Outcome.TIER_DOWN, error.tier, reason=str(error)))
        reason = "the bytes of a file that the result refers to are gone or damaged"
        damaged = [key for key, entry in entries.items() if not missing.isdisjoint(entry.blobs)]
        return dict.fromkeys(damaged, Lookup(Outcome.CORRUPT, "object_store", reason=reason))
