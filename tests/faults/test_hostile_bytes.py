"""Hostile bytes: pickles in every place that the cache reads from. Nothing runs, and tasks return what they should."""

import base64
import contextlib
import json
import pickle
import shutil
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
import sqlalchemy as sa
from prefect import flow
from prefect._internal.result_records import ResultRecordMetadata
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from redis import Redis

from cache_blocks import (
    AI_ENHANCEMENT,
    AUDIO_PREPROCESSING,
    NO_VALUE,
    SEARCH_RESULTS,
    TRANSCRIPT,
    CachedFile,
    CacheError,
    CacheSettings,
    Outcome,
    TieredCache,
    cached_task,
    codec,
)
from cache_blocks.entry import MAX_TAG_LENGTH, Entry
from cache_blocks.errors import InvalidKeyError
from cache_blocks.maintenance import collect, forget, ls, show, stats, verify
from cache_blocks.prefect.block import TieredCacheBlock
from cache_blocks.prefect.saved_block import forget_saved_blocks
from cache_blocks.schema import EntryRow, EventRow, table
from cache_blocks.testing import HOSTILE_KEYS
from cache_blocks.tiers.base import BackendTier, Tier
from cache_blocks.tiers.object_store import ObjectStore
from tests.servers.s3 import S3Bucket

SOUND = b"RIFF what the task has produced"
TEXT = "what was said"


class Dropper:
    """Pickles to bytes that create a file when they are loaded."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._marker,)


@pytest.fixture
def marker(tmp_path: Path) -> Generator[Path]:
    """The file that exists once hostile bytes have run; at the end of the test it must not."""
    path = tmp_path / "it-ran"
    yield path
    assert not path.exists(), "hostile bytes have run"


@pytest.fixture
def hostile(marker: Path) -> list[bytes]:
    """A pickle, and the form in which Prefect would keep one: a record that names its own serializer."""
    bites = pickle.dumps(Dropper(marker))
    pickle.loads(bites)  # noqa: S301 - to know that it would
    assert marker.exists()
    marker.unlink()
    serializer = {"type": "pickle", "picklelib": "cloudpickle"}
    inner = {"result": base64.encodebytes(bites).decode()}
    metadata = {"storage_key": "transcript:a", "serializer": serializer, "prefect_version": "3.8.8"}
    record = json.dumps(inner | {"metadata": metadata, "serializer": serializer}).encode()
    compressed = {"type": "compressed", "serializer": serializer, "compressionlib": "lzma"}
    return [bites, record, record.replace(json.dumps(serializer).encode(), json.dumps(compressed).encode())]


# The work, over every kind of tier


def settings_of(*, servers: bool, request: pytest.FixtureRequest) -> dict[str, str]:
    """Variables for Redis, SQLite and a folder, or for Redis, PostgreSQL and S3."""
    found = {"CACHE_BLOCKS_REDIS_URL": str(request.getfixturevalue("redis_url"))}
    if servers:
        s3 = cast("S3Bucket", request.getfixturevalue("s3"))
        found["CACHE_BLOCKS_DATABASE_URL"] = str(request.getfixturevalue("postgres_url"))
        found["CACHE_BLOCKS_OBJECT_STORE_URL"] = f"{s3.url}/cache"
        found["CACHE_BLOCKS_OBJECT_STORE_OPTIONS"] = orjson.dumps(s3.options).decode()
    timeouts = {"REDIS": "10", "DATABASE": "30", "OBJECT_STORE": "30"}
    return found | {f"CACHE_BLOCKS_{tier}_TIMEOUT_SECONDS": seconds for tier, seconds in timeouts.items()}


@pytest.fixture(params=[False, True], ids=["embedded", "servers"])
def cache(
    request: pytest.FixtureRequest, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> Generator[TieredCache]:
    """The cache that tasks find by themselves."""
    assert prefect_server
    for name, value in settings_of(servers=request.param, request=request).items():
        monkeypatch.setenv(name, value)
    forget_saved_blocks()
    cache = TieredCache.from_settings()
    quick: dict[Any, Any] = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_LOGGING_TO_API_ENABLED: False}
    with temporary_settings(quick):
        yield cache
    cache.close()
    forget_saved_blocks()


@cached_task(kind=AUDIO_PREPROCESSING, cache_version="1", cache_tags=("recording:" + "ab" * 32,))
def normalise(folder: str) -> Path:
    path = Path(folder) / "sound.wav"
    path.write_bytes(SOUND)
    return path


@cached_task(kind=TRANSCRIPT, cache_version="1", cache_tags=("recording:" + "ab" * 32,))
def transcribe(sound: CachedFile) -> str:
    assert sound.path.read_bytes() == SOUND
    return TEXT


@cached_task(kind=SEARCH_RESULTS, cache_version="1")
def search(text: str) -> list[dict[str, int]]:
    return [{text: 1}]


@cached_task(kind=AI_ENHANCEMENT, cache_version="1")
def enhance(text: str) -> bytes:
    return text.encode()


@flow
def pipeline(folder: str) -> list[Any]:
    sound = normalise(folder)
    text = transcribe(cast("CachedFile", sound))
    return [sound.path.read_bytes(), text, search(text), enhance(text)]  # pyright: ignore[reportAttributeAccessIssue]


RIGHT = [SOUND, TEXT, [{TEXT: 1}], TEXT.encode()]


# Planting


def plant_in_redis(url: str, data: bytes) -> int:
    with Redis.from_url(url) as client:
        names = list(cast("Iterator[bytes]", client.scan_iter()))
        for name in names:
            client.set(name, data, keepttl=True)
    return len(names)


def plant_in_sql(cache: TieredCache, data: bytes) -> int:
    """Put the bytes in every envelope, and their text in every column that has a text to choose."""
    text = base64.b64encode(data).decode()
    entries, events = table(EntryRow), table(EventRow)
    with cache.parts.database.begin() as connection:
        manifest = {"task": text, "serializer": "pickle", "inputs": [text]}
        values = {"envelope": data, "task": text[:255], "manifest": manifest}
        changed = connection.execute(sa.update(entries).values(values)).rowcount
        connection.execute(sa.update(events).values(reason=text[:400], subject=text[:200]))
    return changed


def plant_in_store(store: ObjectStore, data: bytes) -> int:
    paths = [path for path, _ in store.walk(store.path())]
    for path in paths:
        store.fs.pipe_file(path, data)
    return len(paths)


def plant_everywhere(cache: TieredCache, data: bytes) -> None:
    """Put these bytes into every key, row, object and blob."""
    assert plant_in_redis(cache.settings.redis_url.get_secret_value(), data) >= 4
    assert plant_in_sql(cache, data) == 4
    assert plant_in_store(cache.parts.store, data) >= 2
    shutil.rmtree(cache.settings.home / "files")


def look_at_everything(cache: TieredCache) -> None:
    """Do all that reads what is kept, on behalf of a person or of maintenance."""
    keys = [entry.key for entry in ls(cache)]
    assert len(keys) == 4
    for key in keys:
        with contextlib.suppress(CacheError):
            cache.get(key)
        show(cache, key)
    for look in (verify, stats, collect):
        look(cache)


@pytest.mark.promise("Bytes in a tier never run", tries="3 forms of pickle in every key, row, object and blob")
def test_pickles_in_every_key_row_object_and_blob_never_run(
    cache: TieredCache, hostile: list[bytes], tmp_path: Path
) -> None:
    assert pipeline(str(tmp_path)) == RIGHT
    for data in hostile:
        plant_everywhere(cache, data)
        assert pipeline(str(tmp_path)) == RIGHT, "what is damaged is computed anew"
        assert pipeline(str(tmp_path)) == RIGHT, "and kept"
        plant_everywhere(cache, data)
        look_at_everything(cache)
        assert pipeline(str(tmp_path)) == RIGHT


def test_a_state_whose_result_has_become_a_pickle_does_not_load_it(
    cache: TieredCache, hostile: list[bytes], tmp_path: Path
) -> None:
    sound = cast("CachedFile", normalise(str(tmp_path)))
    for data in hostile:
        state = transcribe(sound, return_state=True)
        assert state.result() == TEXT
        plant_in_redis(cache.settings.redis_url.get_secret_value(), data)
        plant_in_sql(cache, data)
        plant_in_store(cache.parts.store, data)
        kept: Any = cast("Any", state).data
        metadata: ResultRecordMetadata = getattr(kept, "metadata", kept)  # a record's, or what stands for it
        with pytest.raises(CacheError, match="no longer cached"):
            TieredCacheBlock().read_path(str(metadata.storage_key))
        with pytest.raises(CacheError, match="not written by this serializer"):
            metadata.serializer.loads(data)
        sound = cast("CachedFile", normalise(str(tmp_path)))


def sealed(entry: Entry, payload: bytes, **changes: Any) -> bytes:
    """An envelope of the right key, namespace, generations and digest, as somebody could make who writes to a tier."""
    return codec.pack(replace(entry, payload=codec.compress(payload), size=len(payload), **changes))


@pytest.mark.promise(
    "An envelope with a right digest around hostile bytes does not run either", tries="4 tasks, 5 forms"
)
def test_hostile_payloads_in_envelopes_with_a_right_digest_never_run(
    cache: TieredCache, hostile: list[bytes], tmp_path: Path
) -> None:
    """Who can make one can make any value of JSON; that is as far as it goes."""
    assert pipeline(str(tmp_path)) == RIGHT
    deep = b"[" * 1000 + b'{"$x":1}' + b"]" * 1000
    outside = b'{"$contents":{"digest":"../../it-ran","size":1,"name":"x","media_type":"y"}}'
    for payload in [*hostile, deep, outside]:
        for key in [entry.key for entry in ls(cache)]:
            entry = cache.lookup(key).entry
            assert entry is not None
            for tier in cache.parts.chain.tiers:
                plant(tier, entry, sealed(entry, payload))
            assert cache.get(key, annotation=list[CachedFile]) is NO_VALUE
            assert cache.get(key) in (NO_VALUE, json.loads(payload) if payload in hostile[1:] else NO_VALUE)
        sound = normalise(str(tmp_path))
        for task, argument in ((transcribe, sound), (search, TEXT), (enhance, TEXT)):
            assert task(argument, return_state=True).is_completed()
        cache.invalidate()
        assert pipeline(str(tmp_path)) == RIGHT


def plant(tier: Tier, entry: Entry, envelope: bytes) -> None:
    """Put an envelope in an entry's place."""
    assert isinstance(tier, BackendTier)
    tier._store([(entry, envelope)])  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    "manifest", [{"inputs": 1}, {"inputs": {"a": 1}}, {"inputs": {"a": {}}}, {"task": [1]}], ids=str
)
def test_a_manifest_of_another_shape_stops_no_maintenance(cache: TieredCache, manifest: dict[str, Any]) -> None:
    cache.put("transcript:a", TEXT, kind=TRANSCRIPT)
    entry = cache.lookup("transcript:a").entry
    assert entry is not None
    strange = codec.pack(replace(entry, manifest=manifest))
    plant(cache.parts.chain.tier("object_store"), entry, strange)
    cache.parts.chain.tier("sql").delete(["transcript:a"])

    assert forget(cache, "ab" * 32).complete
    assert collect(cache).errors == []
    cache.parts.chain.tier("redis").delete(["transcript:a"])
    assert cache.get("transcript:a") == TEXT, "and it is promoted to SQL"
    assert ls(cache)[0].key == "transcript:a"
    show(cache, "transcript:a")
    assert forget(cache, "ab" * 32).complete


# Names


@pytest.fixture
def nowhere() -> TieredCache:
    """A cache whose tiers all fail when they are asked anything."""
    closed = {"redis_url": "redis://127.0.0.1:1/0", "database_url": "postgresql+psycopg://nobody@127.0.0.1:1/x"}
    settings: dict[str, Any] = closed | {"object_store_url": "s3://nowhere", "database_timeout_seconds": 0.1}
    cache = TieredCache(CacheSettings(**settings))

    def asked(*_: object) -> None:
        pytest.fail("a tier was asked")

    for breaker in cache.parts.chain.breakers.values():
        breaker.call = asked  # type: ignore[method-assign]  # pyright: ignore[reportAttributeAccessIssue]
    return cache


Act = Callable[[TieredCache, str], object]
WITH_A_KEY: dict[str, Act] = {
    "get": lambda cache, key: cache.get(key),
    "get_many": lambda cache, key: cache.get_many(["transcript:fine", key]),
    "lookup": lambda cache, key: cache.lookup(key),
    "put": lambda cache, key: cache.put(key, 1, kind=TRANSCRIPT),
    "get_or_compute": lambda cache, key: cache.get_or_compute(key, lambda: 1, kind=TRANSCRIPT),
    "invalidate": lambda cache, key: cache.invalidate(key=key),
}
HOSTILE_TAGS = ("", "a\x00b", "a\nb", "a\x1b[2Jb", "a\u2028b", "a\ud800b", "x" * (MAX_TAG_LENGTH + 1))
WITH_A_TAG: dict[str, Act] = {
    "lookup": lambda cache, tag: cache.lookup("transcript:fine", tags=(tag,)),
    "put": lambda cache, tag: cache.put("transcript:fine", 1, kind=TRANSCRIPT, tags=(tag,)),
    "get_or_compute": lambda cache, tag: cache.get_or_compute(
        "transcript:fine", lambda: 1, kind=TRANSCRIPT, tags=(tag,)
    ),
    "invalidate": lambda cache, tag: cache.invalidate(tag=tag),
}


@pytest.mark.promise("A hostile key is refused before anything is asked", tries=f"{len(HOSTILE_KEYS)} keys")
@pytest.mark.parametrize("act", WITH_A_KEY)
def test_a_hostile_key_is_refused_before_any_tier_is_asked(nowhere: TieredCache, act: str) -> None:
    for key in HOSTILE_KEYS:
        with pytest.raises(InvalidKeyError):
            WITH_A_KEY[act](nowhere, key)


@pytest.mark.promise("A hostile tag is refused before anything is asked", tries=f"{len(HOSTILE_TAGS)} tags")
@pytest.mark.parametrize("act", WITH_A_TAG)
def test_a_hostile_tag_is_refused_before_any_tier_is_asked(nowhere: TieredCache, act: str) -> None:
    for tag in HOSTILE_TAGS:
        with pytest.raises(InvalidKeyError):
            WITH_A_TAG[act](nowhere, tag)


@pytest.mark.parametrize("namespace", ["", "..", "../other", "a/b", "a:b", "a*", "a b", "a\x00", "ä", "a" * 65])
def test_a_hostile_namespace_is_refused_where_it_is_set(namespace: str) -> None:
    with pytest.raises(ValueError, match="namespace"):
        CacheSettings(namespace=namespace)


def test_what_is_stored_stays_under_its_prefix_whatever_its_tags_and_file_names_are(tmp_path: Path) -> None:
    cache = TieredCache(CacheSettings(home=tmp_path / "home", namespace="mine"))
    tags = ("../../escaped", "/etc/passwd", "..", "C:\\escaped", "%2e%2e%2f", "a*?[b]")
    path = tmp_path / "..;rm -rf ~ *.wav"
    path.write_bytes(SOUND)
    before = {found for found in tmp_path.rglob("*") if not found.is_relative_to(tmp_path / "home")}
    cache.put("audio-preprocessing:a", path, kind=AUDIO_PREPROCESSING, tags=tags, annotation=Path)
    for tag in tags:
        cache.invalidate(tag=tag)
    cache.put("audio-preprocessing:a", path, kind=AUDIO_PREPROCESSING, tags=tags, annotation=Path)
    assert cache.get("audio-preprocessing:a", annotation=Path).path.read_bytes() == SOUND
    cache.close()

    assert {found for found in tmp_path.rglob("*") if not found.is_relative_to(tmp_path / "home")} == before
    assert {found.name for found in (tmp_path / "home").iterdir()} <= {"cache.db", "files", "objects"}
    assert [found.name for found in (tmp_path / "home" / "objects").iterdir()] == ["mine"]


def test_a_header_that_names_a_blob_outside_is_corrupt_and_touches_nothing(tmp_path: Path) -> None:
    outside = tmp_path / "home" / "objects" / "outside"
    cache = TieredCache(CacheSettings(home=tmp_path / "home"))
    cache.put("transcript:a", TEXT, kind=TRANSCRIPT)
    outside.write_bytes(b"somebody else's")
    entry = cache.lookup("transcript:a").entry
    assert entry is not None
    for name in ("../../../outside", "..", "../" * 8 + str(outside).lstrip("/")):
        for tier in cache.parts.chain.tiers:
            plant(tier, entry, codec.pack(replace(entry, blobs={name: 1})))
        assert cache.lookup("transcript:a").outcome is Outcome.CORRUPT
        assert cache.blobs.delete([name]) == 0
        with pytest.raises(InvalidKeyError):
            cache.blobs.missing({name: 1})
    assert outside.read_bytes() == b"somebody else's"
    cache.close()
