"""What became of a batch: a result per recording, what was lost, and all of it in a sentence."""

from pydantic import BaseModel

from flows.outputs import RecordingResult
from flows.shards import AGAIN, ShardRun, reasons_of
from tasks.errors import PipelineError


class BatchSummary(BaseModel):
    """What became of a batch.

    Attributes:
        source: Where the recordings came from.
        output: Where the outputs are.
        results: One per recording, in order of their names.
        seconds: How long the batch took.
        written: Output files that were new or different.
        shards: What became of its shards, if it had any.
    """

    source: str
    output: str
    results: list[RecordingResult]
    seconds: float
    written: int
    shards: list[ShardRun] = []

    @property
    def failed(self) -> list[RecordingResult]:
        """Recordings without outputs."""
        return [result for result in self.results if result.status == "failed"]

    @property
    def reasons(self) -> list[str]:
        """Why they have none, each with its name, but for those of lost shards."""
        return reasons_of(self.failed, self.shards)

    @property
    def lost(self) -> list[str]:
        """Which shards were lost, and how."""
        return [f"{shard.name} {shard.lost}" for shard in self.shards if shard.lost]

    @property
    def is_failure(self) -> bool:
        """Whether the batch has failed: nothing could be done, or a shard was lost."""
        return len(self.failed) == len(self.results) or bool(self.lost)

    def sentence(self) -> str:
        """Return the summary in a sentence, naming what failed."""
        done = len(self.results) - len(self.failed)
        reasons = [*self.lost, *self.reasons]
        more = f" and {len(reasons) - 5} more" if len(reasons) > 5 else ""  # noqa: PLR2004 - the five below
        failures = f", {len(self.failed)} failed ({'; '.join(reasons[:5])}{more})" if self.failed else ""
        written = f"{self.written} files written to {self.output}{f'; {AGAIN}' if self.lost else ''}"
        return f"{done} of {len(self.results)} recordings done{failures}; {written}"


class BatchFailedError(PipelineError):
    """Not one recording of a batch could be done, or a shard of it was lost.

    Attributes:
        summary: What became of each.
    """

    def __init__(self, summary: BatchSummary) -> None:
        self.summary = summary
        super().__init__(summary)

    def __str__(self) -> str:
        return self.summary.sentence()
