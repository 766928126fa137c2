"""Where an event comes from in Prefect's terms: flow run, task run, and what the work is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefect.context import FlowRunContext
from prefect.runtime import flow_run as runtime_flow_run

from cache_blocks.events import Origin
from cache_blocks.manifests import named_files

if TYPE_CHECKING:
    from prefect.context import TaskRunContext
    from prefect.tasks import Task


def owns_flow_run() -> bool:
    """Whether this process runs the flow itself, rather than a task that was sent to it."""
    context = FlowRunContext.get()
    return context is not None and not context.detached


def origin_of(context: TaskRunContext, arguments: Mapping[str, Any], ignored: Sequence[str]) -> Origin:
    """Return the origin of a task run's events.

    The subject is the argument ``name``, if it is left out of the key (as one that is only for people is), else
    the name of the first file among the arguments, else the task run's name.
    """
    run = context.task_run
    flow = FlowRunContext.get()
    flow_run_id = run.flow_run_id or (flow.flow_run.id if flow is not None and flow.flow_run is not None else "")
    return Origin(
        subject=_subject(arguments, ignored) or run.name or context.task.name,
        task=context.task.name,
        flow_run_id=str(flow_run_id),
        task_run_id=str(run.id),
        flow=flow.flow.name if flow is not None and flow.flow is not None else "",
        deferred=flow is None or not flow.detached,
    )


def origin_of_item(task: Task[..., Any], arguments: Mapping[str, Any], ignored: Sequence[str]) -> Origin:
    """Return the origin of a lookup for which there is no task run, with the subject as in `origin_of`."""
    return Origin(
        subject=_subject(arguments, ignored) or task.name,
        task=task.name,
        flow_run_id=str(runtime_flow_run.id or ""),
        flow=_flow_name(),
        deferred=FlowRunContext.get() is None or owns_flow_run(),
    )


def _flow_name() -> str:
    """Return the name of the flow as far as this process knows it; asking the API would cost a round trip."""
    context = FlowRunContext.get()
    return context.flow.name if context is not None and context.flow is not None else ""


def _subject(arguments: Mapping[str, Any], ignored: Sequence[str]) -> str:
    name = arguments.get("name")
    if "name" in ignored and isinstance(name, str) and name:
        return name
    return next(iter(named_files(arguments.values())), "")
