"""OpenTelemetry metrics of what the cache does.

Only the API is used: where no SDK is set up, an instrument does nothing, and where the API is not installed there
are none. Names and units follow OpenTelemetry's conventions (https://opentelemetry.io/docs/specs/semconv/general/metrics/).
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from cache_blocks import events
from cache_blocks.entry import Outcome

_BUCKETS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(frozen=True, slots=True)
class _Instruments:
    """What is measured. Each carries the attributes ``namespace``, ``kind``, ``tier`` and ``outcome`` that apply."""

    lookups: Any
    duration: Any
    size: Any
    saved: Any
    lost: Any
    changes: Any
    requests: Any
    transfer: Any
    other: Any


def observe(namespace: str, new: Iterable[events.CacheEvent]) -> None:
    """Add events of a namespace to the metrics."""
    if (known := instruments()) is None:
        return
    for event in new:
        _observe(known, event, {"namespace": namespace})


def _observe(known: _Instruments, event: events.CacheEvent, of: dict[str, str]) -> None:
    match event.action:
        case events.LOOKUP:
            attributes = of | {"kind": event.kind, "tier": event.tier, "outcome": str(event.outcome)}
            known.lookups.add(1, attributes)
            if event.outcome != Outcome.BYPASSED:
                known.duration.record(event.seconds, attributes)
            if event.outcome == Outcome.HIT:
                known.size.add(event.stored_bytes, attributes)
                known.saved.add(max(event.seconds_saved, 0.0), of | {"kind": event.kind, "tier": event.tier})
        case events.LOST:
            known.lost.add(1, of | {"kind": event.kind, "tier": event.tier})
        case events.TIER_DOWN | events.TIER_UP:
            known.changes.add(1, of | {"tier": event.tier, "state": event.action.removeprefix("tier-")})
        case events.REQUESTS | events.TRANSFER:
            used = known.requests if event.action == events.REQUESTS else known.transfer
            used.add(event.stored_bytes, of | {"tier": event.tier, "outcome": event.outcome})
        case _:
            known.other.add(1, of | {"kind": event.kind, "action": event.action})


@cache
def instruments() -> _Instruments | None:
    """Return what is measured with; None where OpenTelemetry's API is not installed."""
    try:
        metrics: Any = importlib.import_module("opentelemetry.metrics")
    except ImportError:
        return None
    meter = metrics.get_meter("cache_blocks", importlib.metadata.version("prefect-cache-blocks"))
    counter, histogram = meter.create_counter, meter.create_histogram
    return _Instruments(
        lookups=counter("cache_blocks.lookups", "{lookup}", "Lookups, by kind, tier and outcome."),
        duration=histogram(
            "cache_blocks.lookup.duration",
            "s",
            "What a lookup took, by kind, tier and outcome.",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        ),
        size=counter("cache_blocks.hit.size", "By", "Bytes of results that were found, as stored."),
        saved=counter("cache_blocks.saved", "s", "Seconds of computing that hits have spared."),
        lost=counter("cache_blocks.writes.lost", "{write}", "Writes that a tier did not take."),
        changes=counter("cache_blocks.tier.changes", "{change}", "How often a tier went down or came back."),
        requests=counter("cache_blocks.requests", "{request}", "Requests to the object store, by what they cost."),
        transfer=counter("cache_blocks.transfer", "By", "Bytes that went up to the object store and down from it."),
        other=counter("cache_blocks.events", "{event}", "Invalidations, shared results and what was not stored."),
    )
