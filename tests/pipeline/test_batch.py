"""`batch-transcription` over real speech: right texts, right files, and only what is new is computed."""

import json
import shutil
import sys
import wave
from pathlib import Path

import fsspec
import numpy as np
import pytest
from prefect import flow

from cache_blocks import TieredCache
from flows.outputs import Output, output_stems
from tasks.search import search_transcripts
from tasks.subtitles import parse
from tests.pipeline.batches import (
    AUDIO,
    BETTER,
    SAMPLES,
    TEXT,
    artifacts_of,
    compute_seconds,
    files_under,
    lookup_seconds,
    run_batch,
    run_batch_elsewhere,
    word_error_rate,
    written_at,
)
from tests.pipeline.conftest import FirstRun
from tests.servers.s3 import REGION, S3Bucket
from tests.unit.media_samples import RECORDINGS, encoded, silence, wav

NAMES = [path.name for path in RECORDINGS]
ALL_THREE = {AUDIO: 5, TEXT: 5, BETTER: 5}


def samples_of(path: Path) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    with wave.open(str(path), "rb") as recording:
        return np.frombuffer(recording.readframes(recording.getnframes()), dtype="<i2")


def say(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Print a measured figure, whatever pytest captures."""
    with capsys.disabled():
        sys.stdout.write(f"\n{text}\n")


# --- the first run ----------------------------------------------------------------------------------------


def test_at_most_one_word_in_ten_is_wrong(first_run: FirstRun, capsys: pytest.CaptureFixture[str]) -> None:
    documents = {path.name: json.loads((first_run.output / f"{path.stem}.json").read_bytes()) for path in RECORDINGS}

    rate = word_error_rate({name: document["text"] for name, document in documents.items()})

    say(capsys, f"word error rate over {len(NAMES)} samples: {rate:.1%}")
    assert rate <= 0.10


def test_the_first_run_computes_every_stage_of_every_recording(first_run: FirstRun) -> None:
    assert first_run.ran.state == "Completed"
    assert (first_run.ran.hits, first_run.ran.misses) == ({}, ALL_THREE)
    assert [result.name for result in first_run.ran.summary.results] == NAMES


def test_each_recording_has_its_files_and_they_agree(first_run: FirstRun) -> None:
    endings = ("json", "srt", "txt", "vtt")
    files = files_under(first_run.output)

    assert sorted(files) == sorted(["index.json", *(f"{path.stem}.{end}" for path in RECORDINGS for end in endings)])
    assert first_run.ran.summary.written == len(files)
    for stem in (path.stem for path in RECORDINGS):
        whole, srt, vtt = (parse(files[f"{stem}.{end}"], f"{stem}.{end}") for end in ("json", "srt", "vtt"))
        assert whole.text == srt.text == vtt.text
        assert [(one.start, one.end) for one in srt.segments] == [(one.start, one.end) for one in whole.segments]
        assert all(segment.words for segment in whole.segments)
        enhanced = json.loads(files[f"{stem}.json"])["enhanced"]
        assert enhanced["text"] == files[f"{stem}.txt"].decode().rstrip("\n")


def test_the_index_tells_what_there_is(first_run: FirstRun) -> None:
    rows = json.loads((first_run.output / "index.json").read_bytes())["recordings"]

    assert [(row["name"], row["status"]) for row in rows] == [(name, "done") for name in NAMES]
    for row in rows:
        assert row["text"]
        assert row["keywords"]
        assert 1 < row["seconds"] < 10
        assert len(row["files"]) == 4
        assert all((first_run.output / file).is_file() for file in row["files"])


def test_the_report_of_a_run_is_in_the_api(first_run: FirstRun) -> None:
    artifacts = artifacts_of(first_run.ran.flow_run_id)

    assert {"cache-hits", "cache-report"} <= set(artifacts)
    rows = {row["kind"]: row for row in json.loads(str(artifacts["cache-hits"].data))}
    lookups = {kind: (rows[kind]["lookups"], rows[kind]["hits"]) for kind in (*ALL_THREE, "all")}
    assert lookups == {**dict.fromkeys(ALL_THREE, (5, 0)), "all": (15, 0)}
    report = str(artifacts["cache-report"].data)
    assert "data:image/svg+xml" in report
    assert "austen-880.wav" in report


# --- the second run ---------------------------------------------------------------------------------------


def test_another_process_hits_everything_and_loads_and_writes_nothing(
    warm: FirstRun, cache: TieredCache, child_environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = written_at(warm.output)

    ran = run_batch_elsewhere(SAMPLES, warm.output, child_environment)

    assert (ran.state, ran.hits, ran.misses) == ("Completed", ALL_THREE, {})
    assert ran.models_loaded == 0
    assert ran.modules == []
    assert ran.summary.written == 0
    assert written_at(warm.output) == before
    assert ran.texts == warm.ran.texts
    table = {row["kind"]: row for row in json.loads(str(artifacts_of(ran.flow_run_id)["cache-hits"].data))}
    assert (table["all"]["hits"], table["all"]["hit rate"]) == (15, "100 %")
    computing, looking_up = compute_seconds(ran.lookups, cache), lookup_seconds(ran.lookups)
    assert looking_up * 10 <= computing
    say(
        capsys,
        f"computing {computing:.2f} s, looking up {looking_up:.3f} s: 1/{computing / looking_up:.0f}; "
        f"the batch took {warm.ran.summary.seconds:.1f} s, then {ran.summary.seconds:.1f} s",
    )


def test_only_outputs_that_are_gone_or_different_are_written(warm: FirstRun, tmp_path: Path) -> None:
    output = tmp_path / "output"
    shutil.copytree(warm.output, output)
    before = written_at(output)
    (output / "austen-880.srt").unlink()
    (output / "austen-930.txt").write_text("somebody's own words")

    ran = run_batch(SAMPLES, output)

    after = written_at(output)
    assert {name for name in after if after[name] != before[name]} == {"austen-880.srt", "austen-930.txt"}
    assert ran.summary.written == 2
    assert files_under(output) == files_under(warm.output)


def test_the_same_sound_in_another_container_shares_its_text(warm: FirstRun, tmp_path: Path) -> None:
    other = tmp_path / "another name.flac"
    other.write_bytes(encoded(samples_of(SAMPLES / "austen-880.wav"), "flac", "flac"))

    ran = run_batch(other, tmp_path / "output")

    assert (ran.misses, ran.hits) == ({AUDIO: 1}, {TEXT: 1, BETTER: 1})
    assert ran.texts[other.name] == warm.ran.texts["austen-880.wav"]


def test_times_are_those_of_the_recording_though_silence_was_cut(warm: FirstRun, tmp_path: Path) -> None:
    """The sound that is left is the one of the sample, and so is its transcript; subtitles must not be early."""
    late = tmp_path / "late.wav"
    late.write_bytes(wav(np.concatenate([silence(3.0), samples_of(SAMPLES / "austen-880.wav")])))

    ran = run_batch(late, tmp_path / "output")

    start = parse((tmp_path / "output" / "late.srt").read_bytes(), "late.srt").segments[0].start
    original = parse((warm.output / "austen-880.srt").read_bytes(), "austen-880.srt").segments[0].start
    assert ran.state == "Completed"
    assert start - original == pytest.approx(3.0, abs=0.3)


def test_the_texts_can_be_searched(warm: FirstRun) -> None:
    @flow
    def search(query: str) -> set[str]:
        return {hit.name for hit in search_transcripts(query)}

    assert warm.ran.summary.failed == []
    assert search("amiable") == {"austen-920.ogg", "austen-930.flac"}
    assert search("dashwood leisure") == {"austen-870.mp3"}


# --- sources and outputs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["austen-8*", "**/austen-8[89]0.*", "austen-880.wav"])
def test_a_source_is_a_glob_or_a_file(warm: FirstRun, tmp_path: Path, pattern: str) -> None:
    ran = run_batch(SAMPLES / pattern, tmp_path / "output")

    expected = sorted(path.name for path in SAMPLES.glob(pattern))
    assert [result.name for result in ran.summary.results] == expected
    assert (ran.state, ran.misses) == ("Completed", {})
    assert ran.texts == {name: text for name, text in warm.ran.texts.items() if name in expected}


def test_folders_in_the_source_are_folders_in_the_output(warm: FirstRun, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for folder in ("monday", "tuesday/morning"):
        (source / folder).mkdir(parents=True)
        shutil.copy(SAMPLES / "austen-880.wav", source / folder / "call.wav")
    (source / "notes.txt").write_text("not a recording")

    ran = run_batch(source, tmp_path / "output")

    assert ran.misses == {}
    assert {"monday/call.txt", "tuesday/morning/call.vtt"} <= set(files_under(tmp_path / "output"))
    assert set(ran.texts.values()) == {warm.ran.texts["austen-880.wav"]}


def test_from_s3_to_s3(warm: FirstRun, s3: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials come from the environment, so that they are in no parameter of any flow run."""
    secrets = {"AWS_ACCESS_KEY_ID": s3.key, "AWS_SECRET_ACCESS_KEY": s3.secret}
    for name, value in (secrets | {"AWS_ENDPOINT_URL": s3.endpoint, "AWS_DEFAULT_REGION": REGION}).items():
        monkeypatch.setenv(name, value)
    bucket = fsspec.filesystem("s3", **s3.options, skip_instance_cache=True)
    for path in RECORDINGS:
        bucket.put_file(str(path), f"{s3.bucket}/calls/{path.name}")

    ran = run_batch(f"{s3.url}/calls", f"{s3.url}/texts")
    again = run_batch(f"{s3.url}/calls/*.wav", f"{s3.url}/texts-of-some")
    once_more = run_batch(f"{s3.url}/calls", f"{s3.url}/texts")

    assert (ran.state, ran.hits, ran.misses) == ("Completed", ALL_THREE, {})
    assert list(again.texts) == ["austen-880.wav"]
    assert once_more.summary.written == 0
    written = bucket.find(f"{s3.bucket}/texts")
    contents = {path.rpartition("/")[2]: bucket.cat_file(path) for path in written}
    assert contents == files_under(warm.output)


def test_outputs_never_get_each_others_names() -> None:
    names = ["a.mp3", "a.wav", "b.mp3", "c.wav.mp3", "c.wav", "Index.ogg", "sub/b.mp3"]

    stems = output_stems(names)

    assert stems == {
        "a.mp3": "a.mp3",
        "a.wav": "a.wav",
        "b.mp3": "b",
        "c.wav.mp3": "c.wav.mp3",
        "c.wav": "c",
        "Index.ogg": "Index.ogg",
        "sub/b.mp3": "sub/b",
    }


@pytest.mark.parametrize("name", ["../outside.txt", "a/../../outside.txt", "/outside.txt"])
def test_an_objects_name_does_not_lead_out_of_the_output(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="outside"):
        Output(str(tmp_path / "output")).write(name, b"")
    assert not list(tmp_path.rglob("outside.txt"))
