"""Damaged bytes: whatever happens to a copy, it is noticed, it goes, the next one is asked, and the result is right."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import orjson
import pytest

from cache_blocks import AUDIO_PREPROCESSING, TRANSCRIPT, CachedFile, Outcome, TieredCache, codec
from cache_blocks.errors import BlobMissingError
from cache_blocks.fingerprint import digest_bytes
from cache_blocks.testing import entry_for
from cache_blocks.tiers.base import BackendTier

if TYPE_CHECKING:
    from cache_blocks.entry import Entry
    from tests.faults.conftest import MakeCache
    from tests.servers.s3 import S3Bucket

KEY, OTHER_KEY = "transcript:right", "transcript:other"
FILE_KEY, OTHER_FILE_KEY = "audio-preprocessing:right", "audio-preprocessing:other"
SOUND, OTHER_SOUND = b"RIFF the right sound", b"RIFF the wrong sound"
PLACES = ("memory", "redis", "sqlite", "postgres", "folder", "s3")
TIERS = {"sqlite": "sql", "postgres": "sql", "folder": "object_store", "s3": "object_store"}


@dataclass(frozen=True)
class Kept:
    """A result that is kept in every tier of a cache, and the tier whose copy is to be damaged."""

    cache: TieredCache
    tier: BackendTier
    entry: Entry

    @property
    def envelope(self) -> bytes | None:
        """The tier's copy as it is kept, unverified."""
        return self.tier._fetch([KEY], [])[0].get(KEY)

    def plant(self, envelope: bytes) -> None:
        """Put these bytes in the copy's place, and make sure that lookups come as far as this tier."""
        for tier in self.cache.parts.chain.tiers:
            if tier is self.tier:
                break
            tier.delete([KEY])
        self.tier._store([(self.entry, envelope)])
        assert self.envelope == envelope


def s3_settings(s3: S3Bucket) -> dict[str, Any]:
    options = orjson.dumps(s3.options).decode()
    return {"object_store_url": f"{s3.url}/cache", "object_store_options": options, "object_store_timeout_seconds": 30}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> str:
    """Where the copy is that a test damages."""
    return str(request.param)


@pytest.fixture
def kept(place: str, request: pytest.FixtureRequest, make_cache: MakeCache) -> Kept:
    """A result in every tier, once for each place that a tier may be."""
    settings: dict[str, Any] = {"database_timeout_seconds": 30, "redis_timeout_seconds": 30}
    if place == "redis":
        settings["redis_url"] = request.getfixturevalue("redis_url")
    if place == "postgres":
        settings["database_url"] = request.getfixturevalue("postgres_url")
    if place == "s3":
        settings |= s3_settings(request.getfixturevalue("s3"))
    cache = make_cache(**settings)
    cache.put(KEY, "right", kind=TRANSCRIPT)
    found = cache.lookup(KEY)
    assert found.entry is not None
    tier = cache.parts.chain.tier(TIERS.get(place, place))
    assert isinstance(tier, BackendTier)
    return Kept(cache, tier, found.entry)


def flips(data: bytes, *, step: int = 1) -> Iterator[bytes]:
    """Yield ``data`` with one bit flipped, at every offset, another bit each time."""
    for offset in range(0, len(data), step):
        yield data[:offset] + bytes([data[offset] ^ (1 << offset % 8)]) + data[offset + 1 :]


def truncations(data: bytes, *, step: int = 1) -> Iterator[bytes]:
    """Yield ``data`` cut at every length."""
    return (data[:length] for length in range(0, len(data), step))


@pytest.mark.promise(
    "Damaged bytes of an entry are a miss, in every tier",
    tries="every byte and length; every 3rd in PostgreSQL, every 29th in S3",
)
def test_every_flip_and_every_truncation_of_an_entry_is_corrupt_and_goes(kept: Kept, place: str) -> None:
    step = {"s3": 29, "postgres": 3}.get(place, 1)
    whole = cast("bytes", kept.envelope)
    damaged = [*flips(whole, step=step), *truncations(whole, step=step)]

    for envelope in damaged:
        kept.plant(envelope)
        answer = kept.tier.read([KEY])
        assert (list(answer.corrupt), answer.entries) == ([KEY], {})
        assert kept.envelope is None

    kept.plant(whole)
    assert list(kept.tier.read([KEY]).entries) == [KEY], "what was damaged was damaged by us"


@pytest.mark.promise("After damage the next tier is asked, and the result is right", tries="every 23rd byte and length")
def test_after_damage_the_next_tier_is_asked_and_the_result_is_right(kept: Kept) -> None:
    whole = cast("bytes", kept.envelope)
    slower = kept.cache.parts.chain.tiers[kept.cache.parts.chain.tiers.index(kept.tier) + 1 :]
    computed: list[str] = []

    def compute() -> str:
        computed.append(KEY)
        return "right"

    damaged = [*flips(whole, step=23), *truncations(whole, step=23)]
    for envelope in damaged:
        kept.plant(envelope)
        assert kept.cache.get_or_compute(KEY, compute, kind=TRANSCRIPT) == "right"
        assert list(kept.tier.read([KEY]).entries) == [KEY], "a whole copy has come in the place of the damaged one"

    assert len(computed) == (0 if slower else len(damaged))


def of_version(version: int, envelope: bytes) -> bytes:
    """The envelope as another version of the package might have written it, digest and all."""
    prefix = envelope[:4] + bytes([version]) + envelope[5 : codec._PREFIX.size]
    rest = envelope[codec._BODY :]
    return prefix + bytes.fromhex(digest_bytes(prefix + rest)) + rest


@pytest.mark.promise("Another entry's, namespace's or version's bytes are a miss", tries="in every tier")
def test_what_belongs_elsewhere_or_to_another_version_is_not_served(kept: Kept) -> None:
    whole = cast("bytes", kept.envelope)
    strange = {
        codec.pack(entry_for(OTHER_KEY, "wrong")): "holds another entry",
        codec.pack(entry_for(KEY, "wrong", namespace="other")): "holds another entry",
        of_version(codec.VERSION - 1, whole): "unknown version 0",
        of_version(codec.VERSION + 1, whole): "unknown version 2",
        of_version(255, whole): "unknown version 255",
        whole + b"\x00": "digest",
        b"": "no envelope",
    }
    for envelope, reason in strange.items():
        for tier in kept.cache.parts.chain.tiers:
            tier.delete([KEY])
        kept.plant(envelope)

        lookup = kept.cache.lookup(KEY)

        assert lookup.outcome is Outcome.CORRUPT
        assert reason in lookup.reason
        assert kept.envelope is None
        assert kept.cache.get_or_compute(KEY, lambda: "right", kind=TRANSCRIPT) == "right"


@pytest.mark.promise("Swapped entries are not served", tries="in every tier")
def test_two_entries_that_have_changed_places_are_both_misses(kept: Kept) -> None:
    kept.cache.put(OTHER_KEY, "other", kind=TRANSCRIPT)
    other = kept.cache.lookup(OTHER_KEY).entry
    assert other is not None
    both = kept.tier._fetch([KEY, OTHER_KEY], [])[0]
    for tier in kept.cache.parts.chain.tiers:
        tier.delete([KEY, OTHER_KEY])
    kept.tier._store([(kept.entry, both[OTHER_KEY]), (other, both[KEY])])

    assert [kept.cache.lookup(key).outcome for key in (KEY, OTHER_KEY)] == ["corrupt", "corrupt"]
    assert kept.cache.get_or_compute(KEY, lambda: "right", kind=TRANSCRIPT) == "right"
    assert kept.cache.get_or_compute(OTHER_KEY, lambda: "other", kind=TRANSCRIPT) == "other"


# Blobs


@dataclass(frozen=True)
class KeptFile:
    """A file-valued result, whose blob a test damages past the cache."""

    cache: TieredCache
    folder: Path

    def produce(self, content: bytes = SOUND) -> Path:
        """Do the work of the task: write the file."""
        path = self.folder / f"{digest_bytes(content)[:8]}.wav"
        path.write_bytes(content)
        return path

    def ask(self) -> CachedFile:
        """Return the result of the task, from the cache or computed."""
        return self.cache.get_or_compute(FILE_KEY, self.produce, kind=AUDIO_PREPROCESSING, annotation=Path)

    def blob(self, content: bytes = SOUND) -> str:
        """Where the bytes are in the object store."""
        return self.cache.blobs._path(digest_bytes(content))

    def plant(self, blob: bytes, content: bytes = SOUND) -> None:
        """Put other bytes in the blob's place, while this machine has no copy of it."""
        shutil.rmtree(self.cache.settings.home / "files", ignore_errors=True)
        self.cache.parts.store.fs.pipe_file(self.blob(content), blob)


@pytest.fixture
def kept_file(make_cache: MakeCache, tmp_path: Path) -> KeptFile:
    """A file in a local object store."""
    kept = KeptFile(make_cache(), tmp_path)
    assert kept.ask().path.read_bytes() == SOUND
    return kept


@pytest.fixture(params=["s3", "s3_conditional"])
def remote_file(request: pytest.FixtureRequest, make_cache: MakeCache, tmp_path: Path) -> KeptFile:
    """A file in S3, of two makes."""
    kept = KeptFile(make_cache(**s3_settings(request.getfixturevalue(request.param))), tmp_path)
    assert kept.ask().path.read_bytes() == SOUND
    return kept


@pytest.mark.promise("A lookup finds damage of a local blob, and the result is right", tries="every byte, every length")
def test_every_flip_and_every_truncation_of_a_blob_makes_its_entry_a_miss(kept_file: KeptFile) -> None:
    for damaged in [*flips(SOUND), *truncations(SOUND), SOUND + b"x"]:
        kept_file.plant(damaged)
        lookup = kept_file.cache.lookup(FILE_KEY)
        assert (lookup.outcome, lookup.tier) == ("corrupt", "object_store")
        assert not Path(kept_file.blob()).exists()
        assert kept_file.ask().path.read_bytes() == SOUND
        assert kept_file.cache.lookup(FILE_KEY).is_hit


def test_missing_and_swapped_blobs_make_their_entries_misses(kept_file: KeptFile) -> None:
    other = kept_file.produce(OTHER_SOUND)
    kept_file.cache.put(OTHER_FILE_KEY, other, kind=AUDIO_PREPROCESSING, annotation=Path)
    kept_file.plant(OTHER_SOUND)
    kept_file.plant(SOUND, OTHER_SOUND)
    assert [kept_file.cache.lookup(key).outcome for key in (FILE_KEY, OTHER_FILE_KEY)] == ["corrupt", "corrupt"]
    assert kept_file.ask().path.read_bytes() == SOUND

    Path(kept_file.blob()).unlink()
    assert kept_file.cache.lookup(FILE_KEY).outcome == "corrupt"
    assert kept_file.ask().path.read_bytes() == SOUND


def test_a_blob_that_another_result_shares_is_mended_for_both(kept_file: KeptFile) -> None:
    kept_file.cache.put(OTHER_FILE_KEY, kept_file.produce(), kind=AUDIO_PREPROCESSING, annotation=Path)
    kept_file.plant(next(flips(SOUND)))
    assert kept_file.ask().path.read_bytes() == SOUND
    assert kept_file.cache.get(OTHER_FILE_KEY, annotation=Path).path.read_bytes() == SOUND


def test_storing_over_a_damaged_blob_mends_it_though_nobody_has_looked_it_up(kept_file: KeptFile) -> None:
    kept_file.plant(next(flips(SOUND)))
    kept_file.cache.put(OTHER_FILE_KEY, kept_file.produce(), kind=AUDIO_PREPROCESSING, annotation=Path)
    assert Path(kept_file.blob()).read_bytes() == SOUND


def test_an_unchanged_blob_is_read_once_per_process(kept_file: KeptFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache_blocks.fingerprint_memory._SETTLED_SECONDS", -1.0)
    assert kept_file.cache.lookup(FILE_KEY).is_hit

    def read(stream: object) -> str:
        pytest.fail(f"{stream} was read again")

    monkeypatch.setattr("cache_blocks.fingerprint.digest_stream", read)
    assert kept_file.cache.lookup(FILE_KEY).is_hit


def test_a_remote_blob_of_another_size_is_noticed_by_the_lookup(remote_file: KeptFile) -> None:
    for damaged in (b"", SOUND[:-1], SOUND + b"x"):
        remote_file.plant(damaged)
        assert remote_file.cache.lookup(FILE_KEY).outcome == "corrupt"
        assert remote_file.cache.parts.store.exists(remote_file.blob()) is None
        assert remote_file.ask().path.read_bytes() == SOUND


@pytest.mark.promise(
    "A lookup finds that a remote blob was overwritten, and the result is right", tries="every 4th byte, 2 servers"
)
def test_a_remote_blob_that_was_overwritten_makes_its_entry_a_miss(remote_file: KeptFile) -> None:
    for damaged in flips(SOUND, step=4):
        remote_file.plant(damaged)
        lookup = remote_file.cache.lookup(FILE_KEY)
        assert (lookup.outcome, lookup.tier) == ("corrupt", "object_store")
        assert remote_file.cache.parts.store.exists(remote_file.blob()) is None
        assert remote_file.ask().path.read_bytes() == SOUND
        remote_file.plant(damaged)
        assert remote_file.ask().path.read_bytes() == SOUND, "the task that wants the file learns nothing of it"


def test_another_process_notices_it_too(make_cache: MakeCache, s3: S3Bucket, tmp_path: Path) -> None:
    """The mark comes with the entry: a process that has neither stored nor read the blob knows it."""
    first = make_cache(**s3_settings(s3))
    kept = KeptFile(first, tmp_path)
    kept.ask()
    kept.plant(next(flips(SOUND)))
    other = KeptFile(make_cache(**s3_settings(s3)), kept.folder)
    assert other.cache.lookup(FILE_KEY).outcome == "corrupt"
    assert other.ask().path.read_bytes() == SOUND


def test_a_remote_blob_that_was_stored_again_with_the_same_bytes_is_read_once_and_a_hit(
    remote_file: KeptFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every write gives a new mark, as with encrypted buckets."""
    read: list[str] = []
    store = remote_file.cache.parts.store
    details, fetch = store.details, store.fetch_file

    def renamed(path: str) -> dict[str, Any]:
        return details(path) | {"ETag": "another"}

    def fetch_and_note(path: str, target: Path) -> None:
        read.append(path)
        fetch(path, target)

    monkeypatch.setattr(store, "details", renamed)
    monkeypatch.setattr(store, "fetch_file", fetch_and_note)
    for _ in range(3):
        assert remote_file.cache.lookup(FILE_KEY).is_hit
    assert len(read) == 1


def test_a_whole_remote_blob_is_not_read_by_lookups(remote_file: KeptFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: str, target: Path) -> None:
        pytest.fail(f"{path} was read to {target}")

    monkeypatch.setattr(remote_file.cache.parts.store, "fetch_file", read)
    shutil.rmtree(remote_file.cache.settings.home / "files", ignore_errors=True)
    assert remote_file.cache.lookup(FILE_KEY).is_hit


def test_storing_over_a_damaged_remote_blob_mends_it_though_nobody_has_looked_it_up(remote_file: KeptFile) -> None:
    remote_file.plant(next(flips(SOUND)))
    remote_file.cache.put(OTHER_FILE_KEY, remote_file.produce(), kind=AUDIO_PREPROCESSING, annotation=Path)
    assert remote_file.cache.lookup(FILE_KEY).is_hit
    assert remote_file.cache.get(OTHER_FILE_KEY, annotation=Path).path.read_bytes() == SOUND


@pytest.mark.promise(
    "Damage that a remote store does not know of is found before the bytes are used", tries="every 4th byte, 2 servers"
)
def test_a_remote_blob_that_decays_unnoticed_is_found_before_it_is_used_and_is_a_miss_from_then_on(
    remote_file: KeptFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is beyond a lookup: the store itself believes the bytes to be the ones that it was given."""
    cache = remote_file.cache
    mark = cache.parts.store.details(remote_file.blob())["ETag"]
    details = cache.parts.store.details

    def unnoticed(path: str) -> dict[str, Any]:
        return details(path) | {"ETag": mark}

    monkeypatch.setattr(cache.parts.store, "details", unnoticed)
    for damaged in flips(SOUND, step=4):
        remote_file.plant(damaged)
        with pytest.raises(BlobMissingError, match="damaged"):
            _ = remote_file.ask().path
        assert cache.lookup(FILE_KEY).outcome == "corrupt"
        for tier in cache.parts.chain.tiers[:2]:
            assert tier.read([FILE_KEY]).entries, "and that though faster tiers have the entry"
        assert remote_file.ask().path.read_bytes() == SOUND, "asking again is all it takes"


def test_bytes_of_a_damaged_remote_blob_are_computed_anew_at_once(make_cache: MakeCache, s3: S3Bucket) -> None:
    """A result of type ``bytes`` is read when it is looked up, so that its caller never learns of the damage."""
    cache = make_cache(**s3_settings(s3))
    for damaged in flips(SOUND, step=7):
        assert cache.get_or_compute(FILE_KEY, lambda: SOUND, kind=AUDIO_PREPROCESSING, annotation=bytes) == SOUND
        KeptFile(cache, Path()).plant(damaged)
    assert cache.get_or_compute(FILE_KEY, lambda: SOUND, kind=AUDIO_PREPROCESSING, annotation=bytes) == SOUND
