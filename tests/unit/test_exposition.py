"""`cache-blocks metrics --prometheus`: what a scrape reads is what the cache has done."""

from collections.abc import Generator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cache_blocks import TRANSCRIPT, CacheSettings, TieredCache
from cache_blocks.errors import TierUnavailableError
from cache_blocks.maintenance.exposition import exposition

KEY = "transcript:abc"


@pytest.fixture
def cache(cache_home: Path) -> Generator[TieredCache]:
    cache = TieredCache(CacheSettings(home=cache_home))
    yield cache
    cache.close()


def samples_of(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(value for name, value in sorted(sample.labels.items()) if name != "namespace")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_entries_lookups_and_savings_are_there(cache: TieredCache) -> None:
    cache.get(KEY)
    cache.put(KEY, ["text"], kind=TRANSCRIPT, compute_seconds=5.0)
    cache.get(KEY)
    cache.invalidate(kind=TRANSCRIPT)
    cache.parts.events.flush()

    samples = samples_of(exposition(cache))

    assert samples["cache_blocks_entries", "transcript"] == 1
    assert samples["cache_blocks_stored_bytes", "transcript"] > 0
    assert samples["cache_blocks_lookups_total", "transcript", "hit", "memory"] == 1
    assert samples["cache_blocks_lookups_total", "transcript", "miss", ""] == 1
    assert 4.0 < samples["cache_blocks_saved_seconds_total", "transcript", "hit", "memory"] <= 5.0
    assert samples["cache_blocks_events_total", "invalidated", ""] == 1


def test_an_empty_cache_has_no_samples(cache: TieredCache) -> None:
    assert samples_of(exposition(cache)) == {}


def test_a_database_that_is_down_is_an_error(cache: TieredCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def down() -> None:
        raise TierUnavailableError("sql", "down")

    monkeypatch.setattr(cache.parts.database, "read", down)
    with pytest.raises(TierUnavailableError):
        exposition(cache)
