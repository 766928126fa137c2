"""``batch-transcription``: normalise, transcribe and improve every recording of a source; only what is new costs."""

import time
from collections.abc import Mapping, Sequence
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
from prefect.task_runners import TaskRunner
from pydantic import Field
from sqlalchemy.exc import SQLAlchemyError

from cache_blocks import CacheError, cached_map
from flows.outputs import Output, RecordingResult, output_stems
from flows.planning import BatchPlan, plan_batch_transcription
from flows.reading import failed, read_all
from flows.runners import Runner, runner_of
from flows.sharding import Sharded, run_sharded
from flows.shards import Sharding
from flows.sources import Recording, find_recordings
from flows.stages import Readable, Recipe, Staged, run_stages
from flows.summary import BatchFailedError, BatchSummary
from tasks.audio import AudioOptions, ChunkOptions
from tasks.engines import EngineConfig
from tasks.enhancement import EnhancerConfig
from tasks.naming import shown_name
from tasks.preferences import Preferences, load_preferences
from tasks.search import IndexedTranscripts, index_transcript, indexed_transcripts
from tasks.transcript import Transcript


def _flow_run_name() -> str:
    parameters: dict[str, Any] = flow_run.parameters
    return f"transcribe {Path(str(parameters['source'])).name or parameters['source']}"


@flow(name="batch-transcription", flow_run_name=_flow_run_name)
def batch_transcription(  # noqa: PLR0913 - parameters of a flow are given by name
    source: str,
    output: str,
    engine: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
    enhancement: EnhancerConfig = EnhancerConfig(),  # noqa: B008 - frozen
    user: str = "",
    audio: AudioOptions = AudioOptions(),  # noqa: B008 - frozen
    chunks: ChunkOptions | None = None,
    concurrency: int = Field(default=2, ge=1, le=64),
    storage_options: dict[str, Any] | None = None,
    *,
    runner: Runner = "thread",
    plan: bool = False,
    shards: Sharding | None = None,
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
        concurrency: Recordings worked on at the same time; with a cluster's address, its workers decide.
        storage_options: Handed to fsspec for URLs; leave secrets to the environment, parameters are shown in the UI.
        runner: What computes what is not cached: thread, process, dask or ray on this machine, or the address of
            a Dask scheduler (``tcp://host:8786``) or of a Ray cluster (``ray://host:10001``).
        plan: Compute nothing; tell what would be, in the artifact ``cache-plan``.
        shards: How a large batch is spread over all workers; by default all of it is done here.

    Returns:
        A completed state with the `BatchSummary`, or the `BatchPlan`; a failed one with `BatchFailedError` if no
        recording could be done, or a shard was lost.

    Raises:
        SourceError: There is no such source, or no recording in it.
        EngineError: There is no such speech model.
        RunnerError: The runner needs an extra that is not installed, or its cluster does not answer.
        ShardError: The batch is to be sharded, and there is no such deployment.
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
    if shards is not None and len(recordings) > shards.size:
        told = {"recipe": recipe, "runner": runner, "concurrency": concurrency, "storage_options": storage_options}
        done = run_sharded(source, recordings, target, shards, told)
    else:
        stems = output_stems([recording.name for recording in recordings])
        done = Sharded(transcribe_here(recordings, stems, recipe, target, runner, concurrency), [])
    index_written = target.write_index(done.results)
    summary = BatchSummary(
        source=source,
        output=output,
        results=done.results,
        seconds=time.monotonic() - started,
        written=sum(result.written for result in done.results) + index_written,
        shards=done.shards,
    )
    logger.info(summary.sentence())
    for reason in summary.reasons:
        logger.warning(reason)
    if summary.is_failure:
        return Failed(message=summary.sentence(), data=BatchFailedError(summary))
    return Completed(message=summary.sentence(), data=summary)


def _planned(plan: BatchPlan) -> State[BatchPlan]:
    """Show a plan in the UI and return it."""
    create_table_artifact(table=plan.rows(), key="cache-plan", description=plan.sentence())
    return Completed(message=plan.sentence(), data=plan)


def transcribe_here(
    recordings: Sequence[Recording],
    stems: Mapping[str, str],
    recipe: Recipe,
    target: Output,
    runner: Runner,
    concurrency: int,
) -> list[RecordingResult]:
    """Do what `transcribe_recordings` does, and see to a task runner."""
    with runner_of(runner, concurrency) as started:
        return transcribe_recordings(recordings, stems, recipe, target, started, concurrency)


def transcribe_recordings(
    recordings: Sequence[Recording],
    stems: Mapping[str, str],
    recipe: Recipe,
    target: Output,
    runner: TaskRunner[Any],
    concurrency: int,
) -> list[RecordingResult]:
    """Take recordings through the stages, write the outputs of each and make it findable; an error stays with its own.

    Args:
        recordings: What to transcribe.
        stems: Names of the outputs of each, without endings, by its name.
        recipe: How.
        target: Where outputs go.
        runner: Computes what is not cached.
        concurrency: Recordings whose outputs are written at the same time.

    Returns:
        What became of each, in their order.
    """
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
        get_run_logger().warning(
            "%s will be found by the search only after a later run: %s", shown_name(recording.name), error
        )
