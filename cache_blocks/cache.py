"""The data path: look up, verify, decode; or take a turn, compute, encode, store.

Read `TieredCache` from top to bottom: it is the story of one call. Deciding is in `plan`, waiting in `flights`,
doing in `tiers`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cache_blocks import codec, events, plan
from cache_blocks.assembly import Parts, assemble
from cache_blocks.entry import NO_VALUE, Entry, Lookup, NoValue, Outcome, check_key, check_tags, scopes_of
from cache_blocks.errors import BlobMissingError, CorruptEntryError, TierUnavailableError, UnsupportedValueError
from cache_blocks.files import sourced_from
from cache_blocks.flights import Flight, Ticket, computing
from cache_blocks.invalidation import Invalidation, scope_of
from cache_blocks.metrics import CacheMetrics
from cache_blocks.settings import CacheSettings
from cache_blocks.values import codec_of

if TYPE_CHECKING:
    from cache_blocks.blobs import BlobStore
    from cache_blocks.kinds import CacheKind

logger = logging.getLogger("cache_blocks")


@dataclass(frozen=True, slots=True)
class Call:
    """One call whose result is cached.

    Attributes:
        key: ``kind:digest``.
        kind: Policy of the result.
        tags: Labels under which it can be invalidated.
        annotation: What the value comes back as.
        manifest: Named parts of the key.
        expires_in: Seconds that shorten the kind's lifetime, if given.
    """

    key: str
    kind: CacheKind
    tags: tuple[str, ...] = ()
    annotation: Any = Any
    manifest: Mapping[str, Any] | None = None
    expires_in: float | None = None

    @property
    def request(self) -> plan.Request:
        """The lookup that this call begins with."""
        return plan.Request(self.key, self.tags, replicated=self.kind.replica)


@dataclass(frozen=True, slots=True)
class Found:
    """A lookup with its decoded value, `NO_VALUE` unless it is a hit."""

    lookup: Lookup
    value: Any = NO_VALUE


class TieredCache:
    """A cache over Redis, SQL and an object store. It opens nothing until it is used.

    Args:
        settings: Where the tiers are; read from the environment when not given.
        clock: Seconds since the epoch; tests move it.

    Raises:
        ConfigurationError: A setting cannot work.
    """

    def __init__(self, settings: CacheSettings | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings or CacheSettings()
        self._clock = clock
        self._parts: Parts | None = None
        self._lock = threading.Lock()
        self.metrics = CacheMetrics()
        _caches.add(self)

    @classmethod
    def from_settings(cls, settings: CacheSettings | None = None) -> TieredCache:
        """Return this process's cache for these settings, or for those of the environment."""
        settings = settings or CacheSettings()
        with _shared_lock:
            return _shared.setdefault(settings.fingerprint, cls(settings))

    def __reduce__(self) -> tuple[Any, ...]:
        return _shared_cache, (self.settings,)

    @property
    def parts(self) -> Parts:
        """The tiers and what keeps them together, made at first use."""
        if self._parts is None:
            with self._lock:
                if self._parts is None:
                    self._parts = assemble(self.settings, self.record)
        return self._parts

    @property
    def blobs(self) -> BlobStore:
        """Contents of file-valued results."""
        return self.parts.blobs

    # Looking up

    def get(self, key: str, *, annotation: Any = Any) -> Any:
        """Return the cached value, or `NO_VALUE`.

        Args:
            key: ``kind:digest``.
            annotation: Type that the value comes back as; JSON-able data without one.
        """
        return self.get_many([key], annotation=annotation)[key]

    def get_many(self, keys: Iterable[str], *, annotation: Any = Any) -> dict[str, Any]:
        """Return a value or `NO_VALUE` for each key, at the cost of one lookup a tier."""
        found = self.find([plan.Request(check_key(key)) for key in keys], annotation)
        return {key: one.value for key, one in found.items()}

    def lookup(self, key: str, *, tags: Sequence[str] = ()) -> Lookup:
        """Return what there is under a key and where, or why there is nothing; decodes nothing."""
        request = plan.Request(check_key(key), check_tags(tags))
        return self._look([request])[key]

    def find(self, requests: Sequence[plan.Request], annotation: Any = Any) -> dict[str, Found]:
        """Look up, verify, decode, and record one event a key."""
        found = self.peek(requests, annotation)
        if self.settings.mode != "off":
            for key, one in found.items():
                self.record_lookup(key, one.lookup)
        return found

    def peek(self, requests: Sequence[plan.Request], annotation: Any = Any) -> dict[str, Found]:
        """Look up, verify and decode, and leave it to the caller to record it."""
        if self.settings.mode == "off":
            off = Found(Lookup(Outcome.BYPASSED, reason="CACHE_BLOCKS_MODE is off"))
            return {request.key: off for request in requests}
        started = time.perf_counter()
        found = {key: self._decode(lookup, annotation) for key, lookup in self._look(requests).items()}
        seconds = (time.perf_counter() - started) / max(len(found), 1)
        return {key: replace(one, lookup=replace(one.lookup, seconds=seconds)) for key, one in found.items()}

    def record_lookup(self, key: str, lookup: Lookup) -> None:
        """Record the event of a lookup."""
        self.record([_lookup_event(key, lookup)])

    def _look(self, requests: Sequence[plan.Request]) -> dict[str, Lookup]:
        promote = self.settings.mode == "on"
        found = self.parts.chain.lookup(requests, self._clock(), promote=promote)
        return {key: self._with_blobs(lookup) for key, lookup in found.items()}

    def _with_blobs(self, lookup: Lookup) -> Lookup:
        """A hit whose files are gone is none."""
        if lookup.entry is None or not lookup.entry.blobs:
            return lookup
        try:
            missing = self.blobs.missing(lookup.entry.blobs)
        except TierUnavailableError as error:
            return Lookup(Outcome.TIER_DOWN, error.tier, reason=str(error))
        reason = "the bytes of a file that the result refers to are gone"
        return Lookup(Outcome.CORRUPT, "object_store", reason=reason) if missing else lookup

    def _decode(self, lookup: Lookup, annotation: Any) -> Found:
        if lookup.entry is None:
            return Found(lookup)
        try:
            return Found(lookup, self._value_of(lookup.entry, annotation))
        except (CorruptEntryError, BlobMissingError) as error:
            return Found(Lookup(Outcome.CORRUPT, lookup.tier, reason=str(error)))

    def _value_of(self, entry: Entry, annotation: Any) -> Any:
        with sourced_from(self.blobs):
            return codec_of(annotation).decode(codec.payload_of(entry))

    # Computing

    def get_or_compute(
        self,
        key: str,
        compute: Callable[[], Any],
        *,
        kind: CacheKind,
        tags: Sequence[str] = (),
        annotation: Any = Any,
    ) -> Any:
        """Return the cached value, or compute it: once, however many ask at the same time.

        Whatever ``compute`` raises is raised; nothing is stored then. On a miss too, the value has been encoded
        and decoded, so that it is the same either way.
        """
        call = self.call(key, kind=kind, tags=tags, annotation=annotation)
        found = self.find([call.request], annotation)[key]
        return found.value if found.lookup.is_hit else self.compute(call, compute)

    def call(self, key: str, *, kind: CacheKind, tags: Sequence[str] = (), annotation: Any = Any) -> Call:
        """Return a validated `Call`; raises `InvalidKeyError`."""
        if check_key(key).partition(":")[0] != kind.name:
            msg = f"key {key!r} does not belong to kind {kind.name!r}; a key begins with its kind's name"
            raise UnsupportedValueError(msg)
        return Call(key, kind, check_tags(tags), annotation)

    def compute(self, call: Call, function: Callable[[], Any], *, refresh: bool = False) -> Any:
        """Compute what a lookup has missed, or take the result of whoever computes it already."""
        flight = self.flight(call, refresh=refresh)
        while (turn := flight.step()).wait:
            time.sleep(turn.wait)
        if turn.hit is not None:
            return self.take(call, turn.hit)
        ticket = turn.ticket or Ticket(call.key)
        try:
            with computing(ticket):
                value = function()
        except BaseException:
            self.give_up(ticket)
            raise
        return self.keep(call, ticket, value)

    def flight(self, call: Call, *, refresh: bool = False) -> Flight:
        """Return the way from a miss to a result, to be stepped by who wants it; a refresh waits for nobody."""
        unshared = refresh or self.settings.mode != "on"
        return Flight(
            call.key,
            scopes_of(call.key, call.tags),
            look=lambda: self._look([call.request])[call.key],
            leases=None if unshared else self.parts.leases,
            generations=self.parts.generations,
            on_unleased=lambda why: self.record(
                [events.CacheEvent(events.UNLEASED, call.kind.name, call.key, reason=why)]
            ),
        )

    def take(self, call: Call, lookup: Lookup) -> Any:
        """Return the result of an equal call that a flight has met."""
        assert lookup.entry is not None  # noqa: S101 - a flight hands over hits only
        shared = events.CacheEvent(
            events.SHARED, call.kind.name, call.key, tier=lookup.tier, seconds_saved=lookup.entry.compute_seconds
        )
        self.record([shared])
        return self._value_of(lookup.entry, call.annotation)

    def keep(self, call: Call, ticket: Ticket, value: Any, *, only_if_equal: bool = False) -> Any:
        """Store a computed value and return it as a later hit will; what cannot be stored is returned as it is.

        Args:
            call: What was computed.
            ticket: The right to store it.
            value: The result.
            only_if_equal: Refuse a value that would come back different, because its caller has it already.
        """
        seconds = time.monotonic() - ticket.started
        try:
            if only_if_equal:
                self._check_equal(call, value)
            return self._keep(call, ticket, value, seconds)
        except (UnsupportedValueError, BlobMissingError, TierUnavailableError) as error:
            logger.error("result of %s is not cached: %s", call.key, error)  # noqa: TRY400 - the message says it all
            self.record([events.CacheEvent(events.UNSTORED, call.kind.name, call.key, reason=str(error))])
            return value
        finally:
            self._release(ticket, failed=False)

    def give_up(self, ticket: Ticket) -> None:
        """Let the waiters of a failed computation go on."""
        self._release(ticket, failed=True)

    # Storing

    def put(
        self,
        key: str,
        value: Any,
        *,
        kind: CacheKind,
        tags: Sequence[str] = (),
        compute_seconds: float | None = None,
        annotation: Any = Any,
    ) -> None:
        """Store a value that was computed elsewhere.

        Args:
            key: ``kind:digest``.
            value: JSON-able data, bytes, a datetime, a file; or what ``annotation`` says.
            kind: Policy of the result.
            tags: Labels under which it can be invalidated.
            compute_seconds: What computing took, so that hits can tell what they save.
            annotation: Type of the value.

        Raises:
            UnsupportedValueError: The value cannot be given back as it is.
            TierUnavailableError: No tier took it.
        """
        call = self.call(key, kind=kind, tags=tags, annotation=annotation)
        self.put_call(call, value, compute_seconds or 0.0)

    def put_call(self, call: Call, value: Any, compute_seconds: float) -> None:
        """Store the value of a call that was computed elsewhere; raises as `put` does."""
        if self.settings.mode != "on":
            return
        fence, generations = self.parts.generations.begin(scopes_of(call.key, call.tags))
        self._keep(call, Ticket(call.key, "", fence, generations), value, compute_seconds)

    def _keep(self, call: Call, ticket: Ticket, value: Any, seconds: float) -> Any:
        """Encode, store, and decode again."""
        spool = self.blobs.spool if call.kind.large_binary else None
        encoded = codec_of(call.annotation).encode(value, spool)
        entry = self._entry(call, ticket, encoded.json, seconds)
        entry = replace(entry, blobs={file.digest: file.size for file in encoded.files})
        stores = self.settings.mode == "on" and seconds >= call.kind.admit_seconds
        if stores and not entry.placement:
            raise UnsupportedValueError(
                f"the result takes {entry.stored_bytes} bytes, more than kind {call.kind.name!r} keeps; raise its "
                "sql_max_bytes, add 'object_store' to its tiers, or return a file"
            )
        if stores:
            if ticket.generations is None:
                raise TierUnavailableError("sql", "does not say what has been invalidated")
            for file in encoded.files:
                self.blobs.put(file)
            self._write(entry)
        return self._value_of(entry, call.annotation)

    def _check_equal(self, call: Call, value: Any) -> None:
        codec = codec_of(call.annotation)
        decoded = codec.decode(codec.encode(value).json)
        if type(decoded) is not type(value) or decoded != value:
            raise UnsupportedValueError(
                f"it would come back as {type(decoded).__qualname__} and differ from the {type(value).__qualname__} "
                "that this run has returned; annotate the task's return type, or use cached_task"
            )

    def _entry(self, call: Call, ticket: Ticket, json: bytes, seconds: float) -> Entry:
        if len(json) > codec.MAX_PAYLOAD_BYTES:
            raise UnsupportedValueError(f"the result takes {len(json)} bytes of JSON; return a file instead")
        payload = codec.compress(json)
        now = self._clock()
        lifetime = call.kind.ttl.total_seconds()
        numbers = ticket.generations or {}
        return Entry(
            key=call.key,
            namespace=self.settings.namespace,
            created_at=now,
            expires_at=now + min(lifetime, call.expires_in or lifetime),
            compute_seconds=round(seconds, 6),
            tags=call.tags,
            generations=tuple(numbers.get(scope, 0) for scope in scopes_of(call.key, call.tags)),
            fence=ticket.fence,
            placement=plan.placement(call.kind, len(payload)),
            size=len(json),
            payload=payload,
            usage=ticket.usage,
            manifest=call.manifest or {},
        )

    def _write(self, entry: Entry) -> None:
        written = self.parts.chain.write_through([entry])
        if written.lost:
            lost = [
                events.CacheEvent(events.LOST, entry.kind, entry.key, tier=tier, reason=why)
                for tier, why in written.lost.items()
            ]
            self.record(lost)
        if not any(written.stored.values()) and not written.superseded:
            tier, why = next(iter(written.lost.items()))
            raise TierUnavailableError(tier, why)

    def _release(self, ticket: Ticket, *, failed: bool) -> None:
        if ticket.token:
            self.parts.leases.release(ticket.key, ticket.token, failed=failed)

    # Forgetting

    def invalidate(
        self, *, key: str | None = None, kind: str | CacheKind | None = None, tag: str | None = None
    ) -> Invalidation:
        """Make the entries of a key, a kind or a tag, or all of them, misses in every process.

        Returns:
            Which tiers were told, and how many entries SQL had.

        Raises:
            InvalidKeyError: More than one of the three is given, or it is not well-formed.
            TierUnavailableError: SQL does not answer; nothing has changed.
            InvalidationIncompleteError: SQL knows, another tier does not yet.
        """
        scope = scope_of(key=key, kind=str(kind) if kind is not None else None, tag=tag)
        done = self.parts.invalidator.invalidate(scope)
        self.record([events.CacheEvent(events.INVALIDATED, reason=scope, stored_bytes=done.entries)])
        return done

    def collect_garbage(self) -> Any:
        """Delete what has expired or was invalidated, and blobs that nothing refers to; see `maintenance.collect`."""
        from cache_blocks import maintenance

        return maintenance.collect(self)

    def verify(self) -> Any:
        """Read every entry and blob and check its digest; see `maintenance.verify`."""
        from cache_blocks import maintenance

        return maintenance.verify(self)

    def stats(self) -> Any:
        """Return what is kept and what it has saved; see `maintenance.stats`."""
        from cache_blocks import maintenance

        return maintenance.stats(self)

    def record(self, new: Iterable[events.CacheEvent]) -> None:
        """Count events in this process and send them to the log in SQL."""
        new = list(new)
        for event in new:
            self.metrics.add(event)
        if self._parts is not None:
            self._parts.events.record(new)

    def close(self) -> None:
        """Write what is buffered and give back connections. The cache opens them again when it is used."""
        if self._parts is not None:
            self._parts.events.flush()
            self._parts.chain.close()

    def forget_parent(self) -> None:
        """After a fork: make new connections, leave the parent's alone."""
        self._lock = threading.Lock()
        self._parts = None


def _lookup_event(key: str, lookup: Lookup) -> events.CacheEvent:
    entry = lookup.entry
    return events.CacheEvent(
        events.LOOKUP,
        kind=key.partition(":")[0],
        key=key,
        outcome=lookup.outcome,
        tier=lookup.tier,
        reason=lookup.reason,
        stored_bytes=entry.stored_bytes + sum(entry.blobs.values()) if entry else 0,
        seconds=lookup.seconds,
        seconds_saved=entry.compute_seconds - lookup.seconds if entry else 0.0,
    )


_shared: dict[tuple[str, ...], TieredCache] = {}
_shared_lock = threading.Lock()
_caches: weakref.WeakSet[TieredCache] = weakref.WeakSet()


def _shared_cache(settings: CacheSettings) -> TieredCache:
    return TieredCache.from_settings(settings)


def _after_fork() -> None:
    global _shared_lock  # noqa: PLW0603 - the parent may have held it
    _shared_lock = threading.Lock()
    for cache in list(_caches):
        cache.forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

__all__ = ["Call", "Found", "NoValue", "TieredCache"]
