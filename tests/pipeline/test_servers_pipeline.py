"""The pipeline over Redis, PostgreSQL and S3: the same outputs, and each tier stands in for those that were emptied."""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import lz4.frame
import pytest
from redis import Redis
from sqlalchemy import LargeBinary, MetaData, NullPool, create_engine, select

from cache_blocks import TieredCache
from tests.pipeline.batches import AUDIO, BETTER, SAMPLES, TEXT, Ran, files_under, run_batch
from tests.pipeline.conftest import PATIENT, FirstRun, closing_cache, set_all
from tests.servers.postgres import fresh_database
from tests.servers.s3 import S3Account, fresh_bucket

LZ4_FRAME = b"\x04\x22\x4d\x18"
SOUND = [b"RIFF", b"fLaC", b"OggS"]
TRACES = [*SOUND, *(base64.b64encode(magic + bytes(2))[:5] for magic in SOUND)]
"""What audio begins with, as it is and in base64."""


@dataclass(frozen=True)
class Story:
    """Four runs over the samples, one after the other, and what they have left."""

    first: Ran
    second: Ran
    without_redis: Ran
    without_redis_and_sql: Ran
    outputs: list[dict[str, bytes]]
    redis_values: dict[bytes, tuple[int, bytes]]
    sql_values: list[bytes]
    blobs: dict[str, int]


@pytest.fixture(scope="module")
def story(
    api: str,
    shared_redis_url: str,
    postgres_server: str,
    s3_account: S3Account,
    tmp_path_factory: pytest.TempPathFactory,
) -> Story:
    """Run it once for all tests: it has to transcribe everything."""
    del api
    folder = tmp_path_factory.mktemp("servers")
    with (
        pytest.MonkeyPatch.context() as patch,
        Redis.from_url(shared_redis_url) as redis,
        fresh_bucket(s3_account) as bucket,
        fresh_database(postgres_server) as database,
        fresh_database(postgres_server) as empty_database,
    ):
        redis.flushdb()
        settings = {
            "CACHE_BLOCKS_HOME": str(folder / "home"),
            "CACHE_BLOCKS_REDIS_URL": shared_redis_url,
            "CACHE_BLOCKS_DATABASE_URL": database,
            "CACHE_BLOCKS_OBJECT_STORE_URL": f"{bucket.url}/cache",
            "CACHE_BLOCKS_OBJECT_STORE_OPTIONS": json.dumps(bucket.options),
        }
        set_all(patch, PATIENT | settings)
        runs: list[Ran] = []
        with closing_cache() as cache:
            runs.append(run_batch(SAMPLES, folder / "0"))
            runs.append(run_batch(SAMPLES, folder / "1"))
            redis.flushdb()
            runs.append(run_batch(SAMPLES, folder / "2"))
            redis_values, sql_values = contents_of_redis(redis), list(binaries_in(database))
            blobs = blob_sizes(cache)
        redis.flushdb()
        patch.setenv("CACHE_BLOCKS_DATABASE_URL", empty_database)
        with closing_cache():
            runs.append(run_batch(SAMPLES, folder / "3"))
        redis_values |= contents_of_redis(redis)
        redis.flushdb()
    first, second, without_redis, without_redis_and_sql = runs
    outputs = [files_under(folder / str(number)) for number in range(4)]
    return Story(first, second, without_redis, without_redis_and_sql, outputs, redis_values, sql_values, blobs)


def contents_of_redis(redis: Redis) -> dict[bytes, tuple[int, bytes]]:
    """Seconds to live and value of every key."""
    keys = cast("Iterator[bytes]", redis.scan_iter(count=1000))
    return {key: (redis.ttl(key), cast("bytes", redis.get(key))) for key in keys}


def binaries_in(database: str) -> Iterator[bytes]:
    """Every value of every table that could hold bytes, text and JSON included."""
    engine = create_engine(database, poolclass=NullPool)
    metadata = MetaData()
    metadata.reflect(engine)
    with engine.connect() as connection:
        for table in metadata.sorted_tables:
            for row in connection.execute(select(table)).mappings():
                for name, value in row.items():
                    is_bytes = isinstance(table.c[name].type, LargeBinary)
                    if value is not None:
                        yield bytes(value) if is_bytes else str(value).encode()
    engine.dispose()


def blob_sizes(cache: TieredCache) -> dict[str, int]:
    """Bytes of each blob by path."""
    store = cache.parts.store
    return {path: int(details["size"]) for path, details in store.walk(store.path("default", "blobs"))}


def decompressed(value: bytes) -> bytes:
    """The payload in an envelope; nothing when there is none."""
    _, magic, frame = value.partition(LZ4_FRAME)
    return cast("bytes", lz4.frame.decompress(magic + frame)) if magic else b""


def test_the_outputs_are_those_of_the_embedded_defaults(story: Story, first_run: FirstRun) -> None:
    assert story.first.misses == {AUDIO: 5, TEXT: 5, BETTER: 5}
    embedded = files_under(first_run.output)
    assert len(embedded) == 21
    for output in story.outputs:
        assert output == embedded


def test_the_second_run_is_served_by_redis(story: Story) -> None:
    assert story.second.misses == {}
    assert story.second.tiers == {AUDIO: {"redis": 5}, TEXT: {"redis": 5}, BETTER: {"redis": 5}}


def test_when_redis_is_emptied_sql_serves(story: Story) -> None:
    assert story.without_redis.misses == {}
    assert story.without_redis.tiers == {AUDIO: {"sql": 5}, TEXT: {"sql": 5}, BETTER: {"sql": 5}}


def test_when_sql_is_lost_too_transcripts_survive_in_the_object_store(story: Story) -> None:
    ran = story.without_redis_and_sql
    assert ran.tiers == {TEXT: {"object_store": 5}}
    assert ran.misses == {AUDIO: 5, BETTER: 5}


def test_redis_holds_small_values_without_sound_that_all_expire(story: Story) -> None:
    entries = [value for key, (_, value) in story.redis_values.items() if b":entry:" in key]
    assert len(entries) >= 15
    assert all(decompressed(value) for value in entries)
    for key, (seconds_left, value) in story.redis_values.items():
        assert seconds_left > 0, key
        assert len(value) <= 300_000
        for content in (value, decompressed(value)):
            assert not [trace for trace in TRACES if trace in content]


def test_postgresql_holds_no_sound(story: Story) -> None:
    assert sum(LZ4_FRAME in value for value in story.sql_values) >= 15
    for value in story.sql_values:
        for content in (value, decompressed(value)):
            assert not [trace for trace in TRACES if trace in content]


def test_the_sound_is_in_the_object_store_once_per_recording(story: Story, first_run: FirstRun) -> None:
    seconds = sum(result.seconds for result in first_run.ran.summary.results)
    assert len(story.blobs) == 5
    assert 0.5 * seconds * 32_000 < sum(story.blobs.values()) <= seconds * 32_000 + 5 * 44
