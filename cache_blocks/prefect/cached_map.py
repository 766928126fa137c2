"""`cached_map`: a batch with one lookup for all items, where only the misses become task runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any
from uuid import uuid4

from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture, PrefectFutureList
from prefect.logging import get_run_logger
from prefect.states import Completed, State
from prefect.tasks import Task
from prefect.utilities.annotations import allow_failure, quote, unmapped
from prefect.utilities.callables import get_call_parameters

from cache_blocks.cache import Call, Found, TieredCache
from cache_blocks.errors import CacheError, ConfigurationError
from cache_blocks.events import Origin, originating
from cache_blocks.keys import named_files
from cache_blocks.prefect.origin import owns_flow_run
from cache_blocks.prefect.policy import TieredCachePolicy
from cache_blocks.prefect.report import report_when_run_ends
from cache_blocks.values import return_annotation


class CachedFuture(PrefectFuture[Any]):
    """A hit as a future: done, without a task run.

    Args:
        value: The cached result.
    """

    def __init__(self, value: Any) -> None:
        super().__init__(uuid4())
        self._value = value
        self._final_state = Completed(data=value, name="Cached")

    def wait(self, timeout: float | None = None) -> None:
        """Return at once."""
        del timeout

    async def wait_async(self, timeout: float | None = None) -> None:
        """Return at once."""
        del timeout

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:  # noqa: FBT001, FBT002 - Prefect's signature
        """Return the cached result."""
        del timeout, raise_on_failure
        return self._value

    async def result_async(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:  # noqa: FBT001, FBT002
        """Return the cached result."""
        del timeout, raise_on_failure
        return self._value

    def add_done_callback(self, fn: Callable[[PrefectFuture[Any]], None]) -> None:
        """Call back at once: a hit is done."""
        fn(self)

    @property
    def state(self) -> State[Any]:
        """A completed state named Cached."""
        return self._final_state


def cached_map(task: Task[..., Any], *args: Any, **kwargs: Any) -> PrefectFutureList[Any]:
    """Do as ``task.map`` does, with one lookup for all items: only the misses become task runs.

    Args:
        task: A task made by `cached_task`.
        args: Iterables, one per parameter; wrap in `prefect.unmapped` what is the same for all items.
        kwargs: The same by name.

    Returns:
        One future an item, in order.

    Raises:
        ConfigurationError: The task has no tiered cache.
    """
    policy = task.cache_policy
    if not isinstance(policy, TieredCachePolicy):
        msg = f"cached_map: task {task.name!r} has no tiered cache; make it with cached_task"
        raise ConfigurationError(msg)
    items = _items(task, args, kwargs)
    cache = policy.cache or TieredCache.from_settings()
    if cache.settings.mode == "off" or policy.refreshes(task):
        return PrefectFutureList([task.submit(**item) for item in items])
    report_when_run_ends(cache)
    calls = [_call(policy, task, item) for item in items]
    found = _find(cache, task, items, calls)
    return PrefectFutureList(
        [
            CachedFuture(found[call.key].value) if call and found[call.key].lookup.is_hit else task.submit(**item)
            for item, call in zip(items, calls, strict=True)
        ]
    )


def _find(
    cache: TieredCache, task: Task[..., Any], items: Sequence[dict[str, Any]], calls: Sequence[Call | None]
) -> dict[str, Found]:
    """Look all keys up at once; a miss is recorded by its own task run, which looks again."""
    requests = {call.key: call.request for call in calls if call is not None}
    found = cache.peek(list(requests.values()), return_annotation(task.fn))
    hits = 0
    for item, call in zip(items, calls, strict=True):
        if call is not None and found[call.key].lookup.is_hit:
            hits += 1
            with originating(_origin(task, item)):
                cache.record_lookup(call.key, found[call.key].lookup)
    get_run_logger().info("%d of %d items of %s were cached", hits, len(items), task.name)
    return found


def _call(policy: TieredCachePolicy, task: Task[..., Any], item: dict[str, Any]) -> Call | None:
    """Return the call of an item; None when it has none yet (a future) or never will, which its task run reports."""
    if policy.others or any(isinstance(value, PrefectFuture | allow_failure | quote) for value in item.values()):
        return None
    try:
        return policy.call_of(task, item)
    except (CacheError, OSError):
        return None


def _origin(task: Task[..., Any], item: dict[str, Any]) -> Origin:
    context = FlowRunContext.get()
    flow_run_id = str(context.flow_run.id) if context is not None and context.flow_run is not None else ""
    subject = item.get("name") or next(iter(named_files(item.values())), task.name)
    return Origin(str(subject), task.name, flow_run_id, deferred=context is None or owns_flow_run())


def _items(task: Task[..., Any], args: Iterable[Any], kwargs: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the arguments of each item by parameter name, as ``task.map`` would pair them."""
    given = get_call_parameters(task.fn, tuple(args), kwargs, apply_defaults=False)
    same = {name: value.value for name, value in given.items() if isinstance(value, unmapped)}
    mapped = {
        name: list(value) for name, value in given.items() if name not in same and not isinstance(value, str | bytes)
    }
    same |= {name: value for name, value in given.items() if name not in same and name not in mapped}
    lengths = {name: len(values) for name, values in mapped.items()}
    if len(set(lengths.values())) != 1:
        msg = f"cached_map: iterables of one common length are expected, not {lengths or 'none'}"
        raise ConfigurationError(msg)
    length = next(iter(lengths.values()))
    defaults = get_call_parameters(task.fn, (), {**same, **dict.fromkeys(mapped)}, apply_defaults=True)
    return [{**defaults, **same, **{name: values[i] for name, values in mapped.items()}} for i in range(length)]
