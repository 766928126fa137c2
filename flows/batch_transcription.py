"""``batch-transcription``: normalise, transcribe and improve every recording of a source; only what is new costs."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError

from cache_blocks import CacheError, cached_map
from flows.outputs import Output, RecordingResult, output_stems
from flows.planning import BatchPlan, plan_batch_transcription
from flows.reading import failed, read_all
from flows.sources import Recording, find_recordings
from flows.stages import Readable, Recipe, Staged, run_stages
from tasks.audio import AudioOptions, ChunkOptions
from tasks.engines import EngineConfig
from tasks.enhancement import EnhancerConfig
from tasks.errors import PipelineError
from tasks.preferences import Preferences, load_preferences
from tasks.search import IndexedTranscripts, index_transcript, indexed_transcripts
from tasks.transcript import Transcript


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
    plan: bool = False,  # noqa: FBT001, FBT002 - parameters of a flow are given by name
) -> State[BatchSummary] | State[BatchPlan]:
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
        plan: Compute nothing; tell what would be, in the artifact ``cache-plan``.

    Returns:
        A completed state with the `BatchSummary`, or the `BatchPlan`; a failed one with `BatchFailedError` if no
        recording could be done.

    Raises:
        SourceError: There is no such source, or no recording in it.
        EngineError: There is no such speech model.
    """
    logger = get_run_logger()
    started = time.monotonic()
    if plan:
        return _planned(
            plan_batch_transcription(
                source=source,
                engine=engine,
                enhancement=enhancement,
                user=user,
                audio=audio,
                chunks=chunks,
                storage_options=storage_options,
            )
        )
    recordings = find_recordings(source, storage_options)
    logger.info("%d recordings in %s", len(recordings), source)
    recipe = Recipe(
        audio=audio,
        engine=engine.resolved(),
        chunks=chunks,
        enhancer=enhancement,
        preferences=load_preferences(user) if user else Preferences(),
    )
    target = Output(output, storage_options if "://" in output else None)
    with ThreadPoolTaskRunner[object](max_workers=concurrency) as runner:
        results = transcribe_recordings(recordings, recipe, target, runner, concurrency)
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


def _planned(plan: BatchPlan) -> State[BatchPlan]:
    """Show a plan in the UI and return it."""
    create_table_artifact(table=plan.rows(), key="cache-plan", description=plan.sentence())
    return Completed(message=plan.sentence(), data=plan)


def transcribe_recordings(
    recordings: Sequence[Recording],
    recipe: Recipe,
    target: Output,
    runner: ThreadPoolTaskRunner[object],
    concurrency: int,
) -> list[RecordingResult]:
    """Take recordings through the stages, write the outputs of each and make it findable; an error stays with its own.

    Args:
        recordings: What to transcribe.
        recipe: How.
        target: Where outputs go.
        runner: Computes what is not cached.
        concurrency: Recordings whose outputs are written at the same time.

    Returns:
        What became of each, in their order.
    """
    stems = output_stems([recording.name for recording in recordings])
    readable, results = read_all(recordings)
    findable = _findable(readable)

    def finish(staged: Staged) -> RecordingResult:
        name = staged.recording.name
        try:
            if (error := staged.failure) is not None:
                return failed(name, error)
            return _finish(staged, stems[name], target, findable)
        except Exception as error:  # noqa: BLE001 - such as an output that cannot be written
            return failed(name, error)

    with ThreadPoolExecutor(concurrency, "outputs") as writers:
        finishing = [
            writers.submit(copy_context().run, finish, staged)
            for staged in run_stages(readable, recipe, partial(cached_map, task_runner=runner))
        ]
    results |= {(result := one.result()).name: result for one in finishing}
    return [results[recording.name] for recording in recordings]


def _finish(staged: Staged, stem: str, target: Output, findable: IndexedTranscripts) -> RecordingResult:
    """Write a recording's outputs and make it findable."""
    recording, normalised, enhanced = staged.recording, staged.normalised.result(), staged.enhanced.result()
    transcript = staged.transcript.result().shifted(
        normalised.trimmed_leading_seconds, normalised.original_duration_seconds
    )
    files, written = target.write_recording(stem, transcript, enhanced)
    if not findable.has(recording.digest, recording.name, transcript):
        _make_findable(recording, transcript)
    return RecordingResult(
        name=recording.name,
        recording=recording.digest,
        seconds=normalised.original_duration_seconds,
        text=enhanced.text,
        summary=enhanced.summary,
        keywords=enhanced.keywords,
        files=files,
        written=written,
    )


def _findable(recordings: Sequence[Readable]) -> IndexedTranscripts:
    """Return what the search finds already; nothing when it is down, which indexing each will report."""
    try:
        return indexed_transcripts([recording.digest for recording in recordings])
    except (CacheError, SQLAlchemyError) as error:
        get_run_logger().warning("the search does not say what it has: %s", error)
        return IndexedTranscripts({})


def _make_findable(recording: Readable, transcript: Transcript) -> None:
    """Index a transcript for the search; its outputs are written, and a search that is down does not undo that."""
    try:
        index_transcript(recording.digest, recording.name, transcript)
    except (CacheError, SQLAlchemyError) as error:
        get_run_logger().warning("%s will be found by the search only after a later run: %s", recording.name, error)
