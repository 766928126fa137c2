"""How the pieces measure: contestants take turns within one process, and what counts is the ratio in each round."""

from __future__ import annotations

import gc
import random
import statistics
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Literal, Self

import psutil

_SETTLE_SECONDS: Final = 120.0
_LOOK_SECONDS: Final = 0.5
_BUSY_PERCENT: Final = 15.0


@dataclass(frozen=True)
class Bar:
    """A figure and what it is held against.

    Attributes:
        name: What was measured, as readers of docs/performance.md understand it.
        figure: What came out.
        limit: The bar.
        better: Whether lower or higher figures are better; a figure equal to the limit meets it.
        unit: Unit of figure and limit: ``x`` for a ratio, ``s``, ``ms``, ``MB``, or what is counted.
        detail: What else is worth keeping: medians, quartiles, sizes, rounds. Plain JSON values.
            ``low`` and ``high``, when there, are the quartiles of the figure and are shown beside it; ``note`` is a
            sentence shown under it; ``milliseconds`` (medians by contestant) is what the plots are drawn from.
    """

    name: str
    figure: float
    limit: float
    better: Literal["lower", "higher"]
    unit: str = "x"
    detail: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def met(self) -> bool:
        """Whether the figure reaches the bar."""
        return self.figure <= self.limit if self.better == "lower" else self.figure >= self.limit


@dataclass(frozen=True)
class Timing:
    """How long one contestant took, round by round, in seconds."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the samples."""
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        """The lower quartile."""
        return quartiles(self.samples)[0]

    @property
    def high(self) -> float:
        """The upper quartile."""
        return quartiles(self.samples)[1]


@dataclass(frozen=True)
class Ratio:
    """How two contestants compare: the median of the rounds' ratios, between its quartiles."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> dict[str, float]:
        """The quartiles as a bar's detail keeps them."""
        return {"low": self.low, "high": self.high}


class Bench:
    """What a piece is given: how much to measure, a folder and real servers that start when first asked for.

    Args:
        scale: Factor on every number of rounds and items; 1.0 is the full measurement, tests take a tiny one.
        tell: Takes a line about what is going on.
    """

    def __init__(self, scale: float = 1.0, tell: Callable[[str], object] = print) -> None:
        self.scale = scale
        self._tell = tell
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the servers and remove the folder."""
        self._open.close()

    def rounds(self, full: int, least: int = 3) -> int:
        """Return a number of rounds, items or runs at this scale, never less than ``least``."""
        return max(least, round(full * self.scale))

    def note(self, text: str) -> None:
        """Say what is going on."""
        self._tell(text)

    @cached_property
    def folder(self) -> Path:
        """A temporary folder, removed at the end."""
        made = tempfile.TemporaryDirectory(prefix="cache-blocks-bench-", ignore_cleanup_errors=True)
        return Path(self._open.enter_context(made))

    @cached_property
    def redis_url(self) -> str:
        """A Redis of this run, without persistence; pieces share it and use keys of their own."""
        from tests.servers.redis import RedisServer

        server = RedisServer(self._server_folder("redis"))
        self._open.callback(server.stop)
        return server.url

    @cached_property
    def postgres_url(self) -> str:
        """An empty PostgreSQL database, as SQLAlchemy URL."""
        from tests.servers.postgres import fresh_database, postgres_server

        folder = self._server_folder("postgres")
        folder.chmod(0o755)  # as root, PostgreSQL runs as another user
        self.folder.chmod(0o755)
        return self._open.enter_context(fresh_database(self._open.enter_context(postgres_server(folder))))

    @cached_property
    def prefect_url(self) -> str:
        """A Prefect API in a process of its own, which flows of this process use from now on."""
        from tests.servers.prefect import prefect_server

        self.note("Starting a Prefect server over a new database: some 20 seconds")
        return self._open.enter_context(prefect_server())

    def settle(self) -> None:
        """Wait until what the last contestant has left behind is worked off, so that no other pays for it.

        Task runs reach the Prefect server as events, which it records for a while after the runs are over; in this
        process, what flow and task runs know of each other is freed by a collection of garbage alone.
        """
        from prefect.server.api.server import SubprocessASGIServer

        process = SubprocessASGIServer().server_process
        assert process is not None, "settle() is for pieces that have asked for prefect_url"
        gc.collect()
        server = psutil.Process(process.pid)
        deadline = perf_counter() + _SETTLE_SECONDS
        while perf_counter() < deadline and server.cpu_percent(_LOOK_SECONDS) > _BUSY_PERCENT:
            pass

    def _server_folder(self, name: str) -> Path:
        folder = self.folder / f"{name}-server"
        folder.mkdir()
        return folder


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    before: Callable[[], object] | None = None,
    within: Callable[[Callable[[], float]], float] | None = None,
    times: int = 1,
) -> dict[str, Timing]:
    """Let the contestants take turns, in a new order each round, and return how long each took.

    Args:
        contestants: What to time, by name.
        rounds: How often each has its turn.
        warmup: Rounds before that, which do not count.
        before: Done before each turn, and not timed, such as waiting until a server has caught up.
        within: Takes each turn and returns what it returns: a place of its own, such as a flow run, which is not timed.
        times: How often a contestant does its work in a turn. Work that is over in less than a millisecond takes up to
            twice as long the first time, while the processor fetches again what the others have driven out.
    """
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    order = random.Random(0)  # noqa: S311 - not a secret: the same order in every run
    with _little_garbage():
        for number in range(warmup + rounds):
            order.shuffle(
                names
            )  # what a predecessor leaves in the processor's caches falls to a different one each time
            for name in names:
                if before is not None:
                    before()
                turn = partial(seconds, contestants[name], times)
                taken = turn() if within is None else within(turn)
                if number >= warmup:
                    samples[name].append(taken)
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """Return how long ``work`` takes, and freeing what it returns, which its callers pay for as well."""
    began = perf_counter()
    for _ in range(times):
        work()
    return (perf_counter() - began) / times


def ratio(ours: Timing, theirs: Timing) -> Ratio:
    """Return how many times as long ``ours`` took as ``theirs``, round by round."""
    return spread_of([a / b for a, b in zip(ours.samples, theirs.samples, strict=True)])


def spread_of(values: Sequence[float]) -> Ratio:
    """Return the median of values, between their quartiles."""
    return Ratio(statistics.median(values), *quartiles(values))


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the lower and the upper quartile; of a single value, that value twice."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def milliseconds(timings: Mapping[str, Timing]) -> dict[str, float]:
    """Return the contestants' medians for a bar's detail, in milliseconds."""
    return {name: round(timing.median * 1000, 4) for name, timing in timings.items()}


@contextmanager
def _little_garbage() -> Generator[None]:
    """Keep what was imported and prepared before out of the garbage collections that contestants set off."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
