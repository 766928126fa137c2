"""A large batch on many workers: its shards as sub-runs of a deployment, so many at once as the deployment allows.

Who runs them is Prefect's affair: any worker of the deployment's work pool that has a slot. The parent starts shards,
waits for all of them, and takes what they answer; it computes nothing.
"""

import logging
import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelling
from pydantic_core import to_jsonable_python

from cache_blocks import TieredCache
from cache_blocks.prefect.report import ending_of, report_when_run_ends
from cache_blocks.wording import printable
from flows.outputs import Output, RecordingResult
from flows.shards import (
    FOLDER,
    Shard,
    ShardError,
    Sharding,
    ShardRun,
    answer_to,
    cut,
    lost_results,
    results_of,
    shards_of,
)
from flows.sources import Recording

AT_ONCE: Final = 16
"""Most shards at once of a deployment that has no concurrency limit of its own."""
POLL_SECONDS: Final = 2.0
STUCK_SECONDS: Final = 120.0
"""After how long without any shard that has begun the log says what may be the matter."""
_PAGE: Final = 100
_WHY_LETTERS: Final = 120


@dataclass(frozen=True, slots=True)
class _Open:
    """A shard that has been started: its recordings, and the file that tells it of them."""

    run: ShardRun
    told: str
    names: list[str]


@dataclass(frozen=True, slots=True)
class Sharded:
    """What became of a sharded batch.

    Attributes:
        results: One per recording, in the order of the batch.
        shards: Its shards, in that order too.
    """

    results: list[RecordingResult]
    shards: list[ShardRun]


def run_sharded(
    source: str,
    recordings: Sequence[Recording],
    target: Output,
    how: Sharding,
    parameters: Mapping[str, Any],
) -> Sharded:
    """Run a batch as sub-runs of a deployment, wait for all of them, and return what they have done.

    A shard that is lost loses only its own recordings. When this run is interrupted, its shards are cancelled.

    Args:
        source: Where its recordings were found.
        recordings: The batch.
        target: The batch's output, which the shards reach too.
        how: Size of the shards, and a deployment of `flows.transcription_shard.transcription_shard`.
        parameters: What that flow is given besides source, output and ``shard``.

    Raises:
        ShardError: There is no such deployment.
    """
    report_when_run_ends(TieredCache.from_settings())  # what the shards look up, which this run does not
    pages = [[recording.name for recording in page] for page in cut(recordings, how.size)]
    names = (f"{flow_run.name}, shard {number} of {len(pages)}" for number in range(1, len(pages) + 1))
    runs = [ShardRun(name=name, recordings=len(page)) for name, page in zip(names, pages, strict=True)]
    with get_client(sync_client=True) as client:
        told = {**parameters, "source": source, "output": target.url}
        batch = _Batch(client, _deployment(client, how.deployment), target, to_jsonable_python(told))
        try:
            batch.run(zip(shards_of(recordings, how.size), runs, strict=True))
        finally:
            batch.clean_up()
    answers = (batch.answers.get(run.name, []) for run in runs)
    results = [
        lost_results(page, run) if run.lost else answer for page, run, answer in zip(pages, runs, answers, strict=True)
    ]
    return Sharded([result for page in results for result in page], runs)


def _deployment(client: SyncPrefectClient, name: str) -> DeploymentResponse:
    try:
        return client.read_deployment_by_name(name)
    except (ObjectNotFound, ValueError) as error:
        raise ShardError(
            f"there is no deployment {name}, of which the shards of a large batch are runs; make it with"
            " `prefect deploy --all --prefect-file deployments/prefect.yaml`, name another one in the parameter"
            " `shards`, or leave that out to run the batch in one process"
        ) from error


class _Batch:
    """Runs of the shards' deployment, as many at once as its concurrency limit lets begin."""

    def __init__(
        self, client: SyncPrefectClient, deployment: DeploymentResponse, target: Output, parameters: Mapping[str, Any]
    ) -> None:
        self.answers: dict[str, list[RecordingResult]] = {}
        self._client = client
        self._deployment = deployment
        self._target = target
        self._parameters = parameters
        self._attempt = f"{flow_run.id}-{flow_run.run_count}"  # another attempt may find another source
        self._log = get_run_logger()
        self._open: dict[UUID, _Open] = {}
        self._stuck_at = time.monotonic() + STUCK_SECONDS

    def run(self, shards: Iterator[tuple[Shard, ShardRun]]) -> None:
        """Start shards as others end, until all have ended; what they answer is in ``answers``, or they are lost."""
        limit = self._deployment.global_concurrency_limit
        at_once = limit.limit if limit is not None and limit.active and limit.limit > 0 else AT_ONCE
        waiting = enumerate(shards, 1)
        while True:
            while len(self._open) < at_once and (following := next(waiting, None)) is not None:
                number, (shard, run) = following
                self._start(shard, run, f"{FOLDER}/{self._attempt}/{number}")
            if not self._open:
                return
            time.sleep(POLL_SECONDS)
            self._look()

    def clean_up(self) -> None:
        """Cancel shards that have not ended, because this run is interrupted, and remove what they were told."""
        for flow_run_id, shard in self._open.items():
            self._log.warning("%s is cancelled, because its batch is interrupted", shard.run.name)
            with _logged(self._log, f"{shard.run.name} could not be cancelled"):
                self._client.set_flow_run_state(flow_run_id, Cancelling())
        with _logged(self._log, f"{FOLDER}/{self._attempt} could not be removed from the output"):
            self._target.remove(f"{FOLDER}/{self._attempt}")

    def _start(self, shard: Shard, run: ShardRun, told: str) -> None:
        try:
            self._target.write(told, shard.to_bytes())
            started = run_deployment(
                self._deployment.id,
                parameters={**self._parameters, "shard": told},
                flow_run_name=run.name,
                timeout=0,
                idempotency_key=told,
            )
        except Exception as error:  # noqa: BLE001 - refused by Prefect or by the output's store; others may not be
            self._lose(run, f"could not be started: {error}")
            return
        flow_run_id = cast("FlowRun", started).id
        run.flow_run_id = str(flow_run_id)
        self._open[flow_run_id] = _Open(run, told, [one.name for one in shard.recordings])

    def _look(self) -> None:
        """Take what shards that have ended answer."""
        known = self._known()
        for flow_run_id, shard in list(self._open.items()):
            found = known.get(flow_run_id)
            if found is None or (found.state is not None and found.state.is_final()):
                del self._open[flow_run_id]
                self._end(shard, found.state if found is not None else None)
            elif found.start_time is not None:
                self._stuck_at = math.inf
        if time.monotonic() > self._stuck_at:
            self._stuck_at = math.inf
            self._log.warning(
                "no shard has begun in %.0f s: is there a worker of the work pool %r with a free slot? A batch keeps"
                " the one that it runs in",
                STUCK_SECONDS,
                self._deployment.work_pool_name,
            )

    def _known(self) -> dict[UUID, FlowRun]:
        ids = list(self._open)
        pages = (ids[start : start + _PAGE] for start in range(0, len(ids), _PAGE))
        wanted = (FlowRunFilter(id=FlowRunFilterId(any_=page)) for page in pages)
        found = (self._client.read_flow_runs(flow_run_filter=one, limit=_PAGE) for one in wanted)
        return {run.id: run for page in found for run in page}

    def _end(self, shard: _Open, state: State[Any] | None) -> None:
        if state is None:
            self._lose(shard.run, "was deleted")
        elif not state.is_completed():
            self._lose(shard.run, f"{ending_of(state)} ({printable(state.message or '', _WHY_LETTERS) or state.name})")
        else:
            try:
                answer = results_of(shard.names, self._target.read(answer_to(shard.told)))
            except Exception as error:  # noqa: BLE001 - the output's store raises what it pleases
                self._lose(shard.run, f"has completed, but its results cannot be read: {error}")
                return
            if answer is None:
                self._lose(shard.run, f"has completed without results in {FOLDER} of the output: does it go there too?")
            else:
                self.answers[shard.run.name] = answer
                self._log.info("%s: %d recordings", shard.run.name, len(answer))

    def _lose(self, run: ShardRun, why: str) -> None:
        run.lost = why
        self._log.error("%s", run.reason)


@contextmanager
def _logged(log: logging.Logger | logging.LoggerAdapter[logging.Logger], what: str) -> Generator[None]:
    """Log an error in the block as a warning; what is cleaned up there does not decide what becomes of the batch."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - of Prefect's API, or of a store
        log.warning("%s: %s", what, error)
