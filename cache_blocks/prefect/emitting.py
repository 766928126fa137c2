"""What the cache does as Prefect events, summed so that a batch of ten thousand hits is a handful of them.

Events are ``cache-blocks.hit``, ``.miss``, ``.corrupt``, ``.bypassed``, ``.invalidated``, ``.tier-down``, ``.tier-up``
and ``.hit-rate-low``. Their resource is the kind (``cache-blocks.kind.NAMESPACE.KIND``), the tier
(``cache-blocks.tier.NAMESPACE.TIER``) or what was invalidated, and the flow run is related to them. Those of a second
are summed: ``payload.count`` says how many there were.
"""

from __future__ import annotations

import atexit
import contextvars
import threading
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from prefect.events import emit_event
from prefect.settings import get_current_settings

from cache_blocks import event_log, events, forking
from cache_blocks.entry import Outcome

if TYPE_CHECKING:
    from cache_blocks.cache import TieredCache
    from cache_blocks.metrics import CacheMetrics

PREFIX: Final = "cache-blocks"
HIT_RATE_LOW: Final = f"{PREFIX}.hit-rate-low"
_WINDOW_SECONDS: Final = 1.0
_SHOWN: Final = 10
_BY_OUTCOME: Final = {Outcome.HIT: "hit", Outcome.CORRUPT: "corrupt", Outcome.BYPASSED: "bypassed"}
_BY_ACTION: Final = {events.INVALIDATED: "invalidated", events.TIER_DOWN: "tier-down", events.TIER_UP: "tier-up"}


@dataclass(frozen=True, slots=True)
class _Subject:
    """What an event is about: events about the same are summed."""

    name: str
    about: str
    flow_run_id: str


@dataclass(slots=True)
class _Sum:
    """Several events about the same."""

    count: int = 0
    tiers: Counter[str] = field(default_factory=Counter[str])
    reasons: Counter[str] = field(default_factory=Counter[str])
    subjects: list[str] = field(default_factory=list[str])
    seconds_saved: float = 0.0

    def add(self, event: events.CacheEvent) -> None:
        """Add one more."""
        self.count += 1
        self.tiers.update([event.tier] if event.tier else ())
        self.reasons.update([event.reason] if event.reason else ())
        self.seconds_saved += max(event.seconds_saved, 0.0)
        if len(self.subjects) < _SHOWN and event.origin.subject:
            self.subjects.append(event.origin.subject)

    @property
    def payload(self) -> dict[str, Any]:
        """What there is to say; the first subjects and the most frequent reasons stand for all."""
        return {
            "count": self.count,
            "tiers": dict(self.tiers),
            "reasons": dict(self.reasons.most_common(_SHOWN)),
            "subjects": self.subjects,
            "seconds_saved": round(self.seconds_saved, 3),
        }


class EventEmitter:
    """Sums events and sends the sums to Prefect. It is a listener of a cache.

    Args:
        namespace: Environment, which is part of the resources' names.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._sums: dict[_Subject, _Sum] = {}
        self._lock = forking.lock()
        self._timer: threading.Timer | None = None
        self._ended = False
        _emitters.add(self)
        forking.forget_parent_of(self)

    def __call__(self, new: Sequence[events.CacheEvent]) -> None:
        """Take events in; they are sent within a second, or when the flow run ends."""
        if self._ended:
            return  # the process ends, and so has Prefect's own sender of events
        named = [(subject, event) for event in new if (subject := self._subject(event)) is not None]
        if not named:
            return
        with self._lock:
            for subject, event in named:
                self._sums.setdefault(subject, _Sum()).add(event)
            if self._timer is None:
                # Prefect's settings, its address among them, are those of the context.
                self._timer = threading.Timer(_WINDOW_SECONDS, contextvars.copy_context().run, [self.flush])
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Send what has been summed up. Without a server nobody listens, and none is started for this."""
        with self._lock:
            sums, self._sums = self._sums, {}
            self._timer = None
        if not get_current_settings().api.url:
            return
        for subject, summed in sums.items():
            emit_event(
                f"{PREFIX}.{subject.name}",
                resource={
                    "prefect.resource.id": f"{PREFIX}.{subject.about}",
                    "prefect.resource.name": subject.about.rpartition(".")[2],
                    f"{PREFIX}.namespace": self._namespace,
                },
                related=_related(subject.flow_run_id),
                payload=summed.payload,
            )

    def end(self) -> None:
        """Send nothing any more."""
        self._ended = True

    def forget_parent(self) -> None:
        """After a fork: the parent sends what it has summed up."""
        self._sums = {}
        self._timer = None

    def _subject(self, event: events.CacheEvent) -> _Subject | None:
        if event.action == events.LOOKUP:
            name = _BY_OUTCOME.get(Outcome(event.outcome), "miss")
            return _Subject(name, f"kind.{self._namespace}.{event.kind}", event.origin.flow_run_id)
        if (name := _BY_ACTION.get(event.action)) is None:
            return None
        about = "scope" if event.action == events.INVALIDATED else "tier"
        which = event.reason if event.action == events.INVALIDATED else event.tier
        return _Subject(name, f"{about}.{self._namespace}.{which}", event.origin.flow_run_id)


def emit_if_low(cache: TieredCache, metrics: CacheMetrics, flow_run_id: str) -> None:
    """Send ``cache-blocks.hit-rate-low`` when a flow run has hit less than the settings ask for."""
    if not metrics.total or metrics.hit_rate >= cache.settings.hit_rate_alert or not get_current_settings().api.url:
        return
    namespace = cache.settings.namespace
    emit_event(
        HIT_RATE_LOW,
        resource={
            "prefect.resource.id": f"{PREFIX}.namespace.{namespace}",
            "prefect.resource.name": namespace,
            f"{PREFIX}.namespace": namespace,
        },
        related=_related(flow_run_id),
        payload={"hits": metrics.hits, "lookups": metrics.total, "hit_rate": round(metrics.hit_rate, 4)},
    )


def emit_events_of(cache: TieredCache) -> None:
    """Send what a cache does to Prefect from now on, unless its settings say not to."""
    if cache.settings.prefect_events and cache not in _emitting:
        _emitting[cache] = EventEmitter(cache.settings.namespace)
        cache.listen(_emitting[cache])


def _related(flow_run_id: str) -> list[dict[str, str]]:
    if not flow_run_id:
        return []
    return [{"prefect.resource.id": f"prefect.flow-run.{flow_run_id}", "prefect.resource.role": "flow-run"}]


def flush_emitters() -> None:
    """Send what any emitter of this process still holds."""
    event_log.deliver_all()
    for emitter in list(_emitters):
        emitter.flush()


_emitters: weakref.WeakSet[EventEmitter] = weakref.WeakSet()
_emitting: weakref.WeakKeyDictionary[TieredCache, EventEmitter] = weakref.WeakKeyDictionary()


@atexit.register
def _end() -> None:
    for emitter in list(_emitters):
        emitter.end()
