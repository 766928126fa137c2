"""Shards: what a large batch is cut into, and what parent and shard hand each other through the batch's output.

Pure decisions and records; `flows.sharding` runs the shards, `flows.transcription_shard` is one.

A shard is told its recordings by a file and not by parameters, which Prefect keeps in its database and shows to
everybody, half a megabyte at most. Nor does it list the source: it works on what the parent found there.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, Field

from flows.outputs import RecordingResult, output_stems
from flows.sources import Located, Recording, located
from tasks.errors import PipelineError
from tasks.naming import shown_name, shown_reason

T = TypeVar("T")

FOLDER = ".shards"
"""In the output: what shards that run are told, and what they answer. The batch removes it in the end."""
AGAIN = "run the batch again, what is done is a hit"


class ShardError(PipelineError):
    """A batch cannot be sharded, or a shard does not find what it was told; says what to do."""


class Sharding(BaseModel):
    """How a large batch is spread over all workers.

    Attributes:
        size: A batch of more recordings is cut into shards of so many at most.
        deployment: Of which the shards are runs. Its concurrency limit is how many of them run at once, of all batches.
    """

    size: int = Field(default=500, ge=1)
    deployment: str = "transcription-shard/any-worker"


class Shard(BaseModel):
    """What a shard is to do.

    Attributes:
        recordings: Its recordings, in order of their names.
        stems: Names of the outputs of each. They depend on all recordings of the batch, so only the parent knows them.
    """

    recordings: list[Located]
    stems: list[str]

    def to_bytes(self) -> bytes:
        """Return it as JSON in ASCII, since a file may have a name that is no text in any encoding."""
        return json.dumps(self.model_dump()).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Shard":
        """Return what `to_bytes` was made from."""
        return cls.model_validate(json.loads(content))


class ShardRun(BaseModel):
    """What became of a shard.

    Attributes:
        name: What its flow run is called, such as ``calls, shard 2 of 7``.
        recordings: How many it had.
        flow_run_id: Its flow run; empty if it could not be started.
        lost: Why there are no results of it; empty when it has run to its end.
    """

    name: str
    recordings: int
    flow_run_id: str = ""
    lost: str = ""

    @property
    def reason(self) -> str:
        """Why its recordings are not done, and the way out."""
        return f"{self.name} {self.lost}: {AGAIN}"


def cut(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Cut a batch into as few pages of neighbours as possible, as equal as possible.

    Args:
        items: The batch.
        size: Most items of a page.

    Returns:
        The pages in order; every item is in one of them. The same items make the same pages.
    """
    pages = math.ceil(len(items) / size)
    bounds = [len(items) * page // pages for page in range(pages + 1)] if pages else []
    return [items[start:end] for start, end in itertools.pairwise(bounds)]


def shards_of(recordings: Sequence[Recording], size: int) -> Iterator[Shard]:
    """Yield the shards of a batch, each made when it is asked for."""
    stems = output_stems([recording.name for recording in recordings])
    for page in cut(recordings, size):
        yield Shard(recordings=located(page), stems=[stems[recording.name] for recording in page])


def answer_to(told: str) -> str:
    """Return the name of the file with a shard's results, by that of the file that tells it what to do."""
    return f"{told}-results"


def results_to_bytes(results: Sequence[RecordingResult]) -> bytes:
    """Return what a shard answers."""
    return json.dumps([result.model_dump() for result in results]).encode()


def results_of(names: Sequence[str], answer: bytes | None) -> list[RecordingResult] | None:
    """Return a shard's results, in the order of its recordings' names; None if this is no answer about them."""
    try:
        rows: list[Mapping[str, Any]] = json.loads(answer or b"[]")
        results = [RecordingResult.model_validate(row) for row in rows]
    except (ValueError, TypeError):
        return None
    return results if [one.name for one in results] == list(names) else None


def lost_results(names: Sequence[str], run: ShardRun) -> list[RecordingResult]:
    """Return what is reported of the recordings of a shard that was lost."""
    return [RecordingResult(name=name, status="failed", reason=run.reason) for name in names]


def reasons_of(failed: Sequence[RecordingResult], shards: Sequence[ShardRun]) -> list[str]:
    """Return why recordings failed, each with its name, but for those that their shard is the reason of."""
    lost = {run.reason for run in shards if run.lost}
    return [f"{shown_name(one.name)}: {shown_reason(one.reason)}" for one in failed if one.reason not in lost]
