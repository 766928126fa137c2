"""Bad files in a batch: each is reported by name and reason, the others are done, and nothing is kept of the bad."""

import os
import shutil
from pathlib import Path

import pytest

from cache_blocks import TieredCache
from flows.batch_transcription import BatchFailedError, batch_transcription
from flows.sources import SourceError
from tests.pipeline.batches import SAMPLES, artifacts_of, files_under, run_batch
from tests.pipeline.conftest import FirstRun
from tests.unit.media_samples import malformed_media, video

GOOD = "austen-880.wav"


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A folder with one bad file of each kind, each with what its reason begins with."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "empty.wav").touch()
    flac = (SAMPLES / "austen-930.flac").read_bytes()
    (folder / "half.flac").write_bytes(flac[: len(flac) // 2])
    (folder / "letter.mp3").write_text("Dear all,\nplease find the recording attached.\n" * 20)
    (folder / "film.mp4").write_bytes(video("mp4"))
    (folder / "moved away.ogg").symlink_to(folder / "not there")
    os.mkfifo(folder / "pipe.wav")
    return folder


REASONS = {
    "empty.wav": "empty: ",
    "half.flac": "truncated: ",
    "letter.mp3": "not media: ",
    "film.mp4": "no audio: ",
    "moved away.ogg": "not found: ",
    "pipe.wav": "not media: ",
}


def kept(cache: TieredCache) -> dict[str, int]:
    """How many entries each tier has; blobs and local files too."""
    parts = cache.parts
    counts = {tier.name: len(list(tier.keys())) for tier in parts.chain.tiers}
    local = [path for path in (cache.settings.home / "files").rglob("*") if path.is_file()]
    return counts | {"blobs": len(list(parts.store.walk(parts.store.path("default", "blobs")))), "files": len(local)}


def test_bad_files_are_named_with_their_reasons_and_the_others_are_done(
    warm: FirstRun, bad: Path, cache: TieredCache, tmp_path: Path
) -> None:
    shutil.copy(SAMPLES / GOOD, bad)
    before = kept(cache)

    ran = run_batch(bad, tmp_path / "output")

    assert ran.state == "Completed"
    assert ran.texts == {GOOD: warm.ran.texts[GOOD]}
    assert set(ran.reasons) == set(REASONS)
    for name, reason in REASONS.items():
        assert ran.reasons[name].startswith(reason)
    assert ran.message.startswith("1 of 7 recordings done, 6 failed (")
    assert kept(cache) == before | {"memory": 3}, "the three hits of the good one"
    assert {name for name in files_under(tmp_path / "output") if not name.startswith("austen-880.")} == {"index.json"}
    assert "cache-report" in artifacts_of(ran.flow_run_id)


def test_when_all_are_bad_the_run_has_failed_and_says_why(bad: Path, cache: TieredCache, tmp_path: Path) -> None:
    ran = run_batch(bad, tmp_path / "output")

    assert ran.state == "Failed"
    assert ran.message.startswith(
        "0 of 6 recordings done, 6 failed (empty.wav: empty: the file has 0 bytes; film.mp4: "
    )
    assert ran.message.count("; ") >= 5
    assert not any(kept(cache).values())
    with pytest.raises(BatchFailedError, match=r"half.flac: truncated: "):
        batch_transcription(str(bad), str(tmp_path / "output"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(bad: Path, tmp_path: Path) -> None:
    (bad / "private.wav").write_bytes((SAMPLES / GOOD).read_bytes())
    (bad / "private.wav").chmod(0)

    assert run_batch(bad, tmp_path / "output").reasons["private.wav"].startswith("no permission: ")


def test_a_source_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no"):
        batch_transcription(str(tmp_path / "missing"), str(tmp_path / "output"))
    with pytest.raises(SourceError, match="no recordings in"):
        batch_transcription(str(tmp_path), str(tmp_path / "output"))


def test_two_hundred_malformed_files_give_two_hundred_reasons_and_no_entry(cache: TieredCache, tmp_path: Path) -> None:
    paths = malformed_media(tmp_path / "source", 200)

    ran = run_batch(tmp_path / "source" / "*", tmp_path / "output", concurrency=4)

    assert ran.state == "Failed"
    assert set(ran.reasons) == {path.name for path in paths}
    assert all(": " in reason for reason in ran.reasons.values())
    assert not any(kept(cache).values())
    assert list(files_under(tmp_path / "output")) == ["index.json"]
