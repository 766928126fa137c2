"""Reports for flow runs that could not publish their own: killed, cancelled by their worker, lost with their machine.

What they looked up is in SQL, how they ended is known to Prefect's API. A run that this API does not know is left
alone: it was deleted, or it belongs to another API over the same cache.
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import PrefectException

from cache_blocks.errors import TierUnavailableError
from cache_blocks.leases import LeaseState
from cache_blocks.prefect.report import REPORT_KEY, TABLE_KEY, ending_of, publish

if TYPE_CHECKING:
    from collections.abc import Generator

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

    from cache_blocks.cache import TieredCache

logger = logging.getLogger("cache_blocks")

T = TypeVar("T")

SETTLE_SECONDS: Final = 600.0
"""How long an ended run is left to publish its own report; also how far clocks may be apart."""

SILENT_SECONDS: Final = 86400.0
"""After how long without a lookup a run that Prefect takes for running gets a report so far."""

LOOK_BACK_SECONDS: Final = 7 * 86400.0
"""A run whose last lookup is older gets no report any more."""

_LEASE: Final = "reports-of-dead-runs"
_PAGE: Final = 100
_UNFINISHED: Final = frozenset({StateType.RUNNING, StateType.PENDING, StateType.CANCELLING})


@dataclass(slots=True)
class DeadRuns:
    """What became of runs without a report.

    Attributes:
        reported: How many have one now.
        errors: What could not be done, and why. The next time tries it again.
    """

    reported: int = 0
    errors: list[str] = field(default_factory=list[str])


def report_dead_runs(cache: TieredCache, *, now: float | None = None) -> DeadRuns:
    """Publish the reports of flow runs that have ended without, and those so far of runs that have fallen silent.

    Any number of processes may do so at once: one does, under a lease, and the others find nothing to do. A run
    that was only silent publishes its own report when it ends.

    Args:
        cache: The cache whose events are read.
        now: Time that ages are judged by, in seconds since the epoch.
    """
    done = DeadRuns()
    try:
        with _alone(cache) as alone:
            if alone:
                _report(cache, time.time() if now is None else now, done)
    except (TierUnavailableError, httpx.HTTPError, PrefectException, RuntimeError) as error:  # Prefect's "no API"
        done.errors.append(f"reports of dead runs: {error}")
    return done


def note_on(run: FlowRun, last_lookup: float, now: float) -> str | None:
    """Return what the report says of a run's end; None if it may yet report by itself.

    Args:
        run: As Prefect knows it.
        last_lookup: When it last looked something up, in seconds since the epoch.
        now: The same clock.
    """
    if run.state is None:
        return None
    until = f"{dt.datetime.fromtimestamp(last_lookup, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"
    entered = run.state.timestamp.timestamp()
    if run.state.is_final() and entered <= now - SETTLE_SECONDS:
        return f"The flow run {ending_of(run.state)} without a report of its own; its last lookup was at {until}."
    if run.state.type in _UNFINISHED and max(entered, last_lookup) <= now - SILENT_SECONDS:
        return (
            f"Prefect has the flow run as {run.state.name}, but its last lookup was at {until}: it has died, or waits."
        )
    return None


@contextmanager
def _alone(cache: TieredCache) -> Generator[bool]:
    """Hold the lease on publishing; gives whether we do."""
    leases = cache.parts.leases
    view = leases.acquire(_LEASE)
    try:
        yield view.state is LeaseState.MINE
    finally:
        if view.state is LeaseState.MINE:
            leases.release(_LEASE, view.token)


def _report(cache: TieredCache, now: float, done: DeadRuns) -> None:
    seen = _seen(cache, now)
    with get_client(sync_client=True) as client:
        ids = list(seen)
        for page in (ids[start : start + _PAGE] for start in range(0, len(ids), _PAGE)):
            reported = _published(client, page, [TABLE_KEY], seen)
            for run in _flow_runs(client, [run for run in page if run not in reported]):
                note = note_on(run, seen[run.id], now)
                if note is not None:
                    # Looked at again: whoever lost the lease in his sleep shall not repeat another's work.
                    omit = _published(client, [run.id], [REPORT_KEY, TABLE_KEY], seen).get(run.id, set[str]())
                    _publish(cache, run, note, omit, done)


def _seen(cache: TieredCache, now: float) -> dict[UUID, float]:
    """Return the runs that may be dead, each with the time of its last event."""
    seen: dict[UUID, float] = {}
    for run, at in cache.parts.events.runs(now - LOOK_BACK_SECONDS).items():
        with suppress(ValueError):  # not one of Prefect's
            if at <= now - SETTLE_SECONDS:
                seen[UUID(run)] = at
    return seen


def _publish(cache: TieredCache, run: FlowRun, note: str, omit: set[str], done: DeadRuns) -> None:
    if TABLE_KEY in omit:  # the last one to be made
        return
    try:
        publish(cache, run.id, run.name, note=note, omit=omit)
    except (httpx.HTTPStatusError, PrefectException) as error:  # this one is refused, others may not be
        done.errors.append(f"report of flow run {run.name}: {error}")
        return
    logger.info("reported for flow run %s: %s", run.name, note)
    done.reported += 1


def _published(
    client: SyncPrefectClient, runs: Sequence[UUID], keys: list[str], seen: dict[UUID, float]
) -> dict[UUID, set[str]]:
    """Return which of these artifacts runs have, of those that were made after the run's last lookup."""
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=keys), flow_run_id=ArtifactFilterFlowRunId(any_=list(runs)))
    found: dict[UUID, set[str]] = {}
    for artifact in _all(lambda offset: client.read_artifacts(artifact_filter=wanted, limit=_PAGE, offset=offset)):
        run, made = artifact.flow_run_id, artifact.created
        if run is not None and made is not None and made.timestamp() >= seen[run] - SETTLE_SECONDS:
            found.setdefault(run, set()).add(artifact.key or "")
    return found


def _flow_runs(client: SyncPrefectClient, runs: Sequence[UUID]) -> Sequence[FlowRun]:
    if not runs:
        return []
    return client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=list(runs))), limit=_PAGE)


def _all(read: Callable[[int], Sequence[T]]) -> Iterator[T]:
    """Yield what is read page by page, until a page is not full."""
    offset = 0
    while page := read(offset):
        yield from page
        if len(page) < _PAGE:
            return
        offset += _PAGE
