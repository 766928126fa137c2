"""The data path: look up, verify, decode; or take a turn, compute, encode, store.

Read `TieredCache` from top to bottom: it is the story of one call. Deciding is in `plan`, waiting in `flights`, doing
in `reading`, `writing` and the tiers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from cache_blocks import events, forking, telemetry
from cache_blocks.assembly import Parts, assemble
from cache_blocks.calls import Call, Found
from cache_blocks.computing import Computations
from cache_blocks.costs import Prices
from cache_blocks.entry import Lookup, Outcome, check_key, check_tags
from cache_blocks.errors import InvalidKeyError
from cache_blocks.flights import Ticket
from cache_blocks.invalidation import Invalidation, scope_of
from cache_blocks.metrics import CacheMetrics
from cache_blocks.plan import Request
from cache_blocks.private.privacy import Privacy
from cache_blocks.reading import Reader
from cache_blocks.settings import CacheSettings, settings_environment
from cache_blocks.writing import Computed, Writer

if TYPE_CHECKING:
    from cache_blocks.blobs import BlobStore
    from cache_blocks.kinds import CacheKind
    from cache_blocks.maintenance import Collected, Stats, Verified

logger = logging.getLogger("cache_blocks")

CACHE_OFF: Final = "CACHE_BLOCKS_MODE is off"
"""Reason of a lookup that is none."""

_PAGE: Final = 500
"""Values that are encoded and written at a time."""


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
        self.privacy = Privacy(self.settings)
        self._clock = clock
        self._parts: Parts | None = None
        self._lock = forking.lock()
        self._metrics = CacheMetrics()
        self._listeners: list[events.Listener] = [partial(telemetry.observe, self.settings.namespace)]
        forking.forget_parent_of(self)

    @classmethod
    def from_settings(cls, settings: CacheSettings | None = None) -> TieredCache:
        """Return this process's cache for these settings, or for those of the environment."""
        environment = settings_environment() if settings is None else None
        if environment is not None and (known := _of_environment.get(environment)) is not None:
            return known
        settings = settings or CacheSettings()
        with _shared_lock:
            cache = _shared.setdefault(settings.fingerprint, cls(settings))
            if environment is not None:
                _of_environment[environment] = cache
        return cache

    def __reduce__(self) -> tuple[Any, ...]:
        return _shared_cache, (self.settings,)

    @property
    def parts(self) -> Parts:
        """The tiers and what keeps them together, made at first use."""
        if self._parts is None:
            with self._lock:
                if self._parts is None:
                    parts = assemble(self.settings, self._clock, self.record, self.privacy)
                    parts.events.listen(self._tell)
                    self._parts = parts
        return self._parts

    @property
    def metrics(self) -> CacheMetrics:
        """What this process has done so far."""
        if self._parts is not None:
            self._parts.events.deliver()
        return self._metrics

    @property
    def computations(self) -> Computations:
        """What happens on a miss."""
        return Computations(self.parts, self.record, self.settings.prices_of, writes=self.settings.mode == "on")

    @property
    def reader(self) -> Reader:
        """What looks up and decodes."""
        return self.parts.reader

    @property
    def writer(self) -> Writer:
        """What encodes and stores."""
        return self.parts.writer

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
        found = self.find([Request(check_key(key)) for key in keys], annotation)
        return {key: one.value for key, one in found.items()}

    def lookup(self, key: str, *, tags: Sequence[str] = ()) -> Lookup:
        """Return what there is under a key and where, or why there is nothing; decodes nothing."""
        kept_as = [name for tag in check_tags(tags) for name in self.privacy.tags_of(tag)]
        request = Request(check_key(key), check_tags(kept_as))
        return self.reader.look([request])[key]

    def find(self, requests: Sequence[Request], annotation: Any = Any) -> dict[str, Found]:
        """Look up, verify, decode, and record one event a key."""
        found = self.peek(requests, annotation)
        if self.settings.mode != "off":
            for key, one in found.items():
                self.record_lookup(key, one.lookup)
        return found

    def find_call(self, call: Call) -> Found:
        """Look a call up as `find` does, and say of a miss what has changed since the same work was last cached."""
        found = self.peek([call.request], call.annotation)[call.key]
        if self.settings.mode != "off":
            if not found.lookup.is_hit:
                subject = events.origin_now().subject
                found = Found(self.parts.explainer.explain(call, subject, found.lookup), found.value)
            self.record_lookup(call.key, found.lookup)
        return found

    def peek(self, requests: Sequence[Request], annotation: Any = Any) -> dict[str, Found]:
        """Look up, verify and decode, and leave it to the caller to record it."""
        if self.settings.mode == "off":
            off = Found(Lookup(Outcome.BYPASSED, reason=CACHE_OFF))
            return {request.key: off for request in requests}
        return self.reader.find(requests, annotation)

    def record_lookup(self, key: str, lookup: Lookup) -> None:
        """Record the event of a lookup."""
        self.record([_lookup_event(key, lookup, self.settings.prices_of)])

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
        found = self.find_call(call)
        return found.value if found.lookup.is_hit else self.compute(call, compute)

    def call(self, key: str, *, kind: CacheKind, tags: Sequence[str] = (), annotation: Any = Any) -> Call:
        """Return a validated `Call`; raises `InvalidKeyError`."""
        if check_key(key).partition(":")[0] != kind.name:
            msg = f"key {key!r} does not belong to kind {kind.name!r}; a key begins with its kind's name"
            raise InvalidKeyError(msg)
        return self.privacy.conceal_tags(Call(key, kind, check_tags(tags), annotation))

    def compute(self, call: Call, function: Callable[[], Any], *, refresh: bool = False) -> Any:
        """Compute what a lookup has missed, or take the result of whoever computes it already."""
        return self.computations.run(call, function, refresh=refresh)

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
        self.put_many({key: value}, kind=kind, tags=tags, compute_seconds=compute_seconds, annotation=annotation)

    def put_many(
        self,
        values: Mapping[str, Any],
        *,
        kind: CacheKind,
        tags: Sequence[str] = (),
        compute_seconds: float | None = None,
        annotation: Any = Any,
    ) -> None:
        """Store values that were computed elsewhere, by their keys, at the cost of one bulk write a tier for 500.

        Arguments are those of `put`; tags and what computing took hold for each value. Values of the same page are
        stored together or, when one cannot be given back as it is, not at all.
        """
        self._put(
            [(self.call(key, kind=kind, tags=tags, annotation=annotation), value) for key, value in values.items()],
            compute_seconds or 0.0,
        )

    def put_call(self, call: Call, value: Any, compute_seconds: float) -> None:
        """Store the value of a call that was computed elsewhere; raises as `put` does."""
        self._put([(call, value)], compute_seconds)

    def _put(self, calls: Sequence[tuple[Call, Any]], seconds: float) -> None:
        """Store values. What is invalidated from now on is not: the numbers are taken before anything else is done."""
        if self.settings.mode != "on" or not calls:
            return
        scopes = sorted({scope for call, _ in calls for scope in call.scopes})
        fence, generations = self.parts.begin(scopes)
        for start in range(0, len(calls), _PAGE):
            page = calls[start : start + _PAGE]
            self.writer.store(
                [
                    Computed(call, Ticket(call.key, "", fence, generations), self.writer.encode(call, value), seconds)
                    for call, value in page
                ]
            )

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
        kind = str(kind) if kind is not None else None
        scopes = [scope_of(key=key, kind=kind, tag=tag)]
        if tag is not None:
            scopes = [scope_of(tag=name) for name in self.privacy.tags_of(tag)]
        done = self.parts.invalidator.invalidate_all(scopes)
        self.record([events.CacheEvent(events.INVALIDATED, reason=scopes[0], stored_bytes=done.entries)])
        return done

    def collect_garbage(self) -> Collected:
        """Delete what has expired or was invalidated, and blobs that nothing refers to; see `maintenance.collect`."""
        from cache_blocks import maintenance

        return maintenance.collect(self, now=self._clock())

    def verify(self) -> Verified:
        """Read every entry and blob and check its digest; see `maintenance.verify`."""
        from cache_blocks import maintenance

        return maintenance.verify(self)

    def stats(self) -> Stats:
        """Return what is kept and what it has saved; see `maintenance.stats`."""
        from cache_blocks import maintenance

        return maintenance.stats(self, now=self._clock())

    def record(self, new: Iterable[events.CacheEvent]) -> None:
        """Send events to the log, which counts them in this process and writes them to SQL; nothing in mode ``off``."""
        if self.settings.mode != "off":
            self.parts.events.record(new)

    def listen(self, listener: events.Listener) -> None:
        """Hand events of this process to a function too; see `EventLog.listen`."""
        if self._parts is not None:
            self._parts.events.deliver()  # what was recorded before is not for the new one
        self._listeners.append(listener)

    def _tell(self, new: Sequence[events.CacheEvent]) -> None:
        """Count events of this process and hand them on, in bulk: the log does so off the path of lookups."""
        for event in new:
            self._metrics.add(event)
        for listener in self._listeners:
            listener(new)

    def close(self) -> None:
        """Write what is buffered and give back connections. The cache opens them again when it is used."""
        if self._parts is not None:
            self._parts.events.flush()
            self._parts.chain.close()

    def forget_parent(self) -> None:
        """After a fork: make new connections, leave the parent's alone."""
        self._parts = None


def _lookup_event(key: str, lookup: Lookup, prices_of: Callable[[str], Prices]) -> events.CacheEvent:
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
        money_saved=prices_of(entry.kind).cost(entry.usage, entry.compute_seconds) if entry else 0.0,
    )


_shared: dict[tuple[str, ...], TieredCache] = {}
_of_environment: dict[tuple[tuple[str, str], ...], TieredCache] = {}
_shared_lock = forking.lock()


def _shared_cache(settings: CacheSettings) -> TieredCache:
    return TieredCache.from_settings(settings)
