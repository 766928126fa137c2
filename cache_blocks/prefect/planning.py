"""What a batch will cost, before anything is computed: hits by tier, misses by reason, expected seconds and money.

A planned stage is a batch whose misses stay where they are, so that stages are chained as in a run. Where an item
needs the result of a missing one, its key is unknown until that is computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Pending
from prefect.tasks import Task

from cache_blocks.cache import CACHE_OFF, TieredCache
from cache_blocks.calls import Call
from cache_blocks.entry import Lookup
from cache_blocks.errors import ConfigurationError
from cache_blocks.history import Computation, Estimate, estimate
from cache_blocks.prefect.batch import MappedBatch
from cache_blocks.prefect.cached_map import items_of
from cache_blocks.prefect.futures import BatchFutures
from cache_blocks.prefect.lookups import Item, Lookups
from cache_blocks.prefect.origin import origin_of_item
from cache_blocks.prefect.policy import REFRESHING, TieredCachePolicy

NO_KEY = "no key: an argument cannot be hashed"


@dataclass(slots=True)
class StagePlan:
    """What one stage of a run will do.

    Attributes:
        task: Name of the task.
        kind: Kind of its results.
        items: How many there are.
        hits: Hits by tier.
        misses: Misses by reason.
        unknown: Items whose key depends on a result that is missing.
        until: Stage whose results they wait for.
        bytes_to_move: Payloads of the hits as stored, and of the files that they refer to.
        seconds_saved: What computing the hits took.
        past: Computations that the estimates come from.
    """

    task: str
    kind: str
    items: int
    hits: Counter[str] = field(default_factory=Counter[str])
    misses: Counter[str] = field(default_factory=Counter[str])
    unknown: int = 0
    until: str = ""
    bytes_to_move: int = 0
    seconds_saved: float = 0.0
    past: list[Computation] = field(default_factory=list[Computation])
    money_of: Callable[[Computation], float] = lambda _: 0.0

    @property
    def least(self) -> int:
        """Items that will be computed in any case."""
        return self.misses.total()

    @property
    def most(self) -> int:
        """Items that will be computed if all unknown keys miss."""
        return self.least + self.unknown

    @property
    def seconds(self) -> Estimate | None:
        """What computing one item is expected to take; None without history."""
        return estimate([one.seconds for one in self.past])

    @property
    def money(self) -> Estimate | None:
        """What computing one item is expected to cost; None without history."""
        return estimate([self.money_of(one) for one in self.past])

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-able data: seconds and money as median and p90, for the least and the most."""
        return {
            "task": self.task,
            "kind": self.kind,
            "items": self.items,
            "hits": dict(self.hits),
            "misses": dict(self.misses),
            "unknown": self.unknown,
            "until": self.until,
            "bytes_to_move": self.bytes_to_move,
            "seconds_saved": self.seconds_saved,
            "compute": {"least": self.least, "most": self.most},
            "seconds": _bounds(self.seconds, self.least, self.most),
            "money": _bounds(self.money, self.least, self.most),
        }


@dataclass(frozen=True)
class _PlannedLookups(Lookups):
    """Looks items up and notes what it finds; it promotes and records nothing."""

    stage: StagePlan
    bypassed: str

    def hits(self, calls: Iterable[tuple[Item, Call]]) -> dict[str, Lookup]:
        """Return the hits, and note hits and misses."""
        calls = list(calls)
        if self.bypassed:
            self.stage.misses[self.bypassed] += len(calls)
            return {}
        found = self.cache.reader.look([call.request for _, call in calls], promote=False)
        for item, call in calls:
            lookup = found[call.key]
            if lookup.entry is not None:
                self.stage.hits[lookup.tier] += 1
                self.stage.bytes_to_move += lookup.entry.stored_bytes + sum(lookup.entry.blobs.values())
                self.stage.seconds_saved += lookup.entry.compute_seconds
            else:
                origin = origin_of_item(self.task, item, self.policy.cache_ignore)
                subject = self.cache.privacy.origin(self.policy.kind, origin).subject
                self.stage.misses[self.cache.parts.explainer.explain(call, subject, lookup).reason] += 1
        return {key: lookup for key, lookup in found.items() if lookup.is_hit}

    def record(self, item: Item, lookup: Lookup) -> None:
        """Record nothing: nobody was served."""

    def sum_up(self, hits: Sequence[Lookup], total: int, calls: int) -> None:
        """Note what has no key."""
        del hits
        if total > calls:
            self.stage.misses[NO_KEY] += total - calls

    def left_out(self, count: int) -> None:
        """Note what cannot be looked up."""
        self.stage.unknown += count


class Planner:
    """Plans stage after stage; ``planner.map`` takes the place of `cached_map`.

    Attributes:
        stages: The stages so far.
    """

    def __init__(self) -> None:
        self.stages: list[StagePlan] = []

    def map(self, task: Task[..., Any], *args: Any, **kwargs: Any) -> BatchFutures:
        """Look the items of a stage up and compute none; arguments are those of `cached_map`.

        Returns:
            Futures of which the hits have results, and the others never will.

        Raises:
            ConfigurationError: The task has no tiered cache.
        """
        kwargs = {name: value for name, value in kwargs.items() if name not in _OF_RUNS}
        policy = task.cache_policy
        if not isinstance(policy, TieredCachePolicy):
            msg = f"plan: task {task.name!r} has no tiered cache; make it with cached_task"
            raise ConfigurationError(msg)
        cache = policy.cache or TieredCache.from_settings()
        items = items_of(task, args, kwargs)
        stage = StagePlan(task.name, policy.kind.name, len(items))
        stage.past = cache.parts.history.computations(task.name, policy.kind.name)
        prices = cache.settings.prices_of(policy.kind.name)
        stage.money_of = lambda one: prices.cost(one.usage, one.seconds)
        batch = MappedBatch(
            task, items, _PlannedLookups(cache, policy, task, stage, _why_bypassed(cache, policy, task)), _stays
        )
        batch.start()
        futures = BatchFutures(batch.futures)  # pyright: ignore[reportAbstractUsage] - so does Prefect
        futures.wait()
        stage.until = self.stages[-1].task if stage.unknown and self.stages else ""
        self.stages.append(stage)
        return futures


_OF_RUNS = frozenset({"wait_for", "return_state", "task_runner"})


def plan_map(task: Task[..., Any], *args: Any, **kwargs: Any) -> StagePlan:
    """Return what `cached_map` with these arguments would do, without doing it."""
    planner = Planner()
    planner.map(task, *args, **kwargs)
    return planner.stages[0]


def _why_bypassed(cache: TieredCache, policy: TieredCachePolicy, task: Task[..., Any]) -> str:
    """Return why a run would not look at the cache at all, if so."""
    if cache.settings.mode == "off":
        return CACHE_OFF
    return REFRESHING if policy.refreshes(task) else ""


def _stays(*arguments: Any) -> PrefectFuture[Any] | State[Any]:
    """Take a miss, and compute nothing."""
    del arguments
    return Pending(name="Planned", message="it would be computed")


def _bounds(one: Estimate | None, least: int, most: int) -> dict[str, Any] | None:
    if one is None:
        return None
    return {
        "samples": one.samples,
        "each": {"median": one.median, "p90": one.p90},
        "least": {"median": one.median * least, "p90": one.p90 * least},
        "most": {"median": one.median * most, "p90": one.p90 * most},
    }
