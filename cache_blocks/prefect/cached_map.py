"""`cached_map`: a batch with one lookup a page, where only the misses become task runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, overload

from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.settings import get_current_settings
from prefect.task_runners import TaskRunner
from prefect.tasks import Task
from prefect.utilities.annotations import opaque
from prefect.utilities.callables import expand_mapping_parameters, get_call_parameters
from prefect.utilities.engine import resolve_inputs_sync

from cache_blocks.cache import TieredCache
from cache_blocks.errors import ConfigurationError
from cache_blocks.prefect.batch import MappedBatch
from cache_blocks.prefect.emitting import emit_events_of
from cache_blocks.prefect.futures import BatchFutures
from cache_blocks.prefect.lookups import Lookups
from cache_blocks.prefect.policy import TieredCachePolicy
from cache_blocks.prefect.progress import show_progress
from cache_blocks.prefect.report import report_when_run_ends


@overload
def cached_map(
    task: Task[..., Any],
    *args: Any,
    wait_for: Iterable[Any] | None = None,
    return_state: Literal[False] = False,
    task_runner: TaskRunner[Any] | None = None,
    **kwargs: Any,
) -> BatchFutures: ...
@overload
def cached_map(
    task: Task[..., Any],
    *args: Any,
    wait_for: Iterable[Any] | None = None,
    return_state: Literal[True],
    task_runner: TaskRunner[Any] | None = None,
    **kwargs: Any,
) -> list[State[Any]]: ...


def cached_map(
    task: Task[..., Any],
    *args: Any,
    wait_for: Iterable[Any] | None = None,
    return_state: bool = False,
    task_runner: TaskRunner[Any] | None = None,
    **kwargs: Any,
) -> BatchFutures | list[State[Any]]:
    """Do as ``task.map`` does, with one lookup a page of items: only the misses become task runs.

    Hits are futures in a state named Cached, whose results are decoded when they are asked for; the flow run shows
    one task run and one log line for the hits of a page. Where items are futures, pages are looked up as they become
    ready, and this returns at once.

    Args:
        task: A task made by `cached_task`.
        args: Iterables, one per parameter; wrap in `prefect.unmapped` what is the same for all items. Items may be
            futures, such as those of an earlier `cached_map`, or of its ``.then(function)``.
        wait_for: What has to be done before anything is looked up, as for ``task.map``.
        return_state: Return states rather than futures, once all are done.
        task_runner: A started task runner for the misses; the flow's own by default.
        kwargs: Iterables by name.

    Returns:
        One future an item, in order.

    Raises:
        ConfigurationError: The task has no tiered cache, or there is no flow that its misses could belong to.
        MappingLengthMismatch: The iterables differ in length. Like all that ``task.map`` raises, it is Prefect's.
    """
    flow = _flow_of(task)
    runner = task_runner or flow.task_runner
    batch = MappedBatch(task, items_of(task, args, kwargs), _lookups(task), runner.submit, wait_for or ())
    show_progress(task.name, batch.futures)
    batch.start()
    futures = BatchFutures(batch.futures)  # pyright: ignore[reportAbstractUsage] - so does Prefect
    if not return_state:
        return futures
    futures.wait()
    return [future.state for future in futures]


def items_of(task: Task[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the parameters of each item, as ``task.map`` pairs them up."""
    given = resolve_inputs_sync(
        get_call_parameters(task.fn, tuple(args), dict(kwargs), apply_defaults=False), max_depth=0
    )
    hidden = [name for name, value in given.items() if isinstance(value, opaque)]  # which Prefect forgets here
    items = expand_mapping_parameters(_signed(task.fn), given | {name: given[name].unwrap() for name in hidden})
    return [item | {name: opaque(item[name]) for name in hidden} for item in items] if hidden else items


def _signed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a stand-in whose signature is at hand: Prefect asks for it twice an item."""

    def stand_in() -> None:
        """Never called."""

    stand_in.__signature__ = inspect.signature(function)  # pyright: ignore[reportFunctionMemberAccess]
    return stand_in


def _lookups(task: Task[..., Any]) -> Lookups | None:
    """Return what looks a task's items up; None when Prefect or the mode say not to."""
    policy = task.cache_policy
    if not isinstance(policy, TieredCachePolicy):
        if get_current_settings().tasks.disable_caching:
            return None
        msg = f"cached_map: task {task.name!r} has no tiered cache; make it with cached_task"
        raise ConfigurationError(msg)
    cache = policy.cache or TieredCache.from_settings()
    if cache.settings.mode == "off":
        return None
    report_when_run_ends(cache)
    emit_events_of(cache)
    return None if policy.refreshes(task) else Lookups(cache, policy, task)


def _flow_of(task: Task[..., Any]) -> FlowRunContext:
    context = FlowRunContext.get()
    if context is None:
        msg = f"cached_map: {task.name!r} is mapped outside of a flow, so that nothing could compute its misses"
        raise ConfigurationError(msg)
    return context
