"""``transcription-shard``: some recordings of a large batch, on whatever worker has a slot for them."""

import time
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from cache_blocks import TieredCache
from flows.batch_transcription import transcribe_here
from flows.outputs import Output
from flows.runners import Runner
from flows.shards import AGAIN, Shard, ShardError, answer_to, results_to_bytes
from flows.sources import recordings_at
from flows.stages import Recipe
from flows.summary import BatchSummary


@flow(name="transcription-shard")
def transcription_shard(
    shard: str,
    source: str,
    output: str,
    recipe: Recipe,
    concurrency: int = Field(default=2, ge=1, le=64),
    storage_options: dict[str, Any] | None = None,
    runner: Runner = "thread",
) -> State[None]:
    """Transcribe the recordings of a shard; ``batch-transcription`` starts its runs, and takes what they leave.

    Args:
        shard: File in the output that says which.
        source: Where they were found.
        output: Where outputs go.
        recipe: How they are treated, the same in all shards.
        concurrency: Recordings worked on at the same time.
        storage_options: Handed to fsspec for URLs.
        runner: What computes what is not cached, as in the batch.

    Returns:
        A completed state, also if no recording could be done: the batch reports each.

    Raises:
        ShardError: The file is not there: the batch has ended, or its output is another one here.
    """
    started = time.monotonic()
    target = Output(output, storage_options if "://" in output else None)
    mine = _told(target, shard)
    recordings = recordings_at(mine.recordings, source, storage_options)
    stems = {recording.name: stem for recording, stem in zip(recordings, mine.stems, strict=True)}
    results = transcribe_here(recordings, stems, recipe, target, runner, concurrency)
    target.write(answer_to(shard), results_to_bytes(results))
    summary = BatchSummary(
        source=source,
        output=output,
        results=results,
        seconds=time.monotonic() - started,
        written=sum(result.written for result in results),
    )
    logger = get_run_logger()
    logger.info(summary.sentence())
    for reason in summary.reasons:
        logger.warning(reason)
    TieredCache.from_settings().parts.events.flush()  # the batch reads them as soon as this run has ended
    return Completed(message=summary.sentence())


def _told(target: Output, shard: str) -> Shard:
    content = target.read(shard)
    if content is None:
        raise ShardError(
            f"there is no {shard} in {target.url}: the batch that this shard is of has ended ({AGAIN}), or its output"
            " is not the same folder on this machine"
        )
    return Shard.from_bytes(content)
