"""The report of a flow run: its lookups as artifacts, published when the run ends, also when it fails."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.context import FlowRunContext

from cache_blocks.metrics import CacheMetrics
from cache_blocks.prefect.origin import owns_flow_run
from cache_blocks.report import hits_table, render_report

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State
    from prefect.flows import Flow

    from cache_blocks.cache import TieredCache

logger = logging.getLogger("cache_blocks")

TABLE_KEY: Final = "cache-hits"
REPORT_KEY: Final = "cache-report"

_lock = threading.Lock()
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
    del flow, state
    with _lock:
        cache = _reported.pop(str(flow_run.id), None)
    if cache is not None:
        publish(cache, flow_run.id, flow_run.name)


def publish(cache: TieredCache, flow_run_id: UUID, flow_run_name: str) -> CacheMetrics:
    """Make the artifacts ``cache-hits`` (table) and ``cache-report`` (markdown) of a flow run.

    Returns:
        What the run's events add up to.
    """
    events = cache.parts.events.of_run(str(flow_run_id))
    metrics = CacheMetrics.from_events(events)
    artifacts = (
        ArtifactCreate(
            key=TABLE_KEY,
            type="table",
            data=orjson.dumps(hits_table(metrics)).decode(),
            description=f"Cache lookups of {flow_run_name}, by kind.",
            flow_run_id=flow_run_id,
        ),
        ArtifactCreate(
            key=REPORT_KEY,
            type="markdown",
            data=render_report(events, title=flow_run_name),
            description=f"What the cache did for {flow_run_name}.",
            flow_run_id=flow_run_id,
        ),
    )
    with get_client(sync_client=True) as client:
        for artifact in artifacts:
            client.create_artifact(artifact)
    logger.info("cache: %d of %d lookups hit, %.1f s saved", metrics.hits, metrics.total, metrics.seconds_saved)
    return metrics
