"""The sub-runs of a flow run, as Prefect's API knows them: subflows, and runs of deployments that it has started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort

from cache_blocks.runs import Runs
from cache_blocks.sub_runs import SubRun

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State

_PAGE: Final = 200

ENDINGS: Final = {
    StateType.COMPLETED: "completed",
    StateType.FAILED: "failed",
    StateType.CRASHED: "crashed",
    StateType.CANCELLING: "was cancelled",  # what hooks are told, right before it is
    StateType.CANCELLED: "was cancelled",
}


def sub_runs_of(client: SyncPrefectClient, flow_run_id: UUID, runs: Runs) -> list[SubRun]:
    """Return all runs below a flow run, sub-runs of sub-runs too, in the order in which they were to start.

    Raises:
        TierUnavailableError: SQL does not answer.
    """
    found = sorted(_below(client, flow_run_id), key=lambda run: (str(run.expected_start_time), run.id))
    sums = runs.summed([str(run.id) for run in found])
    return [SubRun(str(run.id), run.name, _trouble(run.state), sums.get(str(run.id), ())) for run in found]


def _below(client: SyncPrefectClient, flow_run_id: UUID) -> Iterator[FlowRun]:
    parents = [flow_run_id]
    while parents:
        level = [run for start in range(0, len(parents), _PAGE) for run in _of(client, parents[start : start + _PAGE])]
        yield from level
        parents = [run.id for run in level]


def _of(client: SyncPrefectClient, parents: Sequence[UUID]) -> Iterator[FlowRun]:
    wanted = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=list(parents)))
    offset = 0
    while True:
        page = client.read_flow_runs(flow_run_filter=wanted, sort=FlowRunSort.ID_DESC, limit=_PAGE, offset=offset)
        yield from page
        if len(page) < _PAGE:
            return
        offset += _PAGE


def _trouble(state: State | None) -> str:
    if state is None or state.is_completed():
        return ""
    return ENDINGS.get(state.type, f"is {state.name.lower()}" if state.name else "")
