"""`CachedFile`: small wherever it travels, verified wherever its bytes are used."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
import pytest

from cache_blocks import AUDIO_PREPROCESSING, SEARCH_RESULTS, CachedFile, TieredCache
from cache_blocks.blobs import GRACE_SECONDS
from cache_blocks.errors import BlobMissingError, UnsupportedValueError
from cache_blocks.fingerprint import digest_bytes

if TYPE_CHECKING:
    from collections.abc import Generator

SOUND = b"RIFF" + bytes(range(256)) * 300


class Audio(pydantic.BaseModel):
    file: CachedFile
    seconds: float


@pytest.fixture
def produced(tmp_path: Path) -> Path:
    path = tmp_path / "aufnahme Ä.wav"
    path.write_bytes(SOUND)
    return path


@pytest.fixture
def cache(cache_home: Path) -> Generator[TieredCache]:
    cache = TieredCache()
    assert cache.settings.home == cache_home
    yield cache
    cache.close()


@pytest.fixture
def stored(cache: TieredCache, produced: Path) -> CachedFile:
    """The file as a hit gives it, its producer's copy gone."""
    cache.put("audio-preprocessing:1", produced, kind=AUDIO_PREPROCESSING, annotation=Path)
    produced.unlink()
    return cache.get("audio-preprocessing:1", annotation=Path)


def blob_of(cache: TieredCache, file: CachedFile) -> Path:
    (blob,) = (cache.settings.home / "objects").rglob(file.digest)
    return blob


def test_a_wrapped_file_says_what_it_is(produced: Path) -> None:
    file = CachedFile.from_path(produced)
    assert file.digest == digest_bytes(SOUND)
    assert (file.size, file.name) == (len(SOUND), "aufnahme Ä.wav")
    assert file.media_type.endswith("wav")
    assert CachedFile.from_path(produced, "audio/wav").media_type == "audio/wav"


def test_it_is_a_path_for_everything_that_takes_one(produced: Path) -> None:
    file = CachedFile.from_path(produced)
    assert isinstance(file, os.PathLike)
    assert Path(file).read_bytes() == SOUND
    with Path(os.fspath(file)).open("rb") as opened:
        assert opened.read() == SOUND


def test_equal_bytes_are_equal_files_whatever_they_are_called(produced: Path) -> None:
    other = produced.with_name("b.wav")
    other.write_bytes(SOUND)
    files = CachedFile.from_path(produced), CachedFile.from_path(other)
    assert len(set(files)) == 1
    other.write_bytes(b"else")
    assert CachedFile.from_path(other) != files[0]


def test_it_pickles_into_another_process(produced: Path) -> None:
    file = CachedFile.from_path(produced)
    copy: CachedFile = pickle.loads(pickle.dumps(file))  # noqa: S301 - our own bytes
    assert (copy, copy.as_dict()) == (file, file.as_dict())
    assert copy.path.read_bytes() == SOUND


def test_on_another_machine_its_path_may_be_that_of_another_file(produced: Path) -> None:
    sent = pickle.dumps(CachedFile.from_path(produced))
    produced.write_bytes(SOUND[::-1])
    there: CachedFile = pickle.loads(sent)  # noqa: S301 - our own bytes
    assert there.local_path is None
    produced.unlink()
    assert pickle.loads(sent).local_path is None  # noqa: S301


def test_a_fetched_file_travels_as_a_handle_and_is_kept_while_somebody_has_it(stored: CachedFile) -> None:
    here = stored.path
    there: CachedFile = pickle.loads(pickle.dumps(stored))  # noqa: S301 - our own bytes
    assert (there, there.local_path) == (stored, None)
    here.unlink()
    assert stored.path.read_bytes() == SOUND, "fetched again, whoever removed it"


def test_it_is_a_field_of_models_and_dataclasses(produced: Path) -> None:
    model = Audio(file=produced, seconds=1.5)  # pyright: ignore[reportArgumentType] - a produced path is taken
    assert Audio.model_validate_json(model.model_dump_json()) == model
    assert b"RIFF" not in model.model_dump_json().encode()
    adapter = pydantic.TypeAdapter(dataclasses.make_dataclass("Part", [("file", CachedFile)]))
    part: Any = adapter.validate_python({"file": model.file.as_dict()})
    assert part.file == model.file


@pytest.mark.parametrize(
    "wrong",
    [
        {"digest": "../../etc/passwd"},
        {"digest": "AB" * 32},
        {"digest": "ab" * 31},
        {"size": -1},
        {"name": ""},
        {"name": ".."},
        {"name": "."},
        {"name": "a/b"},
        {"name": "a\\b"},
        {"name": "a\x00"},
        {"extra": 1},
    ],
    ids=repr,
)
def test_a_descriptor_that_could_leave_its_folder_is_refused(wrong: dict[str, Any]) -> None:
    good = {"digest": "ab" * 32, "size": 3, "name": "a.wav", "media_type": "audio/wav"}
    assert CachedFile.from_dict(good).as_dict() == good
    with pytest.raises(ValueError, match=r"digest|file name|descriptor"):
        CachedFile.from_dict(good | wrong)


@pytest.mark.parametrize("nothing", [None, [], "x", {}, {"digest": "ab" * 32}])
def test_what_is_no_descriptor_is_refused(nothing: object) -> None:
    with pytest.raises(ValueError, match="descriptor"):
        CachedFile.from_dict(nothing)


def test_bytes_are_fetched_only_when_they_are_used(stored: CachedFile) -> None:
    assert stored.local_path is None
    assert stored.size == len(SOUND)
    assert stored.path.read_bytes() == SOUND
    assert stored.local_path == stored.path
    assert stored.path.name == "aufnahme Ä.wav"


def test_equal_bytes_are_stored_once(cache: TieredCache, stored: CachedFile, produced: Path) -> None:
    again = produced.with_name("b.wav")
    again.write_bytes(SOUND)
    cache.put("audio-preprocessing:2", again, kind=AUDIO_PREPROCESSING, annotation=Path)
    blob_of(cache, stored)  # exactly one


def test_file_contents_are_in_the_object_store_alone(cache: TieredCache, stored: CachedFile) -> None:
    cache.get("audio-preprocessing:1", annotation=Path)
    cache.close()
    database = b"".join(path.read_bytes() for path in cache.settings.home.glob("cache.db*"))
    assert stored.digest.encode() in database
    assert SOUND[:64] not in database


def test_a_damaged_blob_is_refused_and_removed(cache: TieredCache, stored: CachedFile) -> None:
    blob = blob_of(cache, stored)
    blob.write_bytes(SOUND[:-1] + b"?")
    with pytest.raises(BlobMissingError, match="damaged"):
        _ = stored.path
    assert not blob.exists()
    lookup = cache.lookup("audio-preprocessing:1")
    assert not lookup.is_hit, "what it referred to is gone"


@pytest.mark.parametrize("damage", [b"", SOUND[:-1], SOUND + b"x"], ids=["empty", "cut", "longer"])
def test_a_blob_of_another_size_makes_its_entry_a_miss(cache: TieredCache, stored: CachedFile, damage: bytes) -> None:
    blob_of(cache, stored).write_bytes(damage)
    assert cache.lookup("audio-preprocessing:1").outcome == "corrupt"


def test_a_missing_blob_makes_its_entry_a_miss_that_is_computed_anew(
    cache: TieredCache, stored: CachedFile, produced: Path
) -> None:
    blob_of(cache, stored).unlink()

    def compute() -> Path:
        produced.write_bytes(SOUND)
        return produced

    file = cache.get_or_compute("audio-preprocessing:1", compute, kind=AUDIO_PREPROCESSING, annotation=Path)
    assert file.path.read_bytes() == SOUND
    assert cache.lookup("audio-preprocessing:1").is_hit


def test_a_damaged_local_copy_is_fetched_again(cache: TieredCache, stored: CachedFile) -> None:
    stored.path.write_bytes(bytes(len(SOUND)))
    fresh: CachedFile = cache.get("audio-preprocessing:1", annotation=Path)
    assert fresh.path.read_bytes() == SOUND


def test_a_file_that_changed_after_it_was_wrapped_is_not_stored(cache: TieredCache, produced: Path) -> None:
    file = CachedFile.from_path(produced)
    produced.write_bytes(b"overwritten by the next task")
    with pytest.raises(BlobMissingError, match="changed"):
        cache.put("audio-preprocessing:1", file, kind=AUDIO_PREPROCESSING, annotation=CachedFile)
    assert not cache.lookup("audio-preprocessing:1").is_hit


def test_bytes_of_a_kind_of_file_contents_come_back_as_bytes(cache: TieredCache) -> None:
    cache.put("audio-preprocessing:3", SOUND, kind=AUDIO_PREPROCESSING, annotation=bytes)
    assert cache.get("audio-preprocessing:3", annotation=bytes) == SOUND


def test_audio_in_a_small_kind_is_refused(cache: TieredCache) -> None:
    with pytest.raises(UnsupportedValueError, match="CachedFile"):
        cache.put("search-results:1", SOUND, kind=SEARCH_RESULTS)


def test_a_young_blob_is_not_for_the_collector(cache: TieredCache, stored: CachedFile) -> None:
    assert cache.blobs.aged() == []
    later = blob_of(cache, stored).stat().st_mtime + GRACE_SECONDS + 1
    assert cache.blobs.aged(later) == [(stored.digest, stored.size)]
