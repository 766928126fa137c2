"""The tallies as metrics in Prometheus' text format, for a scrape through the node exporter or a cron job.

Counters run over all processes of a namespace, since SQL adds them up; where a process has OpenTelemetry set up, it
exports its own (`cache_blocks.telemetry`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from cache_blocks import events as actions
from cache_blocks.tallies import entry_tally, event_tally

if TYPE_CHECKING:
    from cache_blocks.cache import TieredCache

_OF_ENTRIES: Final = {
    "entries": ("cache_blocks_entries", "Entries that SQL has, expired ones among them."),
    "stored_bytes": ("cache_blocks_stored_bytes", "Bytes of their payloads as stored."),
    "blob_bytes": ("cache_blocks_file_bytes", "Bytes of the files that they refer to."),
    "compute_seconds": ("cache_blocks_kept_compute_seconds", "What computing them took."),
}
_OF_LOOKUPS: Final = {
    "events": ("cache_blocks_lookups", "Lookups, by kind, tier and outcome."),
    "seconds": ("cache_blocks_lookup_seconds", "What they took."),
    "seconds_saved": ("cache_blocks_saved_seconds", "Seconds of computing that hits have spared, less the lookups."),
    "money_saved": ("cache_blocks_saved_money", "Money that hits have spared, by the prices in the settings."),
}
_OF_TRAFFIC: Final = {
    actions.REQUESTS: ("cache_blocks_requests", "Requests to the object store: put (and list), get, delete."),
    actions.TRANSFER: ("cache_blocks_transfer_bytes", "Bytes up to the object store and down from it."),
}


def exposition(cache: TieredCache) -> str:
    """Return the metrics of a cache's namespace in Prometheus' text format.

    Raises:
        TierUnavailableError: SQL does not answer.
    """
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Tallies(cache))
    return generate_latest(registry).decode()


class _Tallies:
    """Collects the tallies, as prometheus_client asks for them."""

    def __init__(self, cache: TieredCache) -> None:
        self._cache = cache

    def collect(self) -> Iterator[Any]:
        """Yield a family of metrics for each sum."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        namespace = self._cache.settings.namespace
        for name, (metric, text) in _OF_ENTRIES.items():
            gauge = GaugeMetricFamily(metric, text, labels=["namespace", "kind"])
            for kind, value in self._sums(entry_tally, name, ["kind"]):
                gauge.add_metric([namespace, kind], value)
            yield gauge
        for name, (metric, text) in _OF_LOOKUPS.items():
            counter = CounterMetricFamily(metric, text, labels=["namespace", "kind", "tier", "outcome"])
            of = event_tally.c.action == actions.LOOKUP
            for kind, tier, outcome, value in self._sums(event_tally, name, ["kind", "tier", "outcome"], of):
                counter.add_metric([namespace, kind, tier, outcome], max(value, 0.0))
            yield counter
        for action, (metric, text) in _OF_TRAFFIC.items():
            counter = CounterMetricFamily(metric, text, labels=["namespace", "tier", "outcome"])
            for tier, outcome, value in self._sums(
                event_tally, "stored_bytes", ["tier", "outcome"], event_tally.c.action == action
            ):
                counter.add_metric([namespace, tier, outcome], value)
            yield counter
        others = CounterMetricFamily(
            "cache_blocks_events",
            "Other events, such as writes that were lost.",
            labels=["namespace", "action", "tier"],
        )
        of = event_tally.c.action.not_in([actions.LOOKUP, *_OF_TRAFFIC])
        for action, tier, value in self._sums(event_tally, "events", ["action", "tier"], of):
            others.add_metric([namespace, action, tier], value)
        yield others

    def _sums(self, tally: sa.Table, name: str, by: list[str], of: Any = None) -> list[Any]:
        columns = [tally.c[column] for column in by]
        statement = sa.select(*columns, sa.func.sum(tally.c[name])).where(
            tally.c.namespace == self._cache.settings.namespace, sa.true() if of is None else of
        )
        with self._cache.parts.database.read() as connection:
            return [tuple(row) for row in connection.execute(statement.group_by(*columns).order_by(*columns))]
