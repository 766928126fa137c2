"""A hit as Prefect's engine asks for it: what it costs in round trips, and to whom its value belongs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from prefect.results import ResultStore

from cache_blocks import TRANSCRIPT, CacheSettings, TieredCache
from cache_blocks.events import Origin
from cache_blocks.keys import make_key
from cache_blocks.prefect.attempt import Attempt
from cache_blocks.prefect.result_store import TieredResultStore

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis

VALUE = {"text": "guten Tag", "segments": [[0.0, 1.5, "guten"], [1.5, 2.0, "Tag"]]}
KEY = make_key(TRANSCRIPT, "a.mp3")


def store_for_a_hit(cache: TieredCache) -> TieredResultStore:
    """What a task run finds in its context when its result is in the cache."""
    cache.put(KEY, VALUE, kind=TRANSCRIPT)
    call = cache.call(KEY, kind=TRANSCRIPT, annotation=dict[str, Any])
    attempt = Attempt(cache, call, Origin())
    return TieredResultStore.over(ResultStore(), attempt)


def test_a_hit_is_one_command_to_redis(redis_url: str, redis_client: Redis, cache_home: Path) -> None:
    cache = TieredCache(CacheSettings.model_validate({"home": cache_home, "redis_url": redis_url}))
    store = store_for_a_hit(cache)
    cache.lookup(KEY)  # Redis learns the generations at the first lookup
    redis_client.config_resetstat()  # pyright: ignore[reportUnknownMemberType]

    assert store.exists(KEY)
    assert store.read(KEY).result == VALUE

    statistics: dict[str, Any] = redis_client.info("commandstats")
    assert {name for name in statistics if not name.startswith("cmdstat_config")} == {"cmdstat_mget"}
    assert statistics["cmdstat_mget"]["calls"] == 1
    cache.close()


def test_a_value_is_handed_over_once_and_whoever_asks_again_gets_another(cache: TieredCache) -> None:
    store = store_for_a_hit(cache)
    assert store.exists(KEY)

    first = store.read(KEY).result
    first["text"] = "changed by its owner"

    assert store.read(KEY).result == VALUE


def test_a_record_says_when_it_ends_and_that_it_needs_no_writing(cache: TieredCache) -> None:
    store = store_for_a_hit(cache)
    assert store.exists(KEY)
    entry = cache.lookup(KEY).entry
    assert entry is not None

    record = store.read(KEY)

    assert record.is_persisted
    assert record.expiration is not None
    assert record.expiration.timestamp() == pytest.approx(entry.expires_at, abs=1e-5)  # datetime keeps microseconds
    assert record.metadata.storage_key is not None
    assert record.metadata.storage_key.startswith(f"{KEY}#")
    assert type(record.metadata).load_bytes(record.metadata.dump_bytes()) == record.metadata
