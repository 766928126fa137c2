"""Maintenance over real tiers: what it collects and leaves, and that what is forgotten is gone to the last byte."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import orjson
import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from cache_blocks import (
    AI_ENHANCEMENT,
    AUDIO_PREPROCESSING,
    NO_VALUE,
    TRANSCRIPT,
    CachedFile,
    CacheKind,
    CacheSettings,
    TieredCache,
)
from cache_blocks.blobs import GRACE_SECONDS
from cache_blocks.entry import scopes_of
from cache_blocks.errors import InvalidationIncompleteError, InvalidKeyError
from cache_blocks.events import LOOKUP, CacheEvent, Origin
from cache_blocks.files import CachedFile as File
from cache_blocks.fingerprint import digest_path
from cache_blocks.keys import TaskIdentity, build_key
from cache_blocks.leases import SqlLeases
from cache_blocks.maintenance import closest, collect, count, forget, ls, show, stats, verify
from cache_blocks.maintenance.walking import Walker
from cache_blocks.metrics import CacheMetrics
from cache_blocks.schema import EventRow, GenerationRow, table
from cache_blocks.testing import entry_for

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from redis import Redis

    from cache_blocks.tiers.sql import SqlTier
    from tests.servers.fixtures import StartRedis
    from tests.servers.s3 import S3Bucket

SHORT = CacheKind("short", ttl=timedelta(seconds=60), replica=True)
SECRET = "the walrus sings at midnight"
SOUND = b"RIFF normalised sound of the walrus " * 400
LATER = GRACE_SECONDS + 60


@pytest.fixture
def cache(cache_home: Path, redis_url: str) -> Generator[TieredCache]:
    """A cache over Redis, SQLite and a folder."""
    cache = TieredCache(CacheSettings(home=cache_home, redis_url=SecretStr(redis_url)))
    yield cache
    cache.close()


@pytest.fixture
def served(cache_home: Path, redis_url: str, postgres_url: str, s3: S3Bucket) -> Generator[TieredCache]:
    """A cache over Redis, PostgreSQL and S3."""
    settings = CacheSettings(
        home=cache_home,
        redis_url=SecretStr(redis_url),
        database_url=SecretStr(postgres_url),
        object_store_url=SecretStr(f"{s3.url}/cache"),
        object_store_options=SecretStr(orjson.dumps(s3.options).decode()),
        database_timeout_seconds=10,
    )
    cache = TieredCache(settings)
    yield cache
    cache.close()


@pytest.fixture(params=["cache", "served"])
def either(request: pytest.FixtureRequest) -> TieredCache:
    """A cache over embedded tiers and one over servers, in turn."""
    return cast("TieredCache", request.getfixturevalue(request.param))


def keep_file(cache: TieredCache, path: Path, key: str, content: bytes = SOUND, tags: tuple[str, ...] = ()) -> str:
    """Store a file-valued result and return its digest."""
    path.write_bytes(content)
    file = CachedFile.from_path(path)
    cache.put(key, file, kind=AUDIO_PREPROCESSING, tags=tags, annotation=CachedFile)
    return file.digest


def everything_in_redis(client: Redis) -> bytes:
    names = list(cast("Iterator[bytes]", client.scan_iter()))
    return b"".join(name + cast("bytes", client.get(name)) for name in names)


# Collecting


def test_what_has_expired_is_deleted_from_every_tier(either: TieredCache) -> None:
    either.put("short:a", SECRET, kind=SHORT)
    either.put("transcript:b", SECRET, kind=TRANSCRIPT)

    collected = collect(either, now=time.time() + 120)

    assert (collected.expired, collected.errors) == (1, [])
    assert collected.bytes_freed > 0
    for tier in either.parts.chain.tiers:
        assert list(tier.keys()) == ["transcript:b"]


def test_what_was_invalidated_by_key_kind_or_tag_is_deleted(either: TieredCache) -> None:
    for key, tags in (("transcript:a", ()), ("transcript:b", ("x",)), ("transcript:c", ("y", "z"))):
        either.put(key, SECRET, kind=TRANSCRIPT, tags=tags)
    either.put("short:d", SECRET, kind=SHORT)
    either.invalidate(key="transcript:a")
    either.invalidate(tag="x")
    either.invalidate(kind="short")

    assert collect(either).invalidated == 3
    for tier in either.parts.chain.tiers:
        assert list(tier.keys()) == ["transcript:c"]
    assert either.get("transcript:c") == SECRET


def test_a_dry_run_counts_and_deletes_nothing(cache: TieredCache, tmp_path: Path) -> None:
    cache.put("short:a", SECRET, kind=SHORT)
    keep_file(cache, tmp_path / "a.wav", "audio-preprocessing:b")
    then = time.time() + AUDIO_PREPROCESSING.ttl.total_seconds() + 60

    planned = collect(cache, now=then, dry_run=True)

    assert (planned.expired, planned.blobs) == (2, 1)
    assert cache.get("short:a") == SECRET
    assert collect(cache, now=then).as_dict() == planned.as_dict()


def test_a_blob_goes_after_its_grace_time_when_its_last_entry_has_gone(either: TieredCache, tmp_path: Path) -> None:
    digest = keep_file(either, tmp_path / "a.wav", "audio-preprocessing:a")
    keep_file(either, tmp_path / "b.wav", "audio-preprocessing:b")
    either.invalidate(key="audio-preprocessing:a")

    assert collect(either, now=time.time() + LATER).blobs == 0, "b still refers to it"
    either.invalidate(key="audio-preprocessing:b")
    assert collect(either).blobs == 0, "within its grace time"
    assert collect(either, now=time.time() + LATER).blobs == 1
    assert either.blobs.missing({digest: len(SOUND)}) == [digest]


def test_a_blob_stays_while_only_redis_knows_an_entry_that_refers_to_it(cache: TieredCache, tmp_path: Path) -> None:
    keep_file(cache, tmp_path / "a.wav", "audio-preprocessing:a")
    with cache.parts.database.begin() as connection:
        for name in ("entry", "tag", "blob"):
            connection.execute(sa.text(f"DELETE FROM cache_blocks_{name}"))  # noqa: S608

    assert collect(cache, now=time.time() + LATER).blobs == 0
    assert cache.get("audio-preprocessing:a", annotation=CachedFile) is not NO_VALUE


def test_no_blob_is_judged_while_a_tier_cannot_be_read(
    cache_home: Path, redis_server: StartRedis, tmp_path: Path
) -> None:
    redis = redis_server()
    cache = TieredCache(CacheSettings(home=cache_home, redis_url=SecretStr(redis.url)))
    digest = keep_file(cache, tmp_path / "a.wav", "audio-preprocessing:a")
    cache.put("short:b", SECRET, kind=SHORT)
    cache.parts.chain.tier("sql").delete(["audio-preprocessing:a"])
    redis.stop()

    collected = collect(cache, now=time.time() + LATER)

    assert collected.expired == 1, "the rest is done"
    assert any(error.startswith("redis") for error in collected.errors)
    assert any(error.startswith("blobs: left alone") for error in collected.errors)
    assert not cache.blobs.missing({digest: len(SOUND)})
    cache.close()


@pytest.mark.parametrize("done", [True, False], ids=["its entry is written", "its entry is about to be written"])
def test_a_writer_that_takes_up_a_listed_blob_keeps_it(
    cache: TieredCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, done: bool
) -> None:
    digest = keep_file(cache, tmp_path / "a.wav", "audio-preprocessing:a")
    blob = cast("Path", cache.parts.store.local_root) / "default" / "blobs" / digest[:2] / digest
    long_ago = time.time() - LATER
    os.utime(blob, (long_ago, long_ago))
    cache.invalidate(key="audio-preprocessing:a")

    def judge_then_write(walker: Walker, digests: Sequence[str]) -> list[tuple[str, str]]:
        monkeypatch.undo()
        found = walker.referring(digests)
        assert (digests, found) == ([digest], [])
        if done:
            keep_file(cache, tmp_path / "b.wav", "audio-preprocessing:b")
            os.utime(blob, (long_ago, long_ago))
        else:
            cache.blobs.put(CachedFile.from_path(tmp_path / "a.wav"))
        return found

    monkeypatch.setattr(Walker, "referring", judge_then_write)

    assert collect(cache).blobs == 0
    assert cache.blobs.missing({digest: len(SOUND)}) == []


def test_an_entry_that_was_computed_anew_meanwhile_is_not_deleted(
    cache: TieredCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.put("short:a", "old", kind=SHORT)
    real = cache.parts.database.begin

    def write_first() -> object:
        monkeypatch.setattr(cache.parts.database, "begin", real)
        cache.put("short:a", "new", kind=SHORT)
        return real()

    cache.invalidate(key="short:a")
    monkeypatch.setattr(cache.parts.database, "begin", write_first)
    assert collect(cache).invalidated == 0
    assert cache.get("short:a") == "new"


def test_replicas_that_sql_does_not_know_go_when_their_header_says_so(either: TieredCache) -> None:
    either.put("short:a", SECRET, kind=SHORT)
    either.put("transcript:b", SECRET, kind=TRANSCRIPT)
    either.put("transcript:c", SECRET, kind=TRANSCRIPT)
    either.invalidate(key="transcript:c")
    either.parts.chain.tier("sql").delete(["short:a", "transcript:b", "transcript:c"])
    either.parts.chain.tier("redis").delete(["short:a", "transcript:b", "transcript:c"])

    collected = collect(either, now=time.time() + 120)

    assert (collected.expired, collected.invalidated, collected.replicas) == (0, 0, 2)
    assert list(either.parts.chain.tier("object_store").keys()) == ["transcript:b"]


def test_unfinished_objects_and_unused_local_copies_go_after_their_grace_time(
    cache: TieredCache, tmp_path: Path
) -> None:
    used = keep_file(cache, tmp_path / "a.wav", "audio-preprocessing:a")
    store = cache.parts.store
    unfinished = store.path("default", "blobs", used[:2], f".tmp-0123456789abcdef-{used}")
    store.write(unfinished, b"half a fi")
    unused = cache.blobs.spool(b"never stored")
    file = cast("CachedFile", cache.get("audio-preprocessing:a", annotation=CachedFile))
    assert file.path.read_bytes() == SOUND

    assert (collect(cache).unfinished, collect(cache).local_files) == (0, 0)
    collected = collect(cache, now=time.time() + LATER)

    assert (collected.unfinished, collected.local_files) == (1, 1)
    assert store.exists(unfinished) is None
    assert unused.local_path is None
    assert file.local_path is not None


def test_old_events_and_ended_leases_go(cache: TieredCache) -> None:
    month = 31 * 86400
    log = cache.parts.events
    log.record([CacheEvent("lookup", "short", "short:a", "hit", at=time.time() - month)])
    log.record([CacheEvent("lookup", "short", "short:b", "hit")])
    log.flush()

    leases = SqlLeases(cache.parts.database, "default", 60)
    assert leases.acquire("short:a", "died").token == "died"

    assert collect(cache).leases == 0
    assert log.of_key("short:a") == []
    assert len(log.of_key("short:b")) == 1
    assert collect(cache, now=time.time() + 120).leases == 1


def test_a_tier_is_told_what_it_has_missed(cache_home: Path, redis_server: StartRedis) -> None:
    redis = redis_server()
    cache = TieredCache(CacheSettings(home=cache_home, redis_url=SecretStr(redis.url), breaker_seconds=0.001))
    cache.put("transcript:a", SECRET, kind=TRANSCRIPT)
    redis.stop()
    with pytest.raises(InvalidationIncompleteError):
        cache.invalidate(tag="x")
    assert collect(cache).untold == ["redis"]

    redis.start()
    collected = collect(cache)

    assert (collected.told, collected.untold) == (1, [])
    cache.close()


def test_another_namespace_is_left_alone(cache: TieredCache, tmp_path: Path) -> None:
    settings = {name: getattr(cache.settings, name) for name in ("home", "redis_url")}
    other = TieredCache(CacheSettings(**settings, namespace="other"))
    keep_file(other, tmp_path / "a.wav", "audio-preprocessing:a", tags=("recording:x",))
    other.put("short:b", SECRET, kind=SHORT)

    assert collect(cache, now=time.time() + 10 * 86400).as_dict() == collect(cache).as_dict()
    assert sorted(entry.key for entry in ls(other)) == ["audio-preprocessing:a", "short:b"]
    assert ls(cache) == []
    other.close()


# Verifying


def test_what_is_intact_is_counted(either: TieredCache, tmp_path: Path) -> None:
    keep_file(either, tmp_path / "a.wav", "audio-preprocessing:a")
    either.put("transcript:b", SECRET, kind=TRANSCRIPT)

    verified = verify(either)

    assert verified.sound
    assert verified.intact == {"redis": 2, "sql": 2, "object_store": 1, "blobs": 1}


def test_damaged_copies_are_found_named_and_removed(cache: TieredCache, redis_client: Redis, tmp_path: Path) -> None:
    digest = keep_file(cache, tmp_path / "a.wav", "audio-preprocessing:a")
    cache.put("transcript:b", SECRET, kind=TRANSCRIPT)
    objects = cast("Path", cache.parts.store.local_root)
    (objects / "default" / "blobs" / digest[:2] / digest).write_bytes(b"X" + SOUND[1:])
    redis_client.setrange("cache-blocks:default:entry:transcript:b", 60, b"X")
    replica = next((objects / "default" / "entries" / "transcript").rglob("b"))
    replica.write_bytes(replica.read_bytes()[:-1])

    verified = verify(cache)

    assert verified.corrupt == {"redis": ["transcript:b"], "object_store": ["transcript:b"], "blobs": [digest]}
    assert verified.missing == [digest]
    assert not verified.sound
    assert cache.get("transcript:b") == SECRET, "SQL has it intact"
    assert verify(cache).corrupt == {}


# Looking


def test_stats_are_what_the_events_and_entries_add_up_to(either: TieredCache, tmp_path: Path) -> None:
    keep_file(either, tmp_path / "a.wav", "audio-preprocessing:a")
    either.put("transcript:b", SECRET, kind=TRANSCRIPT, compute_seconds=3)
    for key in ("transcript:b", "transcript:b", "transcript:c"):
        either.get(key)

    found = stats(either)

    assert {name: kind.entries for name, kind in found.kinds.items()} == {"audio-preprocessing": 1, "transcript": 1}
    assert found.kinds["audio-preprocessing"].blob_bytes == len(SOUND)
    expiry = found.kinds["transcript"].newest + TRANSCRIPT.ttl.total_seconds()
    assert found.kinds["transcript"].next_expiry == pytest.approx(expiry)
    expected = CacheMetrics.from_events(either.parts.events.since(0))
    assert found.metrics.by_kind["transcript"].by_outcome == expected.by_kind["transcript"].by_outcome
    assert (found.metrics.hits, found.metrics.misses) == (expected.hits, expected.misses) == (2, 1)
    assert found.metrics.seconds_saved == pytest.approx(expected.seconds_saved)
    written = orjson.loads(orjson.dumps(found.as_dict()))["metrics"]
    assert written["hit_rate"] == pytest.approx(2 / 3)
    assert written["by_kind"]["transcript"]["by_outcome"] == {"miss": 1}
    assert written["by_tier"] == {"redis": 2}


def test_a_listing_can_be_narrowed(either: TieredCache, tmp_path: Path) -> None:
    keep_file(either, tmp_path / "a.wav", "audio-preprocessing:a", tags=("x",))
    either.put("transcript:b", SECRET, kind=TRANSCRIPT, tags=("x", "y"))
    either.put("transcript:c", SECRET, kind=TRANSCRIPT)

    assert [entry.key for entry in ls(either)] == ["transcript:c", "transcript:b", "audio-preprocessing:a"]
    assert [entry.key for entry in ls(either, kind="transcript", tag="x")] == ["transcript:b"]
    assert [entry.key for entry in ls(either, larger_than=1000)] == ["audio-preprocessing:a"]
    either.record([CacheEvent(LOOKUP, key="audio-preprocessing:a", origin=Origin(flow_run_id="run"))])
    either.parts.events.flush()
    assert [entry.key for entry in ls(either, flow_run="run")] == ["audio-preprocessing:a"]
    assert ls(either, flow_run="another") == []
    assert ls(either, older_than=60) == ls(either, task="other") == []
    assert len(ls(either, limit=1)) == 1
    assert ls(either, tag="y")[0].tags == ["x", "y"]
    assert (count(either), count(either, tag="x"), count(either, key="transcript:c")) == (3, 2, 1)


def test_an_entry_tells_where_it_is_and_whether_it_counts(cache: TieredCache) -> None:
    cache.put("transcript:b", SECRET, kind=TRANSCRIPT, tags=("x",), compute_seconds=2)
    cache.get("transcript:b")

    found = show(cache, "transcript:b")
    assert found is not None
    assert (found.state, found.tiers) == ("hit", {"redis": "held", "sql": "held", "object_store": "held"})
    assert [event.outcome for event in found.events] == ["hit"]

    cache.invalidate(tag="x")
    found = show(cache, "transcript:b")
    assert found is not None
    assert (found.state, found.reason) == ("invalidated", "invalidated by tag:x")
    assert SECRET not in orjson.dumps(found.as_dict()).decode()


def test_a_mistyped_key_is_answered_with_those_that_may_be_meant(cache: TieredCache) -> None:
    cache.put("transcript:abcdef", SECRET, kind=TRANSCRIPT)
    cache.put("short:abcdef", SECRET, kind=SHORT)

    assert show(cache, "transcript:abc") is None
    assert closest(cache, "transcript:abc") == ["transcript:abcdef"]
    assert closest(cache, "transcript:abcdeg")[0] == "transcript:abcdef"
    assert sorted(closest(cache, "abcd")) == ["short:abcdef", "transcript:abcdef"]


# Forgetting


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "walrus.mp3"
    path.write_bytes(b"an encoded walrus")
    return path


def keep_recording(cache: TieredCache, path: Path, name: str, sound: bytes = SOUND) -> str:
    """Store what a pipeline derives from a recording, its tag on it, and return the blob's digest."""
    tags = (f"recording:{digest_path(path)}",)
    blob = keep_file(cache, path.with_suffix(f".{name}.wav"), f"audio-preprocessing:{name}", sound, tags)
    cache.put(f"transcript:{name}", {"text": f"{SECRET} {name}"}, kind=TRANSCRIPT, tags=tags)
    cache.get(f"transcript:{name}")
    return blob


def test_a_forgotten_recording_is_gone_from_the_bytes_of_every_tier(
    cache: TieredCache, redis_client: Redis, recording: Path
) -> None:
    keep_recording(cache, recording, "one")
    cache.put("transcript:one", {"text": f"{SECRET}, as it read at first"}, kind=TRANSCRIPT, tags=("x",))
    keep_recording(cache, recording, "one")
    cast("CachedFile", cache.get("audio-preprocessing:one", annotation=CachedFile)).path.read_bytes()
    home = cache.settings.home

    def found_in() -> set[str]:
        files = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
        files[home / "redis"] = everything_in_redis(redis_client)
        names = {path.relative_to(home).parts[0] for path, data in files.items() if holds_secret(data)}
        return {name.removesuffix("-wal") for name in names}

    assert found_in() == {"cache.db", "objects", "files", "redis"}, "the search finds what is there"
    forgotten = forget(cache, recording)

    assert forgotten.complete, forgotten.left
    assert forgotten.entries == ["audio-preprocessing:one", "transcript:one"]
    assert forgotten.copies == {"redis": 2, "sql": 2, "object_store": 1}
    assert forgotten.events > 0
    assert found_in() == set()


def holds_secret(data: bytes) -> bool:
    """Whether the text, or the sound, is in some bytes; payloads this small are literals in their LZ4 frame."""
    return b"walrus sings" in data or b"sound of the walrus" in data


def test_a_recording_is_forgotten_by_servers_too(served: TieredCache, redis_client: Redis, recording: Path) -> None:
    blob = keep_recording(served, recording, "one")

    forgotten = forget(served, digest_path(recording))

    assert forgotten.complete, forgotten.left
    assert b"walrus" not in everything_in_redis(redis_client)
    assert [list(tier.keys()) for tier in served.parts.chain.tiers] == [[], [], []]
    store = served.parts.store
    assert not any(blob in path for path, _ in store.walk(store.path("default")))
    with served.parts.database.read() as connection:
        tables = ("entry", "tag", "blob")
        counts = [connection.execute(sa.text(f"SELECT count(*) FROM cache_blocks_{name}")).scalar() for name in tables]  # noqa: S608
    assert counts == [0, 0, 0]


def test_other_recordings_stay(cache: TieredCache, recording: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.mp3"
    other.write_bytes(b"an encoded seal")
    keep_recording(cache, recording, "one")
    keep_recording(cache, other, "two", b"seal" * 100)

    assert forget(cache, recording).complete
    assert cache.get("transcript:two") == {"text": f"{SECRET} two"}
    assert cast("CachedFile", cache.get("audio-preprocessing:two", annotation=CachedFile)).path.exists()


def test_a_file_that_another_recording_has_too_stays_with_that_one(
    cache: TieredCache, recording: Path, tmp_path: Path
) -> None:
    same_sound = tmp_path / "walrus.flac"
    same_sound.write_bytes(b"the same walrus in another container")
    blob = keep_recording(cache, recording, "one")
    keep_recording(cache, same_sound, "two")

    forgotten = forget(cache, recording)
    assert (forgotten.blobs, forgotten.shared, forgotten.complete) == ([], [blob], True)
    assert cast("CachedFile", cache.get("audio-preprocessing:two", annotation=CachedFile)).path.read_bytes() == SOUND

    forgotten = forget(cache, same_sound)
    assert (forgotten.blobs, forgotten.shared, forgotten.complete) == ([blob], [], True)


def test_what_was_derived_without_the_tag_is_followed_through_the_manifests(
    cache: TieredCache, recording: Path
) -> None:
    blob = keep_recording(cache, recording, "one")
    task = TaskIdentity("summarise", "summarise", version="1")
    sound = File(blob, len(SOUND), "named otherwise.wav", "audio/wav")
    for kind, argument in ((AI_ENHANCEMENT, sound), (SHORT, recording)):
        built = build_key(kind, task, {"source": argument})
        call = cache.call(built.key, kind=kind)
        fence, generations = cache.parts.generations.begin(scopes_of(built.key, ()))
        assert fence > 0
        assert set(generations.values()) == {0}
        cache.put_call(type(call)(built.key, kind, (), str, built.manifest), SECRET, 1.0)

    forgotten = forget(cache, recording)

    assert len(forgotten.entries) == 4
    assert forgotten.complete, forgotten.left
    assert ls(cache) == []


def test_what_only_a_replica_tells_is_forgotten(either: TieredCache, recording: Path) -> None:
    keep_recording(either, recording, "one")
    either.parts.chain.tier("sql").delete(["transcript:one", "audio-preprocessing:one"])

    forgotten = forget(either, recording)

    assert forgotten.complete, forgotten.left
    assert forgotten.copies == {"redis": 2, "object_store": 1}
    assert [list(tier.keys()) for tier in either.parts.chain.tiers] == [[], [], []]


def test_a_writer_in_the_middle_cannot_revive_a_forgotten_recording(cache: TieredCache, recording: Path) -> None:
    tags = (f"recording:{digest_path(recording)}",)

    def compute() -> str:
        assert forget(cache, recording).complete
        return SECRET

    cache.get_or_compute("transcript:slow", compute, kind=TRANSCRIPT, tags=tags)

    assert cache.get("transcript:slow") is NO_VALUE
    collect(cache)
    assert [list(tier.keys()) for tier in cache.parts.chain.tiers] == [[], [], []]


def test_what_a_pipeline_invalidates_on_the_way_is_erased_too(cache: TieredCache, recording: Path) -> None:
    keep_recording(cache, recording, "one")
    cache.put("short:answers", f"found: {SECRET}", kind=SHORT)
    asked: list[str] = []

    def remove_from_index(digest: str) -> None:
        asked.append(digest)
        cache.invalidate(kind=SHORT)

    assert forget(cache, recording, also=[remove_from_index]).complete
    assert asked == [digest_path(recording)]
    assert [list(tier.keys()) for tier in cache.parts.chain.tiers] == [[], [], []]


def test_events_that_name_the_recording_go_with_it(cache: TieredCache, recording: Path) -> None:
    keep_recording(cache, recording, "one")
    run = Origin(subject="walrus.mp3", task="t", flow_run_id="r1", deferred=False)
    cache.record([CacheEvent("lookup", "transcript", "transcript:one", "miss", origin=run)])
    cache.record([CacheEvent("lookup", "transcript", "transcript:never-stored", "miss", origin=run)])
    cache.record([CacheEvent("lookup", "transcript", "transcript:two", "miss", origin=Origin("seal.mp3", "t", "r1"))])

    forget(cache, recording)

    subjects = sa.select(table(EventRow).c.subject).where(table(EventRow).c.subject != "")
    with cache.parts.database.read() as connection:
        assert connection.execute(subjects).scalars().all() == ["seal.mp3"]


def test_a_dry_run_forgets_nothing(cache: TieredCache, recording: Path) -> None:
    blob = keep_recording(cache, recording, "one")

    planned = forget(cache, recording, dry_run=True)

    assert (planned.entries, planned.blobs) == (["audio-preprocessing:one", "transcript:one"], [blob])
    assert cache.get("transcript:one") is not NO_VALUE


def test_a_tier_that_is_down_is_named_and_the_next_call_finishes(
    cache_home: Path, redis_server: StartRedis, recording: Path
) -> None:
    redis = redis_server()
    cache = TieredCache(CacheSettings(home=cache_home, redis_url=SecretStr(redis.url), breaker_seconds=0.001))
    keep_recording(cache, recording, "one")
    redis.freeze()
    forgotten = forget(cache, recording)
    assert not forgotten.complete
    assert "redis" in forgotten.left

    redis.thaw()
    forgotten = forget(cache, recording)

    assert forgotten.complete, forgotten.left
    assert list(cache.parts.chain.tier("redis").keys()) == []
    cache.close()


def test_what_is_neither_a_file_nor_a_digest_is_refused(cache: TieredCache) -> None:
    with pytest.raises(InvalidKeyError, match="neither a file nor a digest"):
        forget(cache, "no-such-file.mp3")


# Growth


def test_pages_of_a_listing_hold_every_entry_once(either: TieredCache) -> None:
    """Even when all were computed at the same moment."""
    tier = either.parts.chain.tier("sql")
    tier.write([entry_for(f"short:{number}", tags=("x",), now=1e9, expires_in=2e9) for number in range(7)])
    for filters in ({}, {"kind": "short"}, {"tag": "x"}, {"task": "transcribe"}, {"larger_than": 1}):
        seen: list[str] = []
        while page := ls(either, limit=3, after=seen[-1] if seen else None, **filters):  # pyright: ignore[reportArgumentType]
            seen += [entry.key for entry in page]
        assert seen == [f"short:{number}" for number in reversed(range(7))], filters


def test_a_page_after_an_entry_that_has_gone_is_refused(cache: TieredCache) -> None:
    with pytest.raises(InvalidKeyError, match="begin with the first page"):
        ls(cache, after="short:gone")


def test_what_a_slow_writer_stores_while_it_is_being_collected_goes_with_the_next_collection(
    cache: TieredCache,
) -> None:
    cache.put("short:a", "a", kind=SHORT, tags=("x",))
    cache.invalidate(tag="x")
    assert collect(cache).invalidated == 1
    late = entry_for("short:b", tags=("x",))  # computed under the numbers before; put in past what SQL refuses
    tier = cast("SqlTier", cache.parts.chain.tier("sql"))
    with cache.parts.database.begin() as connection:
        connection.execute(sa.update(table(GenerationRow)).where(table(GenerationRow).c.number == 1).values(number=0))
    tier.write([late])
    with cache.parts.database.begin() as connection:
        connection.execute(sa.update(table(GenerationRow)).where(table(GenerationRow).c.number == 0).values(number=1))

    assert collect(cache).invalidated == 1
    assert list(tier.keys()) == []


def test_how_long_events_are_kept_is_a_setting(cache_home: Path) -> None:
    cache = TieredCache(CacheSettings(home=cache_home, event_days=2))
    cache.record([CacheEvent("lookup", "short", "short:a", "hit", at=time.time() - days * 86400) for days in (1, 3)])
    cache.parts.events.flush()
    assert collect(cache).events == 1
    assert len(cache.parts.events.of_key("short:a")) == 1
    assert stats(cache).metrics.hits == 2, "what they added up to is still known"
    cache.close()
