"""Bring in transcripts that exist already, so that nobody pays twice for an archive."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from prefect.tasks import Task
from prefect.utilities.callables import get_call_parameters
from pydantic import BaseModel

from cache_blocks import CacheError, TieredCache, TieredCachePolicy
from cache_blocks.calls import Call
from cache_blocks.errors import ConfigurationError
from cache_blocks.fingerprint import digest_of
from flows.outputs import output_stems
from flows.sources import Recording, find_recordings
from tasks.audio import DEFAULT_OPTIONS, AudioOptions, ChunkOptions, NormalisedAudio, normalise, normalise_audio
from tasks.engines import EngineConfig
from tasks.errors import PipelineError, TranscriptFormatError
from tasks.preferences import Preferences
from tasks.subtitles import parse
from tasks.transcript import Transcript
from tasks.transcription import transcribe

ENDINGS = (".json", ".vtt", ".srt", ".txt")
"""Of transcripts, the one that tells most first: of several beside a recording it is taken."""

_LATE_SECONDS = 2.0
"""Subtitles often stay on the screen a little longer than the recording lasts."""


class ImportedItem(BaseModel):
    """What became of one pair of a recording and its transcript.

    Attributes:
        name: The recording, relative to the folder.
        status: ``imported``; ``already there`` when a transcript of this sound was cached before; or ``failed``.
        reason: Why it failed.
    """

    name: str
    status: Literal["imported", "already there", "failed"]
    reason: str = ""


class _How(BaseModel):
    audio: AudioOptions
    engine: EngineConfig
    chunks: ChunkOptions | None
    preferences: Preferences


def import_archive(
    cache: TieredCache,
    folder: Path,
    *,
    engine: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
    audio: AudioOptions = DEFAULT_OPTIONS,
    chunks: ChunkOptions | None = None,
    preferences: Preferences = Preferences(),  # noqa: B008 - frozen
) -> Iterator[ImportedItem]:
    """Cache the transcripts of a folder as what `batch-transcription` would have computed for its recordings.

    A pair is a recording with a json, vtt, srt or txt file of the same name: ``call.mp3`` with ``call.json`` or
    ``call.mp3.json``; the outputs of an earlier batch are such files. Recordings without a transcript are left out.
    No Prefect server is needed.

    Args:
        cache: Where to.
        folder: Searched with its subfolders.
        engine: As the batch will be given it, like all that follows: it is part of the keys that it looks up.
        audio: How sound is normalised; that is done and cached here too, since a transcript is found by its sound.
        chunks: Where long recordings may be cut.
        preferences: Language and vocabulary of the user that the batch will run for.

    Yields:
        What became of each pair, as soon as it is known. What computing a transcript took is not known, so that
        hits of imported ones save no seconds in any report.

    Raises:
        ConfigurationError: The cache's mode does not let it store anything.
        SourceError: There is no such folder, or no recording in it.
        EngineError: The engine's model, whose identity is part of the keys, cannot be found.
    """
    if cache.settings.mode != "on":
        raise ConfigurationError(f"CACHE_BLOCKS_MODE is {cache.settings.mode}: nothing can be imported; set it to on")
    recordings = find_recordings(str(folder))
    how = _How(audio=audio, engine=engine.resolved(), chunks=chunks, preferences=preferences)
    return _imported(cache, folder, recordings, how)


def _imported(cache: TieredCache, folder: Path, recordings: list[Recording], how: _How) -> Iterator[ImportedItem]:
    stems = output_stems([recording.name for recording in recordings])
    for recording in recordings:
        try:
            file = _transcript_of(folder, recording.name, stems[recording.name])
            if file is None:
                continue
            status = "imported" if _import(cache, recording, file, how) else "already there"
            yield ImportedItem(name=recording.name, status=status)
        except (PipelineError, CacheError, OSError) as error:
            yield ImportedItem(name=recording.name, status="failed", reason=str(error))


def _transcript_of(folder: Path, name: str, stem: str) -> Path | None:
    """Return the file with a recording's transcript, if there is one.

    Raises:
        TranscriptFormatError: It could be another recording's.
    """
    for base in (name, stem):
        for ending in ENDINGS:
            if (file := folder / f"{base}{ending}").is_file():
                return file
    shared = next((file for ending in ENDINGS if (file := (folder / name).with_suffix(ending)).is_file()), None)
    if shared is not None and stem == name and shared.name != "index.json":
        raise TranscriptFormatError(
            f"{shared.name} may belong to another recording of that name too; call it {Path(name).name}{shared.suffix}"
        )
    return None


def _import(cache: TieredCache, recording: Recording, file: Path, how: _How) -> bool:
    """Cache one transcript; return whether it was new."""
    read = parse(file.read_bytes(), file.name)
    people = {"recording": digest_of(recording.handle), "name": recording.name}
    call = call_of(normalise_audio, recording.handle, how.audio, **people)
    found = cache.peek([call.request], call.annotation)[call.key]
    normalised: NormalisedAudio = (
        found.value if found.lookup.is_hit else cache.compute(call, lambda: normalise(recording.handle, how.audio))
    )
    transcript = _fitted(read, normalised, file.name)
    language, vocabulary = how.preferences.language, how.preferences.vocabulary
    call = call_of(transcribe, normalised.audio, how.engine, language, vocabulary, how.chunks, **people)
    if cache.lookup(call.key, tags=call.tags).is_hit:
        return False
    cache.put_call(call, transcript, compute_seconds=0.0)
    return True


def call_of(task: Task[..., Any], *arguments: Any, **named: Any) -> Call:
    """Return what is cached when a task made by `cached_task` is called with these arguments."""
    policy = task.cache_policy
    if not isinstance(policy, TieredCachePolicy):
        raise ConfigurationError(f"task {task.name!r} has no tiered cache; make it with cached_task")
    return policy.call_of(task, get_call_parameters(task.fn, arguments, named))


def _fitted(read: Transcript, normalised: NormalisedAudio, name: str) -> Transcript:
    """Return a transcript of the recording as one of its normalised audio, which begins later.

    Raises:
        TranscriptFormatError: It cannot be this recording's.
    """
    end = max((segment.end for segment in read.segments), default=0.0)
    if end > normalised.original_duration_seconds + _LATE_SECONDS:
        raise TranscriptFormatError(
            f"{name}: it goes on to {end:.1f} s, the recording ends at "
            f"{normalised.original_duration_seconds:.1f} s: is it another one's?"
        )
    if not read.text and normalised.duration_seconds > 0:
        raise TranscriptFormatError(f"{name}: there is no text in it, but sound in the recording")
    return read.shifted(-normalised.trimmed_leading_seconds, normalised.duration_seconds)
