"""Speech to text, cached by the sound, the model's identity, the language and the vocabulary."""

import tempfile
from pathlib import Path
from typing import Any

from prefect.runtime import task_run

from cache_blocks import TRANSCRIPT, CachedFile, cached_task, record_usage
from tasks.audio import ChunkOptions, recording_tag
from tasks.engines import Engine, EngineConfig, engine_for
from tasks.naming import shown_name
from tasks.transcript import Segment, Transcript, Word

__all__ = ["EngineConfig", "Segment", "Transcript", "Word", "transcribe", "transcribe_file"]


def transcribe_file(
    audio: Path,
    engine: EngineConfig,
    language: str | None = None,
    vocabulary: tuple[str, ...] = (),
    chunks: ChunkOptions | None = None,
) -> Transcript:
    """Transcribe normalised audio: what `transcribe` caches.

    Args:
        audio: 16 kHz mono PCM16 WAV. Without any sample, the transcript is empty and no engine is asked.
        engine: Resolved configuration of the engine.
        language: ISO 639-1 code; None lets the engine find out.
        vocabulary: Names and terms to expect.
        chunks: Cut audio that is longer than its ``max_seconds`` at silences and transcribe part by part:
            bounds memory, and the size of what an endpoint is sent.

    Raises:
        EngineError: Transcription could not be done.
        DamagedMediaError: The audio has not been normalised.
    """
    from tasks.media.wav import seconds_of  # the audio extra, not for a hit

    seconds = seconds_of(audio)
    record_usage(audio_seconds=seconds)
    if seconds == 0:
        return Transcript(text="", language=language or "", engine=engine.name, model=engine.model_name)
    speaker = engine_for(engine)
    if chunks is None or seconds <= chunks.max_seconds:
        return speaker.transcribe(audio, language=language, vocabulary=vocabulary)
    return _by_chunks(audio, speaker, language, vocabulary, chunks).model_copy(
        update={"duration_seconds": round(seconds, 3)}
    )


def _by_chunks(
    audio: Path, engine: Engine, language: str | None, vocabulary: tuple[str, ...], chunks: ChunkOptions
) -> Transcript:
    from tasks.media.chunks import split  # the audio extra, not for a hit

    segments: list[Segment] = []
    part: Transcript | None = None
    with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
        for piece in split(audio, Path(folder), chunks):
            part = engine.transcribe(piece.path, language=language, vocabulary=vocabulary)
            segments.extend(segment.shifted(piece.offset_seconds) for segment in part.segments)
            language = language or part.language or None  # one recording, one language: the first chunk decides
            piece.path.unlink()
    assert part is not None  # noqa: S101 - audio longer than a chunk has one
    return Transcript.of_segments(segments, language=part.language, engine=part.engine, model=part.model)


def _tags(arguments: dict[str, Any]) -> tuple[str, ...]:
    """Let everything of one recording's sound, or of one model, be invalidated at once."""
    engine: EngineConfig = arguments["engine"]
    return (
        *recording_tag(arguments),
        f"model:{Path(engine.model_name).name}",
        "stage:transcript",
    )


def _run_name() -> str:
    return f"transcribe {shown_name(task_run.parameters['name'] or task_run.parameters['audio'].name)}"


@cached_task(
    kind=TRANSCRIPT,
    cache_version="1",
    cache_ignore=("recording", "name"),
    cache_tags=(_tags,),
    task_run_name=_run_name,
)
def transcribe(
    audio: CachedFile,
    engine: EngineConfig,
    language: str | None = None,
    vocabulary: tuple[str, ...] = (),
    chunks: ChunkOptions | None = None,
    recording: str = "",  # noqa: ARG001 - read by the tags only
    name: str = "",  # noqa: ARG001 - for people: log and report
) -> Transcript:
    """Transcribe normalised audio, once for all recordings with this sound.

    Args and errors are those of `transcribe_file`; ``engine`` must be resolved (`EngineConfig.resolved`), so
    that the identity of the model is part of the key. ``recording`` and ``name`` are as in `normalise_audio`.
    """
    return transcribe_file(audio.path, engine, language, vocabulary, chunks)
