"""The audio and transcription tasks as a flow runs them: what is a hit, what is not, and what a hit does not load."""

import json
import os
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from prefect import flow

from tasks.audio import ChunkOptions, normalise_audio, split_at_silences
from tasks.engines import EngineConfig
from tasks.errors import MediaError
from tasks.transcription import transcribe
from tests.unit.media_samples import RECORDINGS, SAMPLES, encoded, noise, wav

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("prefect_server")


@flow
def speech(sources: list[Path]) -> list[tuple[str, str, str]]:
    """State of both tasks and the text, per source."""
    engine = EngineConfig().resolved()
    answers: list[tuple[str, str, str]] = []
    for source in sources:
        prepared = normalise_audio(source, return_state=True)
        transcript = transcribe(prepared.result(raise_on_failure=True).audio, engine, return_state=True)
        answers.append((str(prepared.name), str(transcript.name), transcript.result(raise_on_failure=True).text))
    return answers


SECOND_PROCESS = """
import json, sys
from pathlib import Path
from prefect import flow
from tasks.audio import normalise_audio
from tasks.engines import EngineConfig
from tasks.transcription import transcribe

@flow
def again(sources):
    engine = EngineConfig().resolved()
    for source in sources:
        prepared = normalise_audio(source, return_state=True)
        transcript = transcribe(prepared.result().audio, engine, return_state=True)
        yield prepared.name, transcript.name, transcript.result().text

answers = list(again([Path(name) for name in sys.argv[1:]]))
print(json.dumps([answers, "av" in sys.modules, "faster_whisper" in sys.modules]))
"""


def test_the_second_run_hits_and_loads_neither_decoder_nor_model(prefect_server: str) -> None:
    sources = list(RECORDINGS[:2])
    first = speech(sources)

    second = subprocess.run(
        [sys.executable, "-c", SECOND_PROCESS, *sources],
        cwd=ROOT, env={**os.environ, "PREFECT_API_URL": prefect_server}, check=True, capture_output=True, text=True,
    )  # fmt: skip

    answers, decoder_loaded, model_loaded = json.loads(second.stdout.splitlines()[-1])
    assert [states for *states, _ in first] == [["Completed", "Completed"]] * 2
    assert [states for *states, _ in answers] == [["Cached", "Cached"]] * 2
    assert [text for *_, text in answers] == [text for *_, text in first]
    assert not decoder_loaded
    assert not model_loaded


def test_the_same_sound_in_another_container_shares_its_transcript(tmp_path: Path) -> None:
    original = SAMPLES / "austen-880.wav"
    with wave.open(str(original), "rb") as recording:
        samples = np.frombuffer(recording.readframes(recording.getnframes()), dtype="<i2")
    other = tmp_path / "the same under another name.flac"
    other.write_bytes(encoded(samples, "flac", "flac"))

    (_, _, text), (prepared, transcribed, same_text) = speech([original, other])

    assert (prepared, transcribed) == ("Completed", "Cached")
    assert same_text == text


def test_a_file_changed_under_its_name_is_transcribed_again(tmp_path: Path) -> None:
    path = tmp_path / "meeting.wav"
    path.write_bytes((SAMPLES / "austen-880.wav").read_bytes())
    ((_, _, before),) = speech([path])
    path.write_bytes((SAMPLES / "austen-930.flac").read_bytes())

    ((prepared, transcribed, after),) = speech([path])

    assert (prepared, transcribed) == ("Completed", "Completed")
    assert after != before


def test_nothing_is_kept_of_a_bad_file(tmp_path: Path) -> None:
    path = tmp_path / "cut.flac"
    path.write_bytes((SAMPLES / "austen-930.flac").read_bytes()[:40_000])

    @flow
    def once() -> tuple[str, str]:
        state = normalise_audio(path, return_state=True)
        with pytest.raises(MediaError) as caught:
            state.result(raise_on_failure=True)
        return str(state.name), str(caught.value)

    first, second = once(), once()

    assert first == second
    assert first[0] == "Failed"
    assert first[1].startswith("cut.flac: truncated")


def test_chunks_are_kept_as_files(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    path.write_bytes(wav(noise(9.0)))

    @flow
    def chunked() -> tuple[str, list[tuple[float, int]]]:
        audio = normalise_audio(path).audio
        state = split_at_silences(audio, ChunkOptions(max_seconds=4), return_state=True)
        chunks = state.result(raise_on_failure=True)
        return str(state.name), [(chunk.offset_seconds, chunk.audio.path.stat().st_size) for chunk in chunks]

    first, second = chunked(), chunked()

    assert (first[0], second[0]) == ("Completed", "Cached")
    assert first[1] == second[1]
    assert len(first[1]) >= 3
