"""`cached_map`: a batch with one lookup for all items, where only the misses become task runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from prefect._internal.result_records import ResultRecord, ResultRecordMetadata
from prefect.futures import PrefectFuture, PrefectFutureList, PrefectTaskRunFuture
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings
from prefect.states import Completed
from prefect.tasks import Task
from prefect.utilities.annotations import allow_failure, opaque, quote
from prefect.utilities.callables import expand_mapping_parameters, get_call_parameters
from prefect.utilities.engine import resolve_inputs_sync

from cache_blocks.cache import TieredCache
from cache_blocks.calls import Call
from cache_blocks.errors import ConfigurationError
from cache_blocks.events import originating
from cache_blocks.prefect.attempt import describe
from cache_blocks.prefect.origin import origin_of_item
from cache_blocks.prefect.policy import TieredCachePolicy
from cache_blocks.prefect.report import report_when_run_ends
from cache_blocks.prefect.serializer import TieredCacheSerializer
from cache_blocks.values import return_annotation


class CachedFuture(PrefectTaskRunFuture[Any]):
    """A hit as a future: done, in a state named Cached, without a task run.

    Args:
        key: Key of the result.
        value: The cached result.
    """

    def __init__(self, key: str, value: Any) -> None:
        super().__init__(uuid4())
        self._value = value
        # In a record, because Prefect takes a state without data for one whose result is lost, and None is a result.
        metadata = ResultRecordMetadata(storage_key=key, serializer=TieredCacheSerializer())
        self._final_state = Completed(data=ResultRecord(result=value, metadata=metadata), name="Cached")

    def wait(self, timeout: float | None = None) -> None:
        """Return at once."""
        del timeout

    async def wait_async(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - Prefect's signature
        """Return at once."""
        del timeout

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:  # noqa: FBT001, FBT002 - Prefect's signature
        """Return the cached result."""
        del timeout, raise_on_failure
        return self._value

    async def result_async(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:  # noqa: ASYNC109, FBT001, FBT002 - the same
        """Return the cached result."""
        del timeout, raise_on_failure
        return self._value

    def add_done_callback(self, fn: Callable[[PrefectFuture[Any]], None]) -> None:
        """Call back at once: a hit is done."""
        fn(self)


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
        MappingLengthMismatch: The iterables differ in length. Like all that ``task.map`` raises, it is Prefect's.
    """
    given = get_call_parameters(task.fn, args, kwargs, apply_defaults=False)
    items = expand_mapping_parameters(task.fn, resolve_inputs_sync(given, max_depth=0))
    policy = task.cache_policy
    hits: list[CachedFuture | None] = [None] * len(items)
    if isinstance(policy, TieredCachePolicy):
        cache = policy.cache or TieredCache.from_settings()
        if cache.settings.mode != "off" and not policy.refreshes(task):
            report_when_run_ends(cache)
            hits = _hits(cache, policy, task, items)
    elif not get_current_settings().tasks.disable_caching:
        msg = f"cached_map: task {task.name!r} has no tiered cache; make it with cached_task"
        raise ConfigurationError(msg)
    futures = [hit or task.submit(**item) for item, hit in zip(items, hits, strict=True)]
    return PrefectFutureList(futures)  # pyright: ignore[reportAbstractUsage] - so does Prefect


def _hits(
    cache: TieredCache, policy: TieredCachePolicy, task: Task[..., Any], items: Sequence[dict[str, Any]]
) -> list[CachedFuture | None]:
    """Look all items up at once and return the hits. A miss is recorded by its task run, which looks again."""
    calls = [_call(policy, task, item) for item in items]
    requests = {call.key: call.request for call in calls if call is not None}
    found = cache.peek(list(requests.values()), return_annotation(task.fn))
    hits: list[CachedFuture | None] = []
    logger = get_run_logger()
    for item, call in zip(items, calls, strict=True):
        if call is None or not found[call.key].lookup.is_hit:
            hits.append(None)
            continue
        hit = found[call.key]
        found[call.key] = replace(hit, value=copy.deepcopy(hit.value))  # an equal item gets a value of its own
        origin = origin_of_item(task, item, policy.cache_ignore)
        with originating(origin):
            cache.record_lookup(call.key, hit.lookup)
        logger.info(describe(call.kind.name, origin.subject, hit.lookup))
        hits.append(CachedFuture(call.key, hit.value))
    logger.info("%d of %d items of %s were cached", len(hits) - hits.count(None), len(items), task.name)
    return hits


def _call(policy: TieredCachePolicy, task: Task[..., Any], item: dict[str, Any]) -> Call | None:
    """Return the call of an item; None when it has none yet (a future) or never will, which its task run reports."""
    if policy.others or any(
        isinstance(value, PrefectFuture | allow_failure | opaque | quote) for value in item.values()
    ):
        return None
    try:
        return policy.call_of(task, item)
    except Exception:  # noqa: BLE001 - whatever it is, the task run meets it again and says it
        return None
