"""The report of a flow run: its lookups as artifacts, published when the run ends, also when it fails.

A hook of the flow publishes it, in the process that runs the flow. Where that process dies, or a worker ends it, there
is no hook: the worker loads the flow anew, without what was added while it ran. `dead_runs` reports for those.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.context import FlowRunContext
from prefect.settings import get_current_settings

from cache_blocks import forking
from cache_blocks.errors import TierUnavailableError
from cache_blocks.plans import SavedPlan, score_section
from cache_blocks.prefect.emitting import emit_if_low, flush_emitters
from cache_blocks.prefect.origin import owns_flow_run
from cache_blocks.prefect.progress import end_progress
from cache_blocks.prefect.sub_runs import ENDINGS, sub_runs_of
from cache_blocks.report import hits_table, render_report
from cache_blocks.runs import Run, Runs
from cache_blocks.sub_runs import metrics_of, sums_of
from cache_blocks.wording import counted

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

    from prefect.client.schemas.objects import FlowRun, State
    from prefect.flows import Flow

    from cache_blocks.cache import TieredCache
    from cache_blocks.events import CacheEvent
    from cache_blocks.metrics import CacheMetrics

logger = logging.getLogger("cache_blocks")

TABLE_KEY: Final = "cache-hits"
REPORT_KEY: Final = "cache-report"

_lock = forking.lock()
_reported: dict[str, TieredCache] = {}


def report_when_run_ends(cache: TieredCache) -> None:
    """See to it that the current flow run gets a report. Where no flow runs in this process, do nothing."""
    context = FlowRunContext.get()
    if context is None or not owns_flow_run() or context.flow is None or context.flow_run is None:
        return
    with _lock:
        _reported[str(context.flow_run.id)] = cache
        flow: Flow[..., Any] = context.flow
        for hooks in (
            flow.on_completion_hooks,
            flow.on_failure_hooks,
            flow.on_crashed_hooks,
            flow.on_cancellation_hooks,
        ):
            if publish_cache_report not in hooks:
                hooks.append(publish_cache_report)


def publish_cache_report(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Publish the artifacts of a flow run; a hook that `report_when_run_ends` adds."""
    with _lock:
        cache = _reported.pop(str(flow_run.id), None)
    end_progress(flow_run.id)
    if cache is not None:
        ending = "" if state.is_completed() else ending_of(state)
        note = f"The flow run {ending}." if ending else ""
        plan = _plan_of(cache, flow.name, flow_run)
        metrics = publish(cache, flow_run.id, flow_run.name, flow=flow.name, note=note, plan=plan)
        if cache.settings.prefect_events:
            emit_if_low(cache, metrics, str(flow_run.id))
    flush_emitters()  # while Prefect can still send: at the end of the process its worker is gone


def _plan_of(cache: TieredCache, flow: str, flow_run: FlowRun) -> SavedPlan | None:
    """Return the plan that was made for a run, if SQL has one."""
    started = flow_run.start_time.timestamp() if flow_run.start_time else time.time()
    try:
        return cache.parts.plans.made_for(flow, flow_run.parameters, started)
    except TierUnavailableError as error:
        logger.warning("the run is not compared with its plan: %s", error)
        return None


def ending_of(state: State[Any]) -> str:
    """Return what became of a flow run in this state, such as ``was cancelled``; nothing if it has not ended."""
    return ENDINGS.get(state.type, "")


def publish(
    cache: TieredCache,
    flow_run_id: UUID,
    flow_run_name: str,
    *,
    flow: str = "",
    note: str = "",
    omit: Container[str | None] = (),
    plan: SavedPlan | None = None,
) -> CacheMetrics:
    """Make the artifacts ``cache-report`` (markdown) and then ``cache-hits`` (table) of a flow run.

    Args:
        cache: Where its events are.
        flow_run_id: The run.
        flow_run_name: What people call it.
        flow: Name of its flow; empty to take it from its events.
        note: What became of the run, as a sentence.
        omit: Keys of artifacts that the run has already.
        plan: What it was expected to do.

    Returns:
        What the events of the run and its sub-runs add up to.
    """
    events = cache.parts.events.of_run(str(flow_run_id), hits=False)
    runs = Runs(cache.parts.database, cache.settings.namespace)
    currency = cache.settings.currency if cache.settings.costs else ""
    with get_client(sync_client=True) as client:
        hits = runs.hits_of(str(flow_run_id))
        sub_runs = sub_runs_of(client, flow_run_id, runs)
        sums = [*hits, *sums_of(sub_runs)]
        metrics = metrics_of(events, sums)
        run = _run_of(flow_run_id, flow, metrics, [*events, *(summed.event for summed in sums)])
        report = render_report(
            events,
            title=flow_run_name,
            note=note,
            hits=hits,
            before=runs.before(run) if run.flow else (),
            sub_runs=sub_runs,
            warnings=list(_warnings(cache)),
            currency=currency,
            ui_url=_ui_url(),
            sections=[score_section(plan, events, sums)] if plan else (),
        )
        for artifact in _artifacts(flow_run_id, flow_run_name, report, hits_table(metrics, currency)):
            if artifact.key not in omit:
                client.create_artifact(artifact)
    runs.remember(run)
    logger.info("cache: %d of %d lookups hit, %.1f s saved", metrics.hits, metrics.total, metrics.seconds_saved)
    return metrics


def _run_of(flow_run_id: UUID, flow: str, metrics: CacheMetrics, events: Sequence[CacheEvent]) -> Run:
    """Return a run's place in the history of its flow."""
    own = (event.origin.flow for event in events if event.origin.flow_run_id == str(flow_run_id))
    known = flow or next(filter(None, own), "")
    begun = min((event.at for event in events), default=0.0)
    return Run.from_metrics(str(flow_run_id), metrics, flow=known, at=begun)


def _artifacts(
    flow_run_id: UUID, flow_run_name: str, report: str, rows: list[dict[str, Any]]
) -> tuple[ArtifactCreate, ArtifactCreate]:
    return (
        ArtifactCreate(
            key=REPORT_KEY,
            type="markdown",
            data=report,
            description=f"What the cache did for {flow_run_name}.",
            flow_run_id=flow_run_id,
        ),
        ArtifactCreate(
            key=TABLE_KEY,
            type="table",
            data=orjson.dumps(rows).decode(),
            description=f"Cache lookups of {flow_run_name}, by kind.",
            flow_run_id=flow_run_id,
        ),
    )


def _warnings(cache: TieredCache) -> Iterator[str]:
    if dropped := cache.parts.events.dropped:
        yield f"{counted(dropped, 'event')} could not be kept while SQL was down, and the figures are too low"


def _ui_url() -> str:
    """Return the address of Prefect's UI where somebody has said it, or it is Prefect Cloud's.

    Otherwise links lead to the UI that shows the report: people may reach it by another name than workers do.
    """
    settings = get_current_settings()
    in_cloud = (settings.api.url or "").startswith(settings.cloud.api_url)
    known = settings.ui_url if in_cloud or "ui_url" in settings.model_fields_set else None
    return (known or "").rstrip("/")
