"""The three stages of a batch, each one `cached_map` over all recordings: only what is missing becomes task runs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from fsspec.core import OpenFile
from prefect import unmapped
from prefect.futures import PrefectFuture, as_completed
from pydantic import BaseModel

from cache_blocks.prefect.futures import BatchFuture, BatchFutures
from tasks.audio import AudioOptions, ChunkOptions, NormalisedAudio, normalise_audio
from tasks.engines import EngineConfig
from tasks.enhancement import EnhancedTranscript, EnhancerConfig, SpokenText, enhance
from tasks.preferences import Preferences
from tasks.transcript import Transcript
from tasks.transcription import transcribe


class Recipe(BaseModel):
    """How every recording of a batch is treated.

    Attributes:
        audio: How sound is normalised.
        engine: Which engine transcribes; resolved, so that its model's identity is part of the key.
        chunks: Where long recordings may be cut; never by default.
        enhancer: What improves the text.
        preferences: Language, style and vocabulary.
    """

    audio: AudioOptions
    engine: EngineConfig
    chunks: ChunkOptions | None
    enhancer: EnhancerConfig
    preferences: Preferences


@dataclass(frozen=True, slots=True)
class Readable:
    """A recording whose bytes could be read.

    Attributes:
        name: Path relative to the source.
        handle: Where its bytes are.
        digest: What they are.
    """

    name: str
    handle: Path | OpenFile
    digest: str


@dataclass(frozen=True, slots=True)
class Staged:
    """A recording on its way through the stages.

    Attributes:
        recording: The recording.
        normalised: Its sound.
        transcript: What is said in it, by the clock of the normalised sound.
        enhanced: The same, readable.
    """

    recording: Readable
    normalised: BatchFuture[NormalisedAudio]
    transcript: BatchFuture[Transcript]
    enhanced: BatchFuture[EnhancedTranscript]

    @property
    def failure(self) -> Exception | None:
        """What its first stage without a result has raised; to be asked when ``enhanced`` is done."""
        stages = (self.normalised, self.transcript, self.enhanced)
        return next((error for stage in stages if (error := stage.exception()) is not None), None)


Mapper = Callable[..., BatchFutures]
"""Maps a task over items: `cached_map`, or a planner's ``map``."""


def run_stages(recordings: Sequence[Readable], recipe: Recipe, each: Mapper) -> Iterator[Staged]:
    """Send recordings through the stages, and yield each as soon as its last stage is done, whatever became of it.

    Args:
        recordings: What to transcribe.
        recipe: How.
        each: Maps a stage's task over all recordings.
    """
    digests = [recording.digest for recording in recordings]
    names = [recording.name for recording in recordings]
    vocabulary = unmapped(recipe.preferences.vocabulary)
    normalised = each(
        normalise_audio,
        [recording.handle for recording in recordings],
        unmapped(recipe.audio),
        digests,
        names,
    )
    transcripts = each(
        transcribe,
        normalised.then(attrgetter("audio")),
        unmapped(recipe.engine),
        unmapped(recipe.preferences.language),
        vocabulary,
        unmapped(recipe.chunks),
        digests,
        names,
    )
    enhanced = each(
        enhance,
        transcripts.then(SpokenText.of),
        unmapped(recipe.enhancer),
        unmapped(recipe.preferences.style),
        vocabulary,
        digests,
        names,
    )
    stages = zip(recordings, normalised.futures, transcripts.futures, enhanced.futures, strict=True)
    staged: dict[PrefectFuture[Any], Staged] = {each[-1]: Staged(*each) for each in stages}
    yield from (staged[last] for last in as_completed(list(staged)))
