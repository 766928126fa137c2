"""From a value to an entry in the tiers: encode, place, store blobs, write through."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cache_blocks import codec, plan
from cache_blocks.blobs import BlobStore
from cache_blocks.calls import Call
from cache_blocks.entry import Entry
from cache_blocks.errors import TierUnavailableError, UnsupportedValueError
from cache_blocks.events import LOST, CacheEvent
from cache_blocks.files import CachedFile
from cache_blocks.flights import Ticket
from cache_blocks.tiers.chain import Chain
from cache_blocks.values import Encoded, codec_of


class Writer:
    """Encodes and stores.

    Args:
        chain: The tiers.
        blobs: Contents of files.
        namespace: Environment that entries belong to.
        clock: Seconds since the epoch, from which lifetimes count.
        record: Takes the events of writes that a tier did not take.
    """

    def __init__(
        self,
        chain: Chain,
        blobs: BlobStore,
        namespace: str,
        clock: Callable[[], float],
        record: Callable[[Iterable[CacheEvent]], None],
    ) -> None:
        self._chain = chain
        self._blobs = blobs
        self._namespace = namespace
        self._clock = clock
        self._record = record

    def encode(self, call: Call, value: object) -> Encoded:
        """Return a value as JSON and files.

        Raises:
            UnsupportedValueError: It cannot be given back as it is.
        """
        encoded = codec_of(call.annotation).encode(value, self._blobs.spool if call.kind.large_binary else None)
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

    def store(self, call: Call, ticket: Ticket, encoded: Encoded, seconds: float) -> bool:
        """Store what a ticket's computation gave, blobs first, so that no entry refers to what is not there.

        Args:
            call: What was computed.
            ticket: The right to store it.
            encoded: The value.
            seconds: What computing took; results below the kind's ``admit_seconds`` are not kept.

        Returns:
            Whether it is kept.

        Raises:
            UnsupportedValueError: It is larger than its kind keeps.
            BlobMissingError: A produced file is gone.
            TierUnavailableError: No tier took it, or SQL does not say what has been invalidated.
        """
        if seconds < call.kind.admit_seconds:
            return False
        entry = self._entry(call, ticket, encoded, seconds)
        for file in encoded.files:
            self._blobs.put(file)
        self._write(entry)
        return True

    def _entry(self, call: Call, ticket: Ticket, encoded: Encoded, seconds: float) -> Entry:
        if ticket.generations is None:
            raise TierUnavailableError("sql", "does not say what has been invalidated")
        payload = codec.compress(encoded.json)
        placement = plan.placement(call.kind, len(payload))
        if not placement:
            raise UnsupportedValueError(
                f"the result takes {len(payload)} bytes, more than kind {call.kind.name!r} keeps; raise its "
                "sql_max_bytes, add 'object_store' to its tiers, or return a file"
            )
        now = self._clock()
        lifetime = call.kind.ttl.total_seconds()
        return Entry(
            key=call.key,
            namespace=self._namespace,
            created_at=now,
            expires_at=now + min(lifetime, call.expires_in or lifetime),
            compute_seconds=round(seconds, 6),
            tags=call.tags,
            generations=tuple(ticket.generations[scope] for scope in call.scopes),
            fence=ticket.fence,
            placement=placement,
            size=len(encoded.json),
            payload=payload,
            blobs=_sizes(encoded.files),
            usage=dict(ticket.usage),
            manifest=call.manifest or {},
        )

    def _write(self, entry: Entry) -> None:
        written = self._chain.write_through([entry])
        self._record(
            CacheEvent(LOST, entry.kind, entry.key, tier=tier, reason=why) for tier, why in written.lost.items()
        )
        if not any(written.stored.values()) and not written.superseded:
            tier, why = next(iter(written.lost.items()))
            raise TierUnavailableError(tier, why)


def _sizes(files: Iterable[CachedFile]) -> dict[str, int]:
    return {file.digest: file.size for file in files}
