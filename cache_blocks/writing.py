"""From a value to an entry in the tiers: encode, place, store blobs, write through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cache_blocks import codec, plan
from cache_blocks.blobs import BlobStore
from cache_blocks.calls import Call
from cache_blocks.entry import Entry
from cache_blocks.errors import TierUnavailableError, UnsupportedValueError
from cache_blocks.events import LOST, NEAR_LIMIT, CacheEvent, origin_now
from cache_blocks.files import CachedFile, kept_privately
from cache_blocks.flights import Ticket
from cache_blocks.private.privacy import Privacy
from cache_blocks.tiers.chain import Chain
from cache_blocks.values import Encoded, codec_of
from cache_blocks.wording import bytes_in_words


@dataclass(frozen=True, slots=True)
class Computed:
    """A result to be stored.

    Attributes:
        call: What was computed.
        ticket: The right to store it.
        encoded: The value.
        seconds: What computing took.
    """

    call: Call
    ticket: Ticket
    encoded: Encoded
    seconds: float


class Writer:
    """Encodes and stores.

    Args:
        chain: The tiers.
        blobs: Contents of files.
        namespace: Environment that entries belong to.
        clock: Seconds since the epoch, from which lifetimes count.
        record: Takes the events of writes that a tier did not take.
        privacy: Seals what is private.
    """

    def __init__(
        self,
        chain: Chain,
        blobs: BlobStore,
        namespace: str,
        clock: Callable[[], float],
        record: Callable[[Iterable[CacheEvent]], None],
        privacy: Privacy,
    ) -> None:
        self._chain = chain
        self._privacy = privacy
        self._blobs = blobs
        self._namespace = namespace
        self._clock = clock
        self._record = record

    def encode(self, call: Call, value: object) -> Encoded:
        """Return a value as JSON and files.

        Raises:
            UnsupportedValueError: It cannot be given back as it is.
            PrivateKeyMissingError: It is private, and there is no key ring; as far as that matters here.
        """
        with kept_privately(call.private):
            spool = partial(self._blobs.spool, private=call.private) if call.kind.large_binary else None
            encoded = codec_of(call.annotation).encode(value, spool)
        if call.private:
            encoded = replace(encoded, files=tuple(file.as_private() for file in encoded.files))
        if len(encoded.json) > codec.MAX_PAYLOAD_BYTES:
            raise UnsupportedValueError(f"the result takes {len(encoded.json)} bytes of JSON; return a file instead")
        return encoded

    def check_equal(self, call: Call, value: object) -> None:
        """Raise `UnsupportedValueError` unless the value comes back as it is."""
        codec_ = codec_of(call.annotation)
        decoded = codec_.decode(codec_.encode(value).json)
        if type(decoded) is not type(value) or decoded != value:
            raise UnsupportedValueError(
                f"it would come back as {type(decoded).__qualname__} and differ from the {type(value).__qualname__} "
                "that this run has returned; annotate the task's return type, or use cached_task"
            )

    def store(self, computed: Sequence[Computed]) -> set[str]:
        """Store what computations gave, in bulk; blobs first, so that no entry refers to what is not there.

        Returns:
            The keys that are kept; not those that have been superseded or invalidated meanwhile, nor those whose
            computing took less than their kind's ``admit_seconds``.

        Raises:
            UnsupportedValueError: One is larger than its kind keeps; nothing is stored.
            BlobMissingError: A produced file is gone.
            PrivateKeyMissingError: One is private, and there is no key ring.
            TierUnavailableError: No tier took one of them, or SQL does not say what has been invalidated.
        """
        admitted = [one for one in computed if one.seconds >= one.call.kind.admit_seconds]
        entries = [self._entry(one) for one in admitted]
        files = {one.call.key: one.encoded.files for one in admitted}
        kept = self._write([self._with_blobs(entry, files[entry.key]) for entry in entries])
        settled = {key: self._blobs.settle(files[key], kept=key in kept) for key in files}
        return kept | {key for key, stored in settled.items() if stored and files[key]}

    def _with_blobs(self, entry: Entry, files: Iterable[CachedFile]) -> Entry:
        marks = {self._blobs.private.name_of(file): self._blobs.put(file) for file in files}
        return replace(entry, marks={digest: mark for digest, mark in marks.items() if mark}) if marks else entry

    def _entry(self, computed: Computed) -> Entry:
        call, ticket, encoded = computed.call, computed.ticket, computed.encoded
        if ticket.generations is None:
            raise TierUnavailableError("sql", "does not say what has been invalidated")
        payload = codec.compress(encoded.json)
        if call.private:
            payload = self._privacy.sealed(call.key, payload)
        placement = plan.placement(call.kind, len(payload))
        if not placement:
            raise UnsupportedValueError(
                f"the result takes {len(payload)} bytes, more than kind {call.kind.name!r} keeps; raise its "
                "sql_max_bytes, add 'object_store' to its tiers, or return a file"
            )
        if limit := plan.limit_nearby(call.kind, len(payload)):
            why = f"the kind keeps {bytes_in_words(limit)} at most, and has no object store for more"
            self._record([CacheEvent(NEAR_LIMIT, call.kind.name, call.key, stored_bytes=len(payload), reason=why)])
        now = self._clock()
        lifetime = call.kind.ttl.total_seconds()
        return Entry(
            key=call.key,
            namespace=self._namespace,
            created_at=now,
            expires_at=now + min(lifetime, call.expires_in or lifetime),
            compute_seconds=round(computed.seconds, 6),
            tags=call.tags,
            generations=tuple(ticket.generations[scope] for scope in call.scopes),
            fence=ticket.fence,
            placement=placement,
            size=len(encoded.json),
            payload=payload,
            blobs={self._blobs.private.name_of(file): self._blobs.private.size_of(file) for file in encoded.files},
            usage=dict(ticket.usage),
            manifest=_described(call),
        )

    def _write(self, entries: Sequence[Entry]) -> set[str]:
        """Write through; return the keys that stand, and were not superseded or invalidated meanwhile."""
        written = self._chain.write_through(entries)
        self._record(
            CacheEvent(LOST, entry.kind, entry.key, tier=tier, reason=why)
            for entry in entries
            for tier, why in written.lost.items()
        )
        keys = {entry.key for entry in entries}
        if not keys <= written.superseded.union(*written.stored.values()):
            tier, why = next(iter(written.lost.items()))
            raise TierUnavailableError(tier, why)
        return keys - written.superseded


def _described(call: Call) -> dict[str, Any]:
    """Return the manifest, with what people know the work by: later misses of the same are compared with it."""
    subject = origin_now().subject
    return {**call.manifest(), **({"subject": subject} if subject else {})}
