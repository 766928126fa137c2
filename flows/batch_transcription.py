"""``batch-transcription``: normalise, transcribe and improve every recording of a source; only what is new costs."""

import time
from pathlib import Path
from typing import Any, cast

from fsspec.core import OpenFile
from prefect import flow, get_run_logger, task
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError

from cache_blocks import CacheError
from cache_blocks.fingerprint import digest_of
from flows.outputs import Output, RecordingResult, output_stems
from flows.sources import find_recordings
from tasks.audio import AudioOptions, ChunkOptions, normalise_audio
from tasks.engines import EngineConfig
from tasks.enhancement import EnhancerConfig, SpokenText, enhance
from tasks.errors import MediaError, PipelineError
from tasks.media.source import open_media
from tasks.preferences import Preferences, load_preferences
from tasks.search import index_transcript
from tasks.transcript import Transcript
from tasks.transcription import transcribe


class BatchSummary(BaseModel):
    """What became of a batch.

    Attributes:
        source: Where the recordings came from.
        output: Where the outputs are.
        results: One per recording, in order of their names.
        seconds: How long the batch took.
        written: Output files that were new or different.
    """

    source: str
    output: str
    results: list[RecordingResult]
    seconds: float
    written: int

    @property
    def failed(self) -> list[RecordingResult]:
        """Recordings without outputs."""
        return [result for result in self.results if result.status == "failed"]

    def sentence(self) -> str:
        """Return the summary in a sentence, naming what failed."""
        done = len(self.results) - len(self.failed)
        reasons = "; ".join(f"{result.name}: {result.reason}" for result in self.failed[:5])
        more = f" and {len(self.failed) - 5} more" if len(self.failed) > 5 else ""  # noqa: PLR2004 - the five above
        failures = f", {len(self.failed)} failed ({reasons}{more})" if self.failed else ""
        return f"{done} of {len(self.results)} recordings done{failures}; {self.written} files written to {self.output}"


class BatchFailedError(PipelineError):
    """Not one recording of a batch could be done.

    Attributes:
        summary: What became of each.
    """

    def __init__(self, summary: BatchSummary) -> None:
        self.summary = summary
        super().__init__(summary)

    def __str__(self) -> str:
        return self.summary.sentence()


class Plan(BaseModel):
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


def _flow_run_name() -> str:
    parameters: dict[str, Any] = flow_run.parameters
    return f"transcribe {Path(str(parameters['source'])).name or parameters['source']}"


@flow(name="batch-transcription", flow_run_name=_flow_run_name)
def batch_transcription(
    source: str,
    output: str,
    engine: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
    enhancement: EnhancerConfig = EnhancerConfig(),  # noqa: B008 - frozen
    user: str = "",
    audio: AudioOptions = AudioOptions(),  # noqa: B008 - frozen
    chunks: ChunkOptions | None = None,
    concurrency: int = Field(default=2, ge=1, le=64),
    storage_options: dict[str, Any] | None = None,
) -> State[BatchSummary]:
    """Transcribe every recording of a source.

    One that cannot be transcribed is reported by name and reason; nothing is cached for it, and the others go on.

    Args:
        source: Folder, glob, file, or fsspec URL of the recordings.
        output: Folder or fsspec URL for txt, srt, vtt and json per recording, and index.json.
        engine: Speech recognition.
        enhancement: What improves the text.
        user: Whose preferences (language, style, vocabulary) hold; empty for the defaults.
        audio: How sound is normalised.
        chunks: Cut long recordings at silences into chunks of this kind.
        concurrency: Recordings worked on at the same time.
        storage_options: Handed to fsspec for URLs; leave secrets to the environment, parameters are shown in the UI.

    Returns:
        A completed state with the `BatchSummary`; a failed one with `BatchFailedError` if no recording could be done.

    Raises:
        SourceError: There is no such source, or no recording in it.
        EngineError: There is no such speech model.
    """
    logger = get_run_logger()
    started = time.monotonic()
    recordings = find_recordings(source, storage_options)
    logger.info("%d recordings in %s", len(recordings), source)
    plan = Plan(
        audio=audio,
        engine=engine.resolved(),
        chunks=chunks,
        enhancer=enhancement,
        preferences=load_preferences(user) if user else Preferences(),
    )
    target = Output(output, storage_options if "://" in output else None)
    stems = output_stems([recording.name for recording in recordings])
    with ThreadPoolTaskRunner[RecordingResult](max_workers=concurrency) as runner:
        common = {"plan": plan, "target": target}
        futures = [
            runner.submit(
                transcribe_recording,
                {"handle": one.handle, "name": one.name, "stem": stems[one.name], **common},
            )
            for one in recordings
        ]
        results = [_result_of(one.name, future) for one, future in zip(recordings, futures, strict=True)]
    index_written = target.write_index(results)
    summary = BatchSummary(
        source=source,
        output=output,
        results=results,
        seconds=time.monotonic() - started,
        written=sum(result.written for result in results) + index_written,
    )
    logger.info(summary.sentence())
    for result in summary.failed:
        logger.warning("%s: %s", result.name, result.reason)
    if len(summary.failed) == len(results):
        return Failed(message=summary.sentence(), data=BatchFailedError(summary))
    return Completed(message=summary.sentence(), data=summary)


@task(task_run_name="{name}", persist_result=False)
def transcribe_recording(handle: Path | OpenFile, name: str, stem: str, plan: Plan, target: Output) -> RecordingResult:
    """Take one recording through the three stages, make it findable, and write its outputs."""
    with open_media(handle):
        pass  # a missing, empty or forbidden file gives its reason here, before its bytes are digested
    recording = digest_of(handle)
    preferences = plan.preferences
    normalised = normalise_audio(handle, plan.audio, recording=recording, name=name)
    transcript = transcribe(
        normalised.audio,
        plan.engine,
        preferences.language,
        preferences.vocabulary,
        plan.chunks,
        recording=recording,
        name=name,
    )
    enhanced = enhance(
        SpokenText.of(transcript), plan.enhancer, preferences.style, preferences.vocabulary, recording, name
    )
    transcript = transcript.shifted(normalised.trimmed_leading_seconds, normalised.original_duration_seconds)
    files, written = target.write_recording(stem, transcript, enhanced)
    _make_findable(recording, name, transcript)
    return RecordingResult(
        name=name,
        recording=recording,
        seconds=normalised.original_duration_seconds,
        text=enhanced.text,
        summary=enhanced.summary,
        keywords=enhanced.keywords,
        files=files,
        written=written,
    )


def _make_findable(recording: str, name: str, transcript: Transcript) -> None:
    """Index a transcript for the search; its outputs are written, and a search that is down does not undo that."""
    try:
        index_transcript(recording, name, transcript)
    except (CacheError, SQLAlchemyError) as error:
        get_run_logger().warning("%s will be found by the search only after a later run: %s", name, error)


def _result_of(name: str, future: PrefectFuture[RecordingResult]) -> RecordingResult:
    """Return what became of a recording; an error stays with it."""
    outcome = cast("RecordingResult | State[Any] | BaseException", future.result(raise_on_failure=False))
    if isinstance(outcome, RecordingResult):
        return outcome
    error = outcome.message if isinstance(outcome, State) else outcome
    reason = f"{error.reason}: {error.detail}" if isinstance(error, MediaError) else str(error)
    return RecordingResult(name=name, status="failed", reason=reason or type(error).__name__)
