"""What computes the misses of a batch: threads or processes here, or the workers of a Dask or Ray cluster."""

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from types import TracebackType
from typing import Annotated, Any, Final, Self, cast

from prefect.client.schemas.objects import RunInput
from prefect.futures import PrefectFuture
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner
from prefect.tasks import Task
from pydantic import AfterValidator

_DASK: Final = ("tcp://", "tls://")
"""How addresses of Dask's schedulers begin, as Dask prints them."""
_RAY: Final = ("ray://",)
_FORMS: Final = (
    "thread, process, dask or ray for workers on this machine, tcp://HOST:PORT or tls://HOST:PORT for a Dask cluster, "
    "ray://HOST:PORT for a Ray cluster"
)
_CONNECT_SECONDS: Final = 10


class RunnerError(ValueError):
    """There is no such task runner, what it needs is not installed, or its cluster does not answer."""


def known_runner(runner: str) -> str:
    """Return the name of a task runner, or raise `RunnerError` if it is none."""
    address = runner.partition("://")[2]
    host, separator, port = address.rpartition(":")
    if runner in ("thread", "process", "dask", "ray"):
        return runner
    if runner.startswith(_DASK + _RAY) and host and separator and port.isdecimal():
        return runner
    raise RunnerError(f"{runner!r} is no task runner; give {_FORMS}")


Runner = Annotated[str, AfterValidator(known_runner)]
"""A task runner as a parameter of a flow."""


def runner_of(name: str, workers: int) -> "RunnerOnDemand":
    """Return the task runner of this name; nothing is started yet.

    Args:
        name: See `known_runner`.
        workers: How many tasks run at the same time. A cluster that is there already decides that itself.

    Raises:
        RunnerError: There is none of this name, or the extra that it needs is not installed.
    """
    known_runner(name)
    if name.startswith(("dask", *_DASK)):
        _demand("prefect_dask", "dask", name)
        return RunnerOnDemand(name, lambda: _dask(name, workers))
    if name.startswith("ray"):
        _demand("prefect_ray", "ray", name)
        return RunnerOnDemand(name, lambda: _ray(name, workers))
    if name == "process":
        return RunnerOnDemand(name, lambda: ProcessPoolTaskRunner(max_workers=workers))
    return RunnerOnDemand(name, lambda: ThreadPoolTaskRunner[object](max_workers=workers))


class RunnerOnDemand(TaskRunner[PrefectFuture[Any]]):
    """Starts another task runner with the first miss: a batch of hits needs no cluster, and starts none.

    Args:
        name: What the runner was asked for by.
        make: Returns the other one.
    """

    def __init__(self, name: str, make: Callable[[], TaskRunner[Any]]) -> None:
        super().__init__()
        self._name = name
        self._make = make
        self._starting = threading.Lock()
        self._begun = ExitStack()
        self._runner: TaskRunner[Any] | None = None
        self._error: RunnerError | None = None

    def duplicate(self) -> Self:
        """Return one that has started nothing."""
        return type(self)(self._name, self._make)

    def submit(
        self,
        task: Task[..., Any],
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None = None,
        dependencies: Mapping[str, set[RunInput]] | None = None,
    ) -> PrefectFuture[Any]:
        """Hand a task run to the other runner.

        Raises:
            RunnerError: Its cluster does not answer.
        """
        return cast("Any", self._running()).submit(task, parameters, wait_for, dependencies)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the other runner, if it was started."""
        self._begun.__exit__(kind, error, traceback)
        super().__exit__(kind, error, traceback)

    def _running(self) -> TaskRunner[Any]:
        with self._starting:  # the stages of a batch submit from threads of their own
            if self._error is not None:
                raise self._error
            if self._runner is None:
                try:
                    runner = self._begun.enter_context(self._make())
                    _ = getattr(runner, "client", None)  # Dask's connects only when it is asked for
                except (OSError, ValueError) as error:
                    self._error = RunnerError(f"the task runner {self._name} does not start: {error}")
                    raise self._error from error
                self._runner = runner
            return self._runner


def _dask(name: str, workers: int) -> TaskRunner[Any]:
    from prefect_dask.task_runners import DaskTaskRunner  # the extra

    if name == "dask":
        local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
        return DaskTaskRunner(cluster_kwargs=local)
    return DaskTaskRunner(address=name, client_kwargs={"timeout": _CONNECT_SECONDS})


def _ray(name: str, workers: int) -> TaskRunner[Any]:
    from prefect_ray.task_runners import RayTaskRunner  # the extra

    if name == "ray":
        return RayTaskRunner[Any](init_kwargs={"num_cpus": workers, "include_dashboard": False})
    return RayTaskRunner[Any](address=name)


def _demand(module: str, extra: str, runner: str) -> None:
    if find_spec(module) is None:
        raise RunnerError(
            f"the task runner {runner} needs the extra {extra!r}: pip install 'prefect-cache-blocks[{extra}]'"
        )
