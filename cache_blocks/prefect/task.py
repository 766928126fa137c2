"""`CachedTask`: a Prefect task that sees to its flow run's report, also when its runs go to other processes."""

from __future__ import annotations

from typing import Any, ParamSpec, TypeVar, cast

from prefect.tasks import Task

from cache_blocks.cache import TieredCache
from cache_blocks.prefect.policy import TieredCachePolicy
from cache_blocks.prefect.report import report_when_run_ends
from cache_blocks.values import keep_return_annotation

P = ParamSpec("P")
R = TypeVar("R")


class CachedTask(Task[P, R]):
    """A Prefect task that sees to the report of the flow run which submits it.

    A runner may send task runs to processes that cannot reach the flow, so that submitting is the last moment at
    which the flow's own process learns of the lookups to come.
    """

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        """See `Task.submit`."""
        self._see_to_report()
        return cast("Any", super()).submit(*args, **kwargs)

    def map(self, *args: Any, **kwargs: Any) -> Any:
        """See `Task.map`."""
        self._see_to_report()
        return cast("Any", super()).map(*args, **kwargs)

    def with_options(self, **options: Any) -> CachedTask[P, R]:
        """See `Task.with_options`; what comes back is a `CachedTask` too."""
        changed: Any = super().with_options(**options)
        changed.__class__ = type(self)  # Prefect makes a plain Task, which differs by these methods only
        return changed

    def __getstate__(self) -> dict[str, Any]:
        """See to it that the process which the task is sent to knows the type of its results."""
        keep_return_annotation(self.fn)
        return self.__dict__

    def _see_to_report(self) -> None:
        policy = self.cache_policy
        if isinstance(policy, TieredCachePolicy):
            cache = policy.cache or TieredCache.from_settings()
            if cache.settings.mode != "off":
                report_when_run_ends(cache)
