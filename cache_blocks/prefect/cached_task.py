"""`cached_task`: ``prefect.task`` with the tiered cache, and one computation per key."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, ParamSpec, TypeVar, overload

from prefect.context import TaskRunContext
from prefect.tasks import Task

from cache_blocks.errors import ConfigurationError
from cache_blocks.keys import CacheTag
from cache_blocks.kinds import CacheKind
from cache_blocks.prefect.attempt import Attempt
from cache_blocks.prefect.policy import TieredCachePolicy
from cache_blocks.prefect.result_store import TieredResultStore
from cache_blocks.prefect.serializer import declare
from cache_blocks.prefect.task import CachedTask
from cache_blocks.sources import Source
from cache_blocks.values import codec_of, return_annotation

P = ParamSpec("P")
R = TypeVar("R")

_OURS: Final = {
    "cache_policy": "the kind decides it",
    "cache_key_fn": "the kind decides it; leave arguments out with cache_ignore",
    "result_storage": "the kind's tiers are the storage",
    "result_storage_key": "the key is made from task and arguments",
    "result_serializer": "values are stored as JSON, by the task's return annotation",
    "cache_result_in_memory": "a result that Prefect keeps in memory cannot be invalidated",
}


@overload
def cached_task(fn: Callable[P, R], *, kind: CacheKind, **options: Any) -> Task[P, R]: ...
@overload
def cached_task(
    fn: None = None,
    *,
    kind: CacheKind,
    cache_version: str | None = None,
    cache_ignore: tuple[str, ...] = (),
    cache_private: tuple[str, ...] = (),
    cache_tags: tuple[CacheTag, ...] = (),
    cache_source: Sequence[Source] = (),
    **prefect_task_options: Any,
) -> Callable[[Callable[P, R]], Task[P, R]]: ...


def cached_task(
    fn: Callable[..., Any] | None = None,
    *,
    kind: CacheKind,
    cache_version: str | None = None,
    cache_ignore: tuple[str, ...] = (),
    cache_private: tuple[str, ...] = (),
    cache_tags: tuple[CacheTag, ...] = (),
    cache_source: Sequence[Source] = (),
    **prefect_task_options: Any,
) -> Any:
    """Make a Prefect task whose results are cached: ``@cached_task(kind=TRANSCRIPT)``.

    A hit is Prefect's own state ``Cached``. On a miss the task computes once for all equal calls, in this and any
    other process, and returns what a hit will return.

    Args:
        fn: The function.
        kind: Kind of its results.
        cache_version: Stands for the function's source in the key.
        cache_ignore: Parameters that do not decide the result, such as one called ``name`` that is for people.
        cache_private: Parameters whose values are stored and shown as digests only.
        cache_tags: Tags under which results can be invalidated, or functions of the arguments that give them.
        cache_source: Functions, classes and modules that the function uses, so that a change of theirs counts like
            one of its own source. They go into the key beside ``cache_version`` too.
        prefect_task_options: Anything else that `prefect.task` takes. Of ``cache_expiration`` and the kind's
            lifetime the shorter wins.

    Raises:
        ConfigurationError: An option contradicts the cache, or the function is a generator.
        UnsupportedValueError: The return annotation names a type whose values could not be given back.
    """
    if fn is None:
        return functools.partial(
            cached_task,
            kind=kind,
            cache_version=cache_version,
            cache_ignore=cache_ignore,
            cache_private=cache_private,
            cache_tags=cache_tags,
            cache_source=cache_source,
            **prefect_task_options,
        )
    _check(fn, prefect_task_options)
    annotation = return_annotation(fn)
    codec_of(annotation)
    declare(annotation)
    policy = TieredCachePolicy(
        kind,
        cache_version=cache_version,
        cache_ignore=cache_ignore,
        cache_private=cache_private,
        cache_tags=cache_tags,
        cache_source=cache_source,
        wrapped=True,
    )
    wrapped = _wrap_async(fn) if inspect.iscoroutinefunction(fn) else _wrap(fn)
    ours: dict[str, Any] = {"cache_policy": policy, "cache_result_in_memory": False}
    options: dict[str, Any] = {"log_prints": None} | prefect_task_options | ours
    return CachedTask(wrapped, **options)


def _check(fn: Callable[..., Any], options: dict[str, Any]) -> None:
    name = getattr(fn, "__qualname__", repr(fn))
    for option, why in _OURS.items():
        if option in options:
            msg = f"cached_task {name}: {option} cannot be given beside kind: {why}"
            raise ConfigurationError(msg)
    if options.get("persist_result") is False:
        msg = f"cached_task {name}: persist_result=False would keep nothing; use prefect.task"
        raise ConfigurationError(msg)
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        msg = f"cached_task {name}: the results of a generator are not one value; return a list"
        raise ConfigurationError(msg)


def _wrap(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def cached(*args: Any, **kwargs: Any) -> Any:
        attempt = _attempt()
        if attempt is None:
            return fn(*args, **kwargs)
        return attempt.run(lambda: fn(*args, **kwargs))

    return cached


def _wrap_async(fn: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(fn)
    async def cached(*args: Any, **kwargs: Any) -> Any:
        attempt = _attempt()
        if attempt is None:
            return await fn(*args, **kwargs)
        return await attempt.arun(lambda: fn(*args, **kwargs))

    return cached


def _attempt() -> Attempt | None:
    """Return the attempt of the task run that calls us; None for a plain call, which is a plain call."""
    context = TaskRunContext.get()
    store = context.result_store if context is not None else None
    attempt = store.attempt if isinstance(store, TieredResultStore) else None
    if attempt is None or attempt.taken or not attempt.wrapped or (attempt.call is None and attempt.error is None):
        return None
    return attempt
