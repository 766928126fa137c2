"""SQL, the object store, or everything is down: the pipeline goes on, and nothing stale is served."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import orjson
import pytest

from cache_blocks import (
    AI_ENHANCEMENT,
    AUDIO_PREPROCESSING,
    NO_VALUE,
    SEARCH_RESULTS,
    TRANSCRIPT,
    CachedFile,
    TieredCache,
)
from cache_blocks.errors import TierUnavailableError
from cache_blocks.testing import FaultyTier
from cache_blocks.tiers.chain import Chain
from tests.faults.conftest import until
from tests.servers.postgres import postgres_server
from tests.servers.s3 import fresh_bucket, rclone_server

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis

    from tests.faults.conftest import MakeCache
    from tests.servers.fixtures import StartRedis


def breaking(cache: TieredCache, name: str, *operations: str) -> FaultyTier:
    """Put a tier that fails on demand in the place of one of the cache's."""
    chain = cache.parts.chain
    faulty = FaultyTier(chain.tier(name), operations)
    Chain.__init__(chain, [faulty if tier.name == name else tier for tier in chain.tiers], chain.breakers)
    return faulty


@pytest.fixture(params=["a file where its folder should be", "nobody listens"])
def bad_database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "nobody listens":
        return "postgresql+psycopg://user:secret@127.0.0.1:1/none"
    (tmp_path / "file").write_text("in the way")
    return f"sqlite:///{tmp_path / 'file' / 'cache.db'}"


def test_without_sql_everything_is_computed_and_nothing_is_pretended(
    bad_database: str, make_cache: MakeCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_cache(database_url=bad_database, breaker_seconds=600)
    with caplog.at_level(logging.INFO, "cache_blocks"):
        for number in (1, 2, 1):
            assert cache.get_or_compute(f"transcript:{number}", lambda n=number: n, kind=TRANSCRIPT) == number
    assert cache.metrics.misses == 3, "what cannot be told from something invalidated is not served"
    assert cache.metrics.by_kind["transcript"].by_outcome["tier_down"] == 3
    assert len([record for record in caplog.records if "sql is down" in record.message]) == 1
    with pytest.raises(TierUnavailableError):
        cache.invalidate(key="transcript:1")


def test_sql_goes_while_the_cache_is_used_and_comes_back(
    tmp_path_factory: pytest.TempPathFactory, make_cache: MakeCache
) -> None:
    with postgres_server(tmp_path_factory.mktemp("postgres")) as url:
        cache = make_cache(database_url=url)
        cache.put("transcript:1", "text", kind=TRANSCRIPT)
        assert cache.get("transcript:1") == "text"
        cache.close()  # a server waits for its clients before it stops
    computed: list[int] = []
    for number in range(3):
        assert cache.get_or_compute("transcript:1", lambda n=number: computed.append(n) or n, kind=TRANSCRIPT) == number
    assert computed == [0, 1, 2], "its generation cannot be learnt"
    assert cache.metrics.outages["sql"] == 1


def test_redis_answers_for_sql_as_long_as_it_knows_the_generations(redis_url: str, make_cache: MakeCache) -> None:
    cache = make_cache(redis_url=redis_url)
    sql = breaking(cache, "sql")
    cache.put("transcript:1", "text", kind=TRANSCRIPT)
    assert cache.get("transcript:1") == "text"
    sql.down.set()
    assert cache.lookup("transcript:1").tier == "redis"
    assert cache.lookup("transcript:1", tags=["never:asked"]).is_hit


def test_without_the_object_store_transcripts_are_still_cached(
    tmp_path_factory: pytest.TempPathFactory, redis_url: str, redis_client: Redis, make_cache: MakeCache
) -> None:
    with rclone_server(tmp_path_factory.mktemp("rclone")) as account, fresh_bucket(account) as bucket:
        cache = make_cache(
            redis_url=redis_url,
            object_store_url=bucket.url,
            object_store_options=orjson.dumps(bucket.options).decode(),
            object_store_timeout_seconds=1,
            breaker_seconds=600,
        )
        cache.put("transcript:1", "before", kind=TRANSCRIPT)
    assert cache.get_or_compute("transcript:2", lambda: "during", kind=TRANSCRIPT) == "during"
    assert cache.metrics.lost_writes == {"object_store": 1}
    assert cache.lookup("transcript:2").tier == "redis"
    redis_client.flushall()
    assert cache.get("transcript:2") == "during"
    large = os.urandom(3_000_000).hex()
    assert cache.get_or_compute("ai-enhancement:1", lambda: large, kind=AI_ENHANCEMENT) == large
    assert cache.lookup("ai-enhancement:1").outcome == "tier_down" or not cache.lookup("ai-enhancement:1").is_hit


def test_a_file_that_the_object_store_does_not_take_is_returned_all_the_same(
    make_cache: MakeCache, tmp_path: Path
) -> None:
    (tmp_path / "not-a-folder").write_text("in the way")
    cache = make_cache(object_store_url=(tmp_path / "not-a-folder" / "objects").as_uri(), breaker_seconds=600)
    produced = tmp_path / "a.wav"
    produced.write_bytes(b"RIFF sound")
    made = cache.get_or_compute(
        "audio-preprocessing:1", lambda: CachedFile.from_path(produced), kind=AUDIO_PREPROCESSING, annotation=CachedFile
    )
    assert made.path.read_bytes() == b"RIFF sound"
    assert cache.metrics.unstored == 1
    assert not cache.lookup("audio-preprocessing:1").is_hit


@pytest.mark.promise("A tier that is down, slow or full breaks no call")
def test_with_everything_down_every_call_computes(
    redis_server: StartRedis, make_cache: MakeCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = redis_server()
    server.kill()
    (tmp_path / "file").write_text("in the way")
    cache = make_cache(
        redis_url=server.url,
        database_url=f"sqlite:///{tmp_path / 'file' / 'cache.db'}",
        object_store_url=(tmp_path / "file" / "objects").as_uri(),
        breaker_seconds=600,
    )
    computed: list[int] = []
    with caplog.at_level(logging.WARNING, "cache_blocks"):
        for number in range(20):
            value = cache.get_or_compute("transcript:1", lambda n=number: computed.append(n) or n, kind=TRANSCRIPT)
            assert value == number
    assert computed == list(range(20))
    assert set(cache.metrics.outages.values()) == {1}
    assert len([record for record in caplog.records if "is down" in record.message]) <= 3


def test_a_lookup_that_needs_nothing_of_a_tier_does_not_take_it_for_well(
    redis_url: str, redis_client: Redis, make_cache: MakeCache
) -> None:
    """Seeding generations asks every tier of the chain; one that does nothing then has shown nothing."""
    cache = make_cache(redis_url=redis_url, breaker_seconds=0.001)
    cache.put("search-results:1", 1, kind=SEARCH_RESULTS)
    store = breaking(cache, "object_store", "read", "write", "delete")
    store.down.set()
    with pytest.raises(TierUnavailableError):
        cache.parts.chain.breakers["object_store"].call(store.read, ["transcript:1"])
    for _ in range(3):
        redis_client.flushall()
        assert cache.get("search-results:1") == 1
    assert cache.parts.chain.breakers["object_store"].is_open


# Emptied servers


@pytest.mark.promise("An emptied tier loses no more than it held, and revives nothing")
def test_an_emptied_redis_and_database_leave_the_transcripts(
    redis_url: str, redis_client: Redis, make_cache: MakeCache, tmp_path: Path
) -> None:
    first = make_cache(redis_url=redis_url, database_url=f"sqlite:///{tmp_path / 'one.db'}")
    first.put("transcript:kept", "text", kind=TRANSCRIPT)
    first.put("search-results:1", [1], kind=SEARCH_RESULTS)
    redis_client.flushall()
    emptied = make_cache(redis_url=redis_url, database_url=f"sqlite:///{tmp_path / 'two.db'}")
    assert emptied.lookup("transcript:kept").tier == "object_store"
    assert emptied.get("search-results:1") is NO_VALUE
    redis_client.flushall()
    assert emptied.lookup("transcript:kept").tier == "sql", "the row has been restored"


@pytest.mark.parametrize(
    "scope",
    [{"key": "transcript:1"}, {"kind": "transcript"}, {"tag": "recording:a"}, {}],
    ids=["key", "kind", "tag", "all"],
)
@pytest.mark.promise("An emptied tier loses no more than it held, and revives nothing")
def test_an_emptied_database_does_not_revive_what_was_invalidated(
    redis_url: str, redis_client: Redis, make_cache: MakeCache, tmp_path: Path, scope: dict[str, str]
) -> None:
    first = make_cache(redis_url=redis_url, database_url=f"sqlite:///{tmp_path / 'one.db'}")
    first.put("transcript:1", "old", kind=TRANSCRIPT, tags=["recording:a"])
    first.invalidate(**scope)
    redis_client.flushall()
    emptied = make_cache(redis_url=redis_url, database_url=f"sqlite:///{tmp_path / 'two.db'}")
    assert emptied.lookup("transcript:1").outcome == "invalidated"
    assert emptied.get_or_compute("transcript:1", lambda: "new", kind=TRANSCRIPT, tags=["recording:a"]) == "new"
    assert emptied.get("transcript:1") == "new"


def test_a_database_restored_beside_a_living_redis_serves_nothing_invalidated(
    redis_url: str, make_cache: MakeCache, tmp_path: Path
) -> None:
    first = make_cache(redis_url=redis_url, database_url=f"sqlite:///{tmp_path / 'one.db'}")
    first.put("transcript:1", "old", kind=TRANSCRIPT)
    first.invalidate(key="transcript:1")
    emptied = make_cache(redis_url=redis_url, database_url=f"sqlite:///{tmp_path / 'two.db'}")
    assert emptied.get("transcript:1") is NO_VALUE
    assert emptied.get_or_compute("transcript:1", lambda: "new", kind=TRANSCRIPT) == "new"
    assert emptied.lookup("transcript:1").tier == "redis", "numbers of the lost database do not shut out new results"


def test_when_the_mirror_cannot_be_read_an_emptied_database_serves_nothing(
    make_cache: MakeCache, tmp_path: Path
) -> None:
    first = make_cache()
    first.put("transcript:1", "old", kind=TRANSCRIPT)
    first.invalidate(key="transcript:1")
    first.close()
    (mirror,) = [path for path in (first.settings.home / "objects").rglob("generations/*/*") if path.is_file()]
    mirror.write_bytes(b"damaged")
    emptied = make_cache(database_url=f"sqlite:///{tmp_path / 'two.db'}")
    assert emptied.get("transcript:1") is NO_VALUE
    assert emptied.get_or_compute("transcript:1", lambda: "new", kind=TRANSCRIPT) == "new"


def test_a_tier_that_is_back_is_used_again(make_cache: MakeCache) -> None:
    cache = make_cache()
    memory = breaking(cache, "memory")
    cache.put("transcript:1", "text", kind=TRANSCRIPT)
    memory.down.set()
    assert cache.lookup("transcript:1").tier == "sql"
    memory.down.clear()
    until(lambda: cache.lookup("transcript:1").tier == "memory")


def test_an_annotation_or_argument_that_cannot_be_stored_breaks_no_pipeline(make_cache: MakeCache) -> None:
    cache = make_cache()
    call = cache.call("transcript:1", kind=TRANSCRIPT)
    call = replace(call, manifest={"inputs": {"audio": {"digest": "x", "shown": os.fsdecode(b"caf\xe9.mp3")}}})
    assert cast("Any", cache).compute(call, lambda: "text") == "text"
