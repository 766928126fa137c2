"""OpenTelemetry metrics: what an SDK receives, and that none is needed."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from cache_blocks import TRANSCRIPT, CacheSettings, TieredCache, telemetry
from cache_blocks.events import LOST, TIER_DOWN, CacheEvent

KEY = "transcript:abc"


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Generator[InMemoryMetricReader]:
    """What an application that has set up the SDK would export."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
    telemetry.instruments.cache_clear()
    yield reader
    telemetry.instruments.cache_clear()
    provider.shutdown()


def points_of(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: list(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def test_lookups_are_counted_and_timed_by_kind_tier_and_outcome(reader: InMemoryMetricReader, cache_home: Path) -> None:
    cache = TieredCache(CacheSettings(home=cache_home))
    cache.get(KEY)
    cache.put(KEY, ["text"], kind=TRANSCRIPT, compute_seconds=2.0)
    cache.get(KEY)
    cache.close()

    points = points_of(reader)

    counted = {(one.attributes["outcome"], one.attributes["tier"]): one.value for one in points["cache_blocks.lookups"]}
    assert counted == {("miss", ""): 1, ("hit", "memory"): 1}
    timed = {one.attributes["outcome"]: one for one in points["cache_blocks.lookup.duration"]}
    assert timed["hit"].count == timed["miss"].count == 1
    assert timed["hit"].sum > 0
    (saved,) = points["cache_blocks.saved"]
    assert 1.0 < saved.value <= 2.0
    (size,) = points["cache_blocks.hit.size"]
    assert size.value > 0


def test_outages_and_lost_writes_are_counted_by_tier(reader: InMemoryMetricReader) -> None:
    events = [CacheEvent(TIER_DOWN, tier="redis"), CacheEvent(LOST, "transcript", KEY, tier="redis")]
    telemetry.observe("mine", events)

    points = points_of(reader)

    (change,) = points["cache_blocks.tier.changes"]
    assert dict(change.attributes) == {"namespace": "mine", "tier": "redis", "state": "down"}
    (lost,) = points["cache_blocks.writes.lost"]
    assert dict(lost.attributes) == {"namespace": "mine", "kind": "transcript", "tier": "redis"}


def test_without_the_api_nothing_is_measured_and_nothing_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(telemetry.importlib, "import_module", absent)
    telemetry.instruments.cache_clear()
    try:
        telemetry.observe("mine", [CacheEvent(TIER_DOWN, tier="redis")])
        assert telemetry.instruments() is None
    finally:
        telemetry.instruments.cache_clear()
