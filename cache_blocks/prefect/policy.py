"""`TieredCachePolicy` and `tiered_cache_key_fn`: how Prefect asks for a key, and what it gets with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from prefect.cache_policies import CachePolicy, CompoundCachePolicy
from prefect.context import SettingsContext, TaskRunContext
from prefect.settings import get_current_settings
from prefect.tasks import Task

from cache_blocks.cache import TieredCache
from cache_blocks.calls import Call
from cache_blocks.errors import CacheError, ConfigurationError, UnhashableArgumentError
from cache_blocks.keys import CacheTag, TaskIdentity, build_key
from cache_blocks.kinds import CacheKind
from cache_blocks.prefect.attempt import Attempt
from cache_blocks.prefect.emitting import emit_events_of
from cache_blocks.prefect.origin import origin_of
from cache_blocks.prefect.report import report_when_run_ends
from cache_blocks.prefect.result_store import TieredResultStore
from cache_blocks.private.privacy import told
from cache_blocks.sources import Source, Sources
from cache_blocks.values import codec_of, return_annotation

REFRESHING: Final = "Prefect was told to refresh the cache"
"""Reason of a call that looks away from the cache."""


@dataclass(init=False)
class TieredCachePolicy(CachePolicy):
    """Cache a task's results in the tiers: ``@task(cache_policy=TieredCachePolicy(TRANSCRIPT))``.

    `cached_task` does this and more: with the policy alone, equal calls are not coalesced, only values that come
    back equal from a round trip are kept, and a flow run whose tasks all run in other processes has no report.

    Args:
        kind: Kind of the results.
        cache_version: Stands for the task's source in the key; raise it when the result changes for a reason that
            the source does not show.
        cache_ignore: Parameters that do not decide the result.
        cache_private: Parameters whose values are stored and shown as digests only.
        cache_tags: Tags, or functions of the arguments that give tags.
        cache_source: Functions, classes and modules that the task uses and whose source goes into the key as well.
        cache: The cache; this process's own by default.
        wrapped: Whether the task's function stores its result itself; set by `cached_task`.

    Raises:
        ConfigurationError: ``kind`` is not a kind, or something in ``cache_source`` has no source.
    """

    kind: CacheKind
    cache_version: str | None
    cache_ignore: tuple[str, ...]
    cache_private: tuple[str, ...]
    cache_tags: tuple[CacheTag, ...]
    cache_source: Sources
    cache: TieredCache | None
    wrapped: bool
    others: tuple[CachePolicy, ...]

    def __init__(
        self,
        kind: CacheKind,
        *,
        cache_version: str | None = None,
        cache_ignore: Sequence[str] = (),
        cache_private: Sequence[str] = (),
        cache_tags: Sequence[CacheTag] = (),
        cache_source: Sequence[Source] = (),
        cache: TieredCache | None = None,
        wrapped: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(kind, CacheKind):  # pyright: ignore[reportUnnecessaryIsInstance] - callers are not all typed
            msg = f"a kind is needed, such as TRANSCRIPT or CacheKind('mine', ttl=timedelta(days=7)), not {kind!r}"
            raise ConfigurationError(msg)
        self.kind = kind
        self.cache_version = cache_version
        self.cache_ignore = tuple(cache_ignore)
        self.cache_private = tuple(cache_private)
        self.cache_tags = tuple(cache_tags)
        self.cache_source = Sources(cache_source)
        self.cache = cache
        self.wrapped = wrapped
        self.others = ()

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,  # noqa: ARG002 - Prefect's signature
    ) -> str | None:
        """Return the key, and leave in the run's context the result store that answers for it.

        Raises:
            ConfigurationError: The policy was added to another one, whose key would hide ours. Prefect logs it and
                runs the task uncached.
        """
        if isinstance(task_ctx.task.cache_policy, CompoundCachePolicy):
            raise ConfigurationError("write TieredCachePolicy(…) + other, not other + TieredCachePolicy(…)")
        cache = self.cache or TieredCache.from_settings()
        if cache.settings.mode == "off":
            return None
        report_when_run_ends(cache)
        emit_events_of(cache)
        attempt = self._attempt(cache, task_ctx, inputs, flow_parameters)
        task_ctx.result_store = TieredResultStore.over(task_ctx.result_store, attempt)
        return attempt.key

    def __add__(self, other: CachePolicy) -> CachePolicy:
        """Take another policy's key in as a part of ours."""
        new = copy.copy(self)
        new.others = (*self.others, other)
        return new

    def __sub__(self, other: str) -> CachePolicy:
        """Leave a parameter out of the key."""
        new = copy.copy(self)
        new.cache_ignore = (*self.cache_ignore, other)
        new.others = tuple(policy - other for policy in self.others)
        return new

    def _attempt(
        self, cache: TieredCache, task_ctx: TaskRunContext, inputs: Mapping[str, Any], parameters: Mapping[str, Any]
    ) -> Attempt:
        origin = cache.privacy.origin(self.kind, origin_of(task_ctx, inputs, self.cache_ignore))
        attempt = Attempt(cache, None, origin, wrapped=self.wrapped)
        try:
            _ = cache.parts  # settings that cannot work are told here, and the event below needs the log
            attempt.call = self._call(cache, task_ctx, inputs, parameters)
        except Exception as error:  # noqa: BLE001 - tag functions and whatever an argument does when it is read
            private = cache.privacy.covers(self.kind)
            why = told(error, private=private) if private or isinstance(error, CacheError | OSError) else repr(error)
            attempt.logger.error("%s is not cached: %s", origin.subject, why)  # noqa: TRY400 - the message says it all
            attempt.bypass(self.kind.name, why)
            if cache.settings.strict and isinstance(error, UnhashableArgumentError):
                attempt.error = error
            return attempt
        attempt.refresh = self.refreshes(task_ctx.task)
        if attempt.refresh:
            attempt.bypass(self.kind.name, REFRESHING)
            attempt.prepare()
        return attempt

    def _call(
        self, cache: TieredCache, task_ctx: TaskRunContext, inputs: Mapping[str, Any], parameters: Mapping[str, Any]
    ) -> Call:
        arguments = dict(inputs)
        for number, policy in enumerate(self.others):
            arguments[f"policy {number}"] = policy.compute_key(task_ctx, dict(inputs), dict(parameters))
        return self.call_of(task_ctx.task, arguments, cache)

    def call_of(self, task: Task[..., Any], arguments: Mapping[str, Any], cache: TieredCache | None = None) -> Call:
        """Return what is cached when ``task`` is called with these arguments.

        Args:
            task: The task.
            arguments: By parameter name.
            cache: Where, if who asks knows it already.

        Raises:
            UnhashableArgumentError: An argument has no deterministic digest.
            OSError: A file among the arguments cannot be read.
            ConfigurationError: A source of ``cache_source`` cannot be read.
        """
        identity = identity_of(task, self.cache_version, self.cache_source.digests())
        built = build_key(
            self.kind,
            identity,
            arguments,
            ignore=self.cache_ignore,
            private=self.cache_private,
            tags=self.cache_tags,
        )
        annotation = return_annotation(task.fn)
        codec_of(annotation)
        shorter = task.cache_expiration.total_seconds() if task.cache_expiration else None
        privacy = (cache or self.cache or TieredCache.from_settings()).privacy

        def manifest() -> Mapping[str, Any]:
            return privacy.hidden(built.manifest(), self.cache_private) if privacy.has_ring else built.manifest()

        return privacy.conceal(Call(built.key, self.kind, built.tags, annotation, manifest, shorter))

    @staticmethod
    def refreshes(task: Task[..., Any]) -> bool:
        """Whether Prefect is told to compute again, by the task or by its settings."""
        if task.refresh_cache is not None:
            return task.refresh_cache
        context = SettingsContext.get()
        settings = context.settings if context is not None else get_current_settings()
        return settings.tasks.refresh_cache


def tiered_cache_key_fn(
    kind: CacheKind,
    *,
    cache_version: str | None = None,
    cache_ignore: tuple[str, ...] = (),
    cache_private: tuple[str, ...] = (),
    cache_tags: tuple[CacheTag, ...] = (),
    cache_source: Sequence[Source] = (),
    cache: TieredCache | None = None,
) -> Callable[[TaskRunContext, dict[str, Any]], str | None]:
    """Return a function for ``@task(cache_key_fn=…)`` that looks up and stores in the tiers.

    It is `TieredCachePolicy` in Prefect's older form, with the same limits.
    """
    policy = TieredCachePolicy(
        kind,
        cache_version=cache_version,
        cache_ignore=cache_ignore,
        cache_private=cache_private,
        cache_tags=cache_tags,
        cache_source=cache_source,
        cache=cache,
    )

    def tiered_cache_key(context: TaskRunContext, parameters: dict[str, Any]) -> str | None:
        return policy.compute_key(context, parameters, {})

    return tiered_cache_key


def identity_of(
    task: Task[..., Any], cache_version: str | None, helpers: Mapping[str, str] | None = None
) -> TaskIdentity:
    """Return what makes a task this task; where it was loaded from is no part of it."""
    qualified_name = getattr(task.fn, "__qualname__", task.name)
    name = qualified_name.rpartition("<locals>.")[2]
    return TaskIdentity(task.name, name, cache_version, task.source_code, helpers or {}, task.fn)
