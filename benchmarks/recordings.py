"""Many small recordings, and the `batch-transcription` flow over them with engines that cost nothing."""

from __future__ import annotations

import random
import wave
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from benchmarks.payloads import transcript
from cache_blocks.fingerprint import digest_bytes
from flows.batch_transcription import BatchSummary, batch_transcription
from tasks.engines import EngineConfig
from tasks.enhancement import EnhancedTranscript, SpokenText
from tasks.transcript import Transcript

_RATE: Final = 16_000
_SAMPLES: Final = 9_600  # more than one of the blocks of which loudness is measured
_TRANSCRIPT: Final = Transcript.model_validate(transcript(2_000, seed=3))

# Its identity is its address, so that no model has to be there; nobody answers, and nobody is asked.
ENGINE: Final = EngineConfig(name="openai", model="planted", base_url="http://127.0.0.1:9/v1")


def planted_recordings(folder: Path, count: int) -> Path:
    """Write small WAV files, no two of which are the same, and return their folder."""
    folder.mkdir(parents=True)
    for number in range(count):
        with wave.open(str(folder / f"{number:06}.wav"), "wb") as written:
            written.setnchannels(1)
            written.setsampwidth(2)
            written.setframerate(_RATE)
            written.writeframes(random.Random(number).randbytes(2 * _SAMPLES))  # noqa: S311 - noise, the same in every run
    return folder


def transcribed(audio: Path, *_: object) -> Transcript:
    """Stand in for `transcribe_file`: one text, but for a word that tells the recordings apart."""
    return _TRANSCRIPT.model_copy(update={"text": f"{_TRANSCRIPT.text} {digest_bytes(audio.read_bytes())}"})


def enhanced(spoken: SpokenText) -> EnhancedTranscript:
    """Stand in for an enhancer."""
    sentences = [f"{one}." for one in spoken.text.split(". ")]
    return EnhancedTranscript(
        text=" ".join(sentences),
        sentences=sentences,
        keywords=["planted"],
        summary=sentences[0],
        style="clean",
        enhancer="rules",
    )


class _Enhancer:
    def __init__(self, _: object) -> None:
        pass

    def enhance(self, spoken: SpokenText, *_: object) -> EnhancedTranscript:
        return enhanced(spoken)


@contextmanager
def quick_stages() -> Generator[None]:
    """Let transcribing and enhancing cost nothing; what they are cached by stays as it is."""
    with (
        patch("tasks.transcription.transcribe_file", transcribed),
        patch("tasks.enhancement.make_enhancer", _Enhancer),
    ):
        yield


@dataclass(frozen=True)
class OurPipeline:
    """The flow of this project over a folder of recordings."""

    run: Callable[[], BatchSummary]

    def compute(self) -> None:
        """Run it for the first time."""
        with quick_stages():
            self.again()

    def again(self) -> None:
        """Run it, and make sure that all went well."""
        summary = self.run()
        assert not summary.failed, summary.sentence()


def batch_flow(source: Path, output: Path) -> OurPipeline:
    """Return the flow over the recordings in ``source``."""

    def run() -> BatchSummary:
        done: Any = batch_transcription(str(source), str(output), engine=ENGINE)
        return done

    return OurPipeline(run)
