"""Bringing in an archive: what was transcribed before is neither paid for nor computed again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, temporary_settings

from cache_blocks import TieredCache
from cache_blocks.errors import ConfigurationError
from flows.importing import ImportedItem, import_archive
from flows.sources import SourceError
from tasks.engines import EngineConfig
from tasks.preferences import Preferences
from tests.pipeline.batches import (
    AUDIO,
    BETTER,
    REFERENCES,
    SAMPLES,
    TEXT,
    files_under,
    run_batch,
    run_batch_elsewhere,
)
from tests.pipeline.conftest import FirstRun
from tests.unit.media_samples import RECORDINGS, silence, wav

SUBTITLES = (
    "1\n00:00:00,500 --> 00:00:02,000\nHe was not\n\n2\n00:00:02,100 --> 00:00:02,900\nan ill-disposed young man.\n"
)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The samples, each with a transcript by somebody else, in every format."""
    folder = tmp_path / "archive"
    folder.mkdir()
    for path in RECORDINGS:
        shutil.copy(path, folder)
    (folder / "austen-870.txt").write_text(REFERENCES["austen-870.mp3"])
    (folder / "austen-880.srt").write_text(SUBTITLES)
    (folder / "austen-890.vtt").write_text("WEBVTT\n\n00:00.000 --> 00:04.000\nUnless to be cold-hearted\n")
    segments = [{"start": 0.0, "end": 5.0, "text": "Had he married a more amiable woman"}]
    (folder / "austen-920.json").write_text(json.dumps({"language": "en", "segments": segments}))
    (folder / "austen-930.flac.txt").write_text(REFERENCES["austen-930.flac"])
    return folder


def imported(cache: TieredCache, folder: Path) -> dict[str, str]:
    """Status and reason by name; without any Prefect server."""
    nowhere: dict[Any, Any] = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False}
    with temporary_settings(nowhere):
        return {item.name: f"{item.status} {item.reason}".strip() for item in import_archive(cache, folder)}


def test_after_an_import_nothing_is_transcribed(
    archive: Path, cache: TieredCache, child_environment: dict[str, str], tmp_path: Path
) -> None:
    assert imported(cache, archive) == dict.fromkeys(REFERENCES, "imported")

    ran = run_batch_elsewhere(archive, tmp_path / "output", child_environment)

    assert (ran.hits, ran.misses) == ({AUDIO: 5, TEXT: 5}, {BETTER: 5})
    assert ran.models_loaded == 0
    assert not {"av", "faster_whisper"} & set(ran.modules)
    document = json.loads((tmp_path / "output" / "austen-920.json").read_bytes())
    assert (document["engine"], document["text"]) == ("import", "Had he married a more amiable woman")
    assert (tmp_path / "output" / "austen-880.srt").read_text() == SUBTITLES


def test_a_second_import_finds_all_of_it_there(archive: Path, cache: TieredCache) -> None:
    imported(cache, archive)
    before = {tier.name: set(tier.keys()) for tier in cache.parts.chain.tiers}

    assert imported(cache, archive) == dict.fromkeys(REFERENCES, "already there")
    assert {tier.name: set(tier.keys()) for tier in cache.parts.chain.tiers} == before


def test_the_outputs_of_one_batch_are_an_archive_for_another_cache(
    first_run: FirstRun, cache: TieredCache, tmp_path: Path
) -> None:
    """Nothing is lost on the way, though other files of the output, such as the txt, tell less."""
    folder = tmp_path / "archive"
    shutil.copytree(first_run.output, folder)
    for path in RECORDINGS:
        shutil.copy(path, folder)

    assert imported(cache, folder) == dict.fromkeys(REFERENCES, "imported")
    ran = run_batch(folder, tmp_path / "output")

    assert ran.hits[TEXT] == 5
    assert files_under(tmp_path / "output") == files_under(first_run.output)


def test_what_cannot_be_its_transcript_is_refused_and_the_rest_goes_on(cache: TieredCache, tmp_path: Path) -> None:
    def pair(name: str, transcript: str, content: str, audio: Path = SAMPLES / "austen-880.wav") -> None:
        shutil.copy(audio, tmp_path / name)
        (tmp_path / transcript).write_text(content)

    pair("broken.wav", "broken.json", "{")
    pair("empty.wav", "empty.txt", "\n")
    pair("good.wav", "good.txt", "He was not an ill-disposed young man.")
    pair("longer.wav", "longer.srt", "1\n00:01:00,000 --> 00:01:02,000\nSomething else.\n")
    pair("two.mp3", "two.txt", "Which one?", SAMPLES / "austen-870.mp3")
    pair("two.wav", "two.txt", "Which one?")
    pair("unsound.wav", "unsound.txt", "No sound.", SAMPLES / "transcripts.tsv")
    (tmp_path / "alone.wav").write_bytes((SAMPLES / "austen-880.wav").read_bytes())

    items = imported(cache, tmp_path)

    assert items.pop("good.wav") == "imported"
    expected = {
        "broken.wav": "failed broken.json: not JSON",
        "empty.wav": "failed empty.txt: there is no text in it",
        "longer.wav": "failed longer.srt: it goes on to 62.0 s, the recording ends at 3.0 s",
        "two.mp3": "failed two.txt may belong to another recording of that name too; call it two.mp3.txt",
        "two.wav": "failed two.txt may belong to another recording of that name too; call it two.wav.txt",
        "unsound.wav": "failed unsound.wav: not media: ",
    }
    assert set(items) == set(expected)
    for name, reason in expected.items():
        assert items[name].startswith(reason)


def test_a_silent_recording_may_have_an_empty_transcript(cache: TieredCache, tmp_path: Path) -> None:
    (tmp_path / "muted.wav").write_bytes(wav(silence(1.0)))
    (tmp_path / "muted.vtt").write_text("WEBVTT\n")

    assert imported(cache, tmp_path) == {"muted.wav": "imported"}


def test_it_is_found_by_the_engine_and_language_that_it_was_imported_for(
    archive: Path, cache: TieredCache, tmp_path: Path
) -> None:
    engine, preferences = EngineConfig(beam_size=2), Preferences(language="en")
    items = list(import_archive(cache, archive, engine=engine, preferences=preferences))
    assert items[0] == ImportedItem(name="austen-870.mp3", status="imported")

    ran = run_batch(SAMPLES / "austen-880.wav", tmp_path / "output", engine=engine)

    assert ran.misses == {TEXT: 1, BETTER: 1}, "another language than was imported for"


def test_what_keeps_everything_out_is_raised_at_once(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SourceError):
        import_archive(TieredCache.from_settings(), tmp_path / "missing")
    monkeypatch.setenv("CACHE_BLOCKS_MODE", "read-only")
    with pytest.raises(ConfigurationError, match="read-only"):
        import_archive(TieredCache.from_settings(), archive)
