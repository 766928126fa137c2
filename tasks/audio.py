"""Any recording to the audio that speech models want: 16 kHz, mono, equally loud, without silent ends.

The same sound gives the same bytes, whichever container it came in, so that everything computed from it is
shared.
"""

import tempfile
from pathlib import Path
from typing import Any

from fsspec.core import OpenFile
from prefect.runtime import task_run
from pydantic import BaseModel, ConfigDict

from cache_blocks import AUDIO_PREPROCESSING, CachedFile, cached_task, record_usage
from tasks.media.options import AudioOptions, ChunkOptions
from tasks.media.source import source_name
from tasks.naming import shown_name
from tasks.scratch import scratch

_WAV = "audio/wav"


class NormalisedAudio(BaseModel):
    """A recording ready for transcription.

    Attributes:
        audio: 16 kHz mono PCM16 WAV without any tags. It has no samples when the recording was silent.
        duration_seconds: Length of ``audio``.
        original_duration_seconds: Length before trimming.
        loudness_lufs: Integrated loudness of the recording as it was (mixed down), None when it was silent.
        gain_db: By how much it was amplified.
        peak: Largest magnitude in ``audio``, below 1.0.
        trimmed_leading_seconds: Cut at the start; add it to times in ``audio`` to get times in the recording.
        trimmed_trailing_seconds: Cut at the end.
    """

    model_config = ConfigDict(frozen=True)

    audio: CachedFile
    duration_seconds: float
    original_duration_seconds: float
    loudness_lufs: float | None
    gain_db: float
    peak: float
    trimmed_leading_seconds: float
    trimmed_trailing_seconds: float


class Chunk(BaseModel):
    """A part of a recording.

    Attributes:
        audio: WAV of the same form as the whole.
        offset_seconds: Where in the whole it begins.
        duration_seconds: Its length.
    """

    model_config = ConfigDict(frozen=True)

    audio: CachedFile
    offset_seconds: float
    duration_seconds: float


DEFAULT_OPTIONS = AudioOptions()
DEFAULT_CHUNKS = ChunkOptions()


def normalise(source: Path | OpenFile, options: AudioOptions) -> NormalisedAudio:
    """Normalise one recording: what `normalise_audio` caches.

    Args:
        source: A local file or an ``fsspec.open(url, "rb")`` handle, in any format that FFmpeg's libraries
            decode (mp3, m4a, ogg, flac, wav, webm, and videos with sound).
        options: How.

    Raises:
        MediaError: The recording cannot become audio; the message names the file and the reason.
    """
    from tasks.media.normalise import normalise as write_normalised  # the audio extra, not for a hit
    from tasks.media.wav import SAMPLE_RATE  # the audio extra, not for a hit

    if isinstance(source, str):
        raise TypeError("a text would count by its letters, not by the file's bytes; pass a Path or fsspec.open(url)")

    name = Path(source_name(source).replace("\\", "_")).stem
    with scratch(f"{name}.wav", _WAV) as (path, keep):
        measured, written = write_normalised(source, path, options)
        record_usage(audio_seconds=measured.samples / SAMPLE_RATE)
        return NormalisedAudio(
            audio=keep(),
            duration_seconds=(measured.end - measured.start) / SAMPLE_RATE,
            original_duration_seconds=measured.samples / SAMPLE_RATE,
            loudness_lufs=None if measured.lufs is None else round(measured.lufs, 3),
            gain_db=round(written.gain_db, 3),
            peak=round(written.peak, 5),
            trimmed_leading_seconds=measured.start / SAMPLE_RATE,
            trimmed_trailing_seconds=(measured.samples - measured.end) / SAMPLE_RATE,
        )


def split(audio: CachedFile, options: ChunkOptions) -> list[Chunk]:
    """Split one recording: what `split_at_silences` caches."""
    from tasks.media.chunks import split as write_chunks  # the audio extra, not for a hit

    chunks: list[Chunk] = []
    with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
        for piece in write_chunks(audio.path, Path(folder), options):
            with scratch(piece.path.name, _WAV) as (path, keep):
                piece.path.replace(path)
                chunks.append(
                    Chunk(
                        audio=keep(),
                        offset_seconds=piece.offset_seconds,
                        duration_seconds=piece.duration_seconds,
                    )
                )
    return chunks


def recording_tag(arguments: dict[str, Any]) -> tuple[str, ...]:
    """Let everything of one recording be invalidated, or forgotten, at once."""
    return (f"recording:{arguments['recording']}",) if arguments["recording"] else ()


def _run_name() -> str:
    return f"normalise {shown_name(task_run.parameters['name'] or source_name(task_run.parameters['source']))}"


def _split_run_name() -> str:
    return f"split {shown_name(task_run.parameters['audio'].name)}"


@cached_task(
    kind=AUDIO_PREPROCESSING,
    cache_version="1",
    cache_ignore=("recording", "name"),
    cache_tags=(recording_tag, "stage:audio"),
    task_run_name=_run_name,
)
def normalise_audio(
    source: Path | OpenFile,
    options: AudioOptions = DEFAULT_OPTIONS,
    recording: str = "",  # noqa: ARG001 - read by the tags only
    name: str = "",  # noqa: ARG001 - for people: log and report
) -> NormalisedAudio:
    """Normalise one recording, once for all recordings with the same bytes and options.

    Errors are those of `normalise`.

    Args:
        source: See `normalise`.
        options: See `normalise`.
        recording: Digest of the source's bytes; tags the result, so that it can be forgotten with the recording.
        name: What people know the recording by.
    """
    return normalise(source, options)


@cached_task(kind=AUDIO_PREPROCESSING, cache_version="1", cache_tags=("stage:audio",), task_run_name=_split_run_name)
def split_at_silences(audio: CachedFile, options: ChunkOptions = DEFAULT_CHUNKS) -> list[Chunk]:
    """Split a normalised recording at its silences; the chunks together are the whole, sample for sample.

    Args:
        audio: What `normalise_audio` made.
        options: Longest chunk, and what counts as silence.

    Raises:
        DamagedMediaError: ``audio`` is not 16 kHz mono PCM16.
    """
    return split(audio, options)
