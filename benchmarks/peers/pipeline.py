"""The stages of `batch-transcription`, written with Prefect's own caching as its documentation shows it.

The tasks take paths, which Prefect takes by their letters, keep their results in the storage that it is given, and are
mapped one stage after the other. Outputs are written as our flow writes them, and nothing is made findable.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import BaseModel

from benchmarks.peers.tasks import cached_by_prefect
from benchmarks.recordings import enhanced, transcribed
from flows.outputs import Output
from tasks.audio import AudioOptions
from tasks.enhancement import EnhancedTranscript, SpokenText
from tasks.media.normalise import normalise
from tasks.transcript import Transcript

if TYPE_CHECKING:
    from prefect.filesystems import WritableFileSystem

# Without a bound, `.map` starts a thread for every task run, and is slower.
_WORKERS: Final = 8


class Normalised(BaseModel):
    """A recording ready for transcription.

    Attributes:
        audio: Its sound.
        gain_db: By how much it was amplified.
    """

    audio: Path
    gain_db: float


class PeerPipeline:
    """The pipeline over a folder of recordings.

    Args:
        source: Folder of recordings.
        output: Folder for the outputs and for normalised sound.
        storage: Where Prefect keeps results; a saved block.
    """

    def __init__(self, source: Path, output: Path, storage: WritableFileSystem) -> None:
        self._source = source
        self._output = output
        self._sound = output / "audio"
        self._computed = 0
        stages = (self._normalise, self._transcribe, self._enhance)
        self._stages = [cached_by_prefect(_function_of(stage), storage) for stage in stages]
        runner: Any = ThreadPoolTaskRunner[Any](max_workers=_WORKERS)
        self._flow: Any = flow(name="benchmark-peer", task_runner=runner)(self._run)

    def compute(self) -> None:
        """Run it for the first time."""
        self._sound.mkdir(parents=True)
        self._flow()

    def again(self) -> None:
        """Run it, and make sure that nothing was computed."""
        before = self._computed
        self._flow()
        assert self._computed == before, "what should have been hits was computed"

    def _run(self) -> None:
        paths = sorted(self._source.iterdir())
        normalise_audio, transcribe, enhance = self._stages
        normalised = normalise_audio.map(paths)
        transcripts = transcribe.map(normalised)
        enhancements = enhance.map(transcripts)
        target = Output(str(self._output))
        for path, transcript, enhancement in zip(paths, transcripts, enhancements, strict=True):
            target.write_recording(path.stem, transcript.result(), enhancement.result())

    def _normalise(self, source: Path) -> Normalised:
        self._computed += 1
        target = self._sound / source.name
        _, written = normalise(source, target, AudioOptions())
        return Normalised(audio=target, gain_db=written.gain_db)

    def _transcribe(self, normalised: Normalised) -> Transcript:
        self._computed += 1
        return transcribed(normalised.audio)

    def _enhance(self, transcript: Transcript) -> EnhancedTranscript:
        self._computed += 1
        return enhanced(SpokenText.of(transcript))


def _function_of(method: Any) -> Any:
    """Return a method as a plain function, which is what a task is made of."""

    def stage(given: Any) -> Any:
        return method(given)

    stage.__name__ = method.__name__.strip("_")
    return stage
