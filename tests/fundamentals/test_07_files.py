"""Lesson 7: a produced file is a result like any other, and its bytes travel only when they are used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pydantic

from cache_blocks import AUDIO_PREPROCESSING, CachedFile, CacheSettings, TieredCache

if TYPE_CHECKING:
    from tests.servers.s3 import S3Bucket


class Normalised(pydantic.BaseModel):
    audio: CachedFile
    seconds: float


def normalise(folder: Path) -> Normalised:
    produced = folder / "normalised.wav"
    produced.write_bytes(b"RIFF" + bytes(100_000))
    return Normalised(audio=CachedFile.from_path(produced), seconds=3.1)


def test_the_second_time_the_file_is_there_without_being_made(cache: TieredCache, tmp_path: Path) -> None:
    key = "audio-preprocessing:1"
    first = cache.get_or_compute(key, lambda: normalise(tmp_path), kind=AUDIO_PREPROCESSING, annotation=Normalised)
    (tmp_path / "normalised.wav").unlink()
    second = cache.get_or_compute(key, lambda: normalise(tmp_path), kind=AUDIO_PREPROCESSING, annotation=Normalised)
    assert first == second
    assert not (tmp_path / "normalised.wav").exists()
    assert second.audio.local_path is None
    assert Path(second.audio).read_bytes().startswith(b"RIFF")
    assert second.audio.name == "normalised.wav"


def test_another_machine_fetches_the_bytes(s3: S3Bucket, redis_url: str, postgres_url: str, tmp_path: Path) -> None:
    def machine(name: str) -> TieredCache:
        return TieredCache(
            CacheSettings(
                home=tmp_path / name,
                redis_url=redis_url,  # pyright: ignore[reportArgumentType]
                database_url=postgres_url,  # pyright: ignore[reportArgumentType]
                object_store_url=s3.url,  # pyright: ignore[reportArgumentType]
                object_store_options=orjson.dumps(s3.options).decode(),  # pyright: ignore[reportArgumentType]
            )
        )

    one, other = machine("one"), machine("other")
    made = one.get_or_compute(
        "audio-preprocessing:1", lambda: normalise(tmp_path), kind=AUDIO_PREPROCESSING, annotation=Normalised
    )
    found = other.get("audio-preprocessing:1", annotation=Normalised)
    assert found == made
    assert found.audio.path.is_relative_to(tmp_path / "other")
    assert found.audio.path.read_bytes() == made.audio.path.read_bytes()
    one.close()
    other.close()
