"""Two caches and everything that may happen to them, in any order, against a simple model: never a stale serve.

The chain, its breakers, the invalidator and all protocols are the product's, over a real Redis, a real SQLite and a
real folder. The two caches stand for two processes; each can be cut off from any of the servers by itself. What runs
at the same time is shown by interruptions: between two steps of one operation the machine performs another one, at
the places where processes can overtake each other.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import hypothesis
import pytest
import redis
import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from cache_blocks import NO_VALUE, SEARCH_RESULTS, TRANSCRIPT, CacheSettings, TieredCache, plan
from cache_blocks.entry import scopes_of
from cache_blocks.errors import InvalidationIncompleteError, TierUnavailableError
from cache_blocks.flights import Ticket
from cache_blocks.plan import Request
from cache_blocks.schema import CacheTable
from cache_blocks.writing import Computed

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from cache_blocks.calls import Call
    from cache_blocks.entry import Entry, Lookup

KINDS: Final = {"transcript:1": TRANSCRIPT, "search-results:1": SEARCH_RESULTS}
KEYS: Final = tuple(KINDS)
TAGS: Final = ("recording:a", "recording:b")
SCOPES: Final[tuple[dict[str, str], ...]] = (
    {"key": "transcript:1"},
    {"kind": "transcript"},
    {"tag": "recording:a"},
    {},
)
TIERS: Final = ("redis", "sql", "object_store")
PLACES: Final = (
    "before redis is read",
    "before places are reserved",
    "before sql is read",
    "before redis is seeded",
    "before a hit is promoted",
    "before the object store is read",
    "after the mirror is read",
    "before redis is told",
    "before the mirror is told",
)

_numbers = itertools.count()


class StaleServeError(AssertionError):
    """A read was served what was computed before an invalidation that had returned before the read began."""


def name_of(scope: Mapping[str, str]) -> str:
    return next((f"{name}:{value}" for name, value in scope.items()), "all")


@dataclass
class SlowWriter:
    """A computation that has begun: what it has read of the truth, and its ticket."""

    process: Process
    call: Call
    value: dict[str, int]
    ticket: Ticket


@dataclass
class Process:
    """A cache as a process of its own has it, with switches between it and the servers.

    `floor` is the model: the least number of each scope that this process may still be served.
    """

    cache: TieredCache
    down: set[str] = field(default_factory=set[str])
    floor: Counter[str] = field(default_factory=Counter[str])
    interruptions: dict[str, Callable[[], object]] = field(default_factory=dict[str, "Callable[[], object]"])

    def __post_init__(self) -> None:
        parts = self.cache.parts
        hot, sql, far = parts.chain.tiers
        if hot.name == "redis":
            pool = cast("Any", hot).servers.client.connection_pool
            self.wrap(pool, "get_connection", before=partial(self.cut_off, "redis", redis.ConnectionError("cut off")))
            self.wrap(hot, "reserve", before=partial(self.at, "before places are reserved"))
            self.wrap(hot, "seed", before=partial(self.at, "before redis is seeded"))
            self.tell("redis", "before redis is told")
        self.wrap(parts.database, "_ready_engine", before=partial(self.cut_off, "sql", OSError("cut off")))
        self.wrap(parts.store, "_open", before=partial(self.cut_off, "object_store", OSError("cut off")))
        self.wrap(hot, "read", before=partial(self.at, "before redis is read"))
        self.wrap(hot, "write", before=partial(self.at, "before a hit is promoted"))
        self.wrap(sql, "read", before=partial(self.at, "before sql is read"))
        self.wrap(far, "read", before=partial(self.at, "before the object store is read"))
        self.wrap(parts.generations, "_mirrored", after=partial(self.at, "after the mirror is read"))
        self.tell("object_store", "before the mirror is told")

    def tell(self, tier: str, place: str) -> None:
        tellers = cast("Any", self.cache.parts.invalidator)._tellers
        tellers[tier] = around(tellers[tier], before=partial(self.at, place))

    def wrap(
        self,
        owner: object,
        name: str,
        *,
        before: Callable[[], object] | None = None,
        after: Callable[[], object] | None = None,
    ) -> None:
        vars(owner)[name] = around(getattr(owner, name), before=before, after=after)

    def cut_off(self, server: str, error: Exception) -> None:
        if server in self.down:
            raise error

    def at(self, place: str) -> None:
        """Let happen what was planned for this place, once."""
        if planned := self.interruptions.pop(place, None):
            planned()


def around(
    function: Callable[..., Any],
    *,
    before: Callable[[], object] | None = None,
    after: Callable[[], object] | None = None,
) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **options: Any) -> Any:
        if before:
            before()
        answer = function(*arguments, **options)
        if after:
            after()
        return answer

    return wrapped


@dataclass
class Servers:
    """What the processes share, seen past the code under test."""

    folder: Path
    redis_url: str = ""

    def settings(self, namespace: str) -> CacheSettings:
        return CacheSettings(
            home=self.folder,
            namespace=namespace,
            breaker_seconds=1e-9,  # whoever was cut off asks again at once
            **({"redis_url": self.redis_url} if self.redis_url else {}),  # pyright: ignore[reportArgumentType]
        )


class InvalidationMachine(RuleBasedStateMachine):
    """The model: a number per scope that rises with each invalidation. A value is what its computing read of them."""

    servers: ClassVar[Servers]
    served: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        namespace = f"machine-{next(_numbers)}"
        settings = self.servers.settings(namespace)
        self.namespace = namespace
        self.processes = [Process(TieredCache(settings)) for _ in range(2)]
        self.observer = TieredCache(settings)
        self.client = redis.Redis.from_url(self.servers.redis_url) if self.servers.redis_url else None
        self.truth: Counter[str] = Counter()
        self.untold: dict[str, int] = {}
        self.emptied = 0
        self.slow: list[SlowWriter] = []

    def teardown(self) -> None:
        for cache in (*(process.cache for process in self.processes), self.observer):
            cache.close()
        if self.client:
            self.client.close()

    # What processes do

    @rule(who=st.integers(0, 1), key=st.sampled_from(KEYS))
    def read_one(self, who: int, key: str) -> None:
        self.read(who, [key], ())

    @rule(who=st.integers(0, 1), keys=st.permutations(KEYS), tags=st.sampled_from([(), TAGS]))
    def read(self, who: int, keys: list[str], tags: tuple[str, ...]) -> None:
        process = self.processes[who]
        floor = process.floor.copy()
        for key, found in process.cache.peek([Request(key, tags) for key in keys]).items():
            if found.value is NO_VALUE:
                continue
            self.served[found.lookup.tier] += 1
            for scope, number in found.value.items():
                if number < floor[scope]:
                    raise StaleServeError(f"{key} from {found.lookup.tier}: {scope} was {number}, not {floor[scope]}")

    @rule(who=st.integers(0, 1), key=st.sampled_from(KEYS), tags=st.sets(st.sampled_from(TAGS)))
    def begin_to_compute(self, who: int, key: str, tags: set[str]) -> None:
        process = self.processes[who]
        call = process.cache.call(key, kind=KINDS[key], tags=sorted(tags))
        try:
            fence, generations = process.cache.parts.generations.begin(call.scopes)
        except TierUnavailableError:
            return  # its result will be returned to its caller and not stored
        value = {scope: self.truth[scope] for scope in scopes_of(key, call.tags)}
        self.slow.append(SlowWriter(process, call, value, Ticket(key, "", fence, generations)))

    @precondition(lambda self: self.slow)
    @rule(which=st.integers(0, 100))
    def store(self, which: int) -> None:
        writer = self.slow.pop(which % len(self.slow))
        product = writer.process.cache.writer
        try:
            product.store([Computed(writer.call, writer.ticket, product.encode(writer.call, writer.value), 1.0)])
        except TierUnavailableError:
            self.served["not stored"] += 1

    @rule(who=st.integers(0, 1), key=st.sampled_from(KEYS), tags=st.sets(st.sampled_from(TAGS)))
    def compute(self, who: int, key: str, tags: set[str]) -> None:
        before = len(self.slow)
        self.begin_to_compute(who, key, tags)
        if len(self.slow) > before:
            self.store(before)

    @rule(who=st.integers(0, 1), scope=st.sampled_from(SCOPES))
    def invalidate(self, who: int, scope: dict[str, str]) -> None:
        process, name = self.processes[who], name_of(scope)
        self.truth[name] += 1
        number, emptied = self.truth[name], self.emptied
        try:
            process.cache.invalidate(**scope)
        except TierUnavailableError:
            return  # nothing has changed, and the caller knows
        except InvalidationIncompleteError as incomplete:
            if "object_store" in incomplete.untold and self.emptied > emptied:
                return  # the truth was lost before there was a copy of it; the caller has heard that
            if "redis" in incomplete.untold:
                self.raise_floor([process], name, number)
                self.untold[name] = number
                return
        self.raise_floor(self.processes, name, number)

    @rule(who=st.integers(0, 1))
    def tell_what_was_missed(self, who: int) -> None:
        self.processes[who].cache.parts.invalidator.retry()
        self.see_who_has_been_told()

    # What happens meanwhile

    @rule(data=st.data(), who=st.integers(0, 1), place=st.sampled_from(PLACES))
    def be_interrupted(self, data: st.DataObject, who: int, place: str) -> None:
        """Read or invalidate, and let something else happen in the middle of it."""
        process = self.processes[who]
        process.interruptions[place] = data.draw(st.sampled_from(self.interruptions()))
        if place.endswith("told"):
            self.invalidate(who, data.draw(st.sampled_from(SCOPES)))
        elif data.draw(st.booleans()):
            self.read_one(who, data.draw(st.sampled_from(KEYS)))
        else:
            self.compute(who, data.draw(st.sampled_from(KEYS)), {"recording:a"})
        process.interruptions.clear()

    def interruptions(self) -> list[Callable[[], None]]:
        found: list[Callable[[], None]] = [self.evict_generations, self.flush_redis, self.empty_sql]
        for who in (0, 1):
            found += [partial(self.invalidate, who, scope) for scope in SCOPES]
            found += [partial(self.read_one, who, key) for key in KEYS]
            found += [partial(self.compute, who, key, {"recording:a"}) for key in KEYS]
        return found

    @precondition(lambda self: not any(process.down for process in self.processes))
    @rule(who=st.integers(0, 1), tier=st.sampled_from(TIERS))
    def cut_off(self, who: int, tier: str) -> None:
        self.processes[who].down.add(tier)

    @precondition(lambda self: any(process.down for process in self.processes))
    @rule()
    def reconnect(self) -> None:
        for process in self.processes:
            process.down.clear()

    @rule(tiers=st.sets(st.sampled_from(TIERS), min_size=1, max_size=2))
    def evict_entries(self, tiers: set[str]) -> None:
        chain = self.observer.parts.chain
        for tier in tiers:
            chain.tier(chain.tiers[0].name if tier == "redis" else tier).delete(KEYS)

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([self.evict_generations, self.flush_redis, self.empty_sql]))()

    def evict_generations(self) -> None:
        self.delete_from_redis(f"cache-blocks:{self.namespace}:generation:*")

    def flush_redis(self) -> None:
        self.delete_from_redis(f"cache-blocks:{self.namespace}:*")

    def empty_sql(self) -> None:
        """Lose the database, unless the mirror lacks numbers, of which callers have heard that they are not safe."""
        if self.observer.parts.generations.untold("object_store"):
            return
        with self.observer.parts.database.begin() as connection:
            for table in CacheTable.metadata.sorted_tables:
                if "namespace" in table.c:
                    connection.execute(sa.delete(table).where(table.c.namespace == self.namespace))
        self.emptied += 1
        self.untold.clear()  # who else had to be told is forgotten; those callers have heard that it was not done

    def delete_from_redis(self, pattern: str) -> None:
        if self.client:
            for name in cast("list[bytes]", self.client.keys(pattern)):
                self.client.delete(name)

    def raise_floor(self, processes: list[Process], scope: str, number: int) -> None:
        for process in processes:
            process.floor[scope] = max(process.floor[scope], number)

    def see_who_has_been_told(self) -> None:
        still = self.observer.parts.generations.untold("redis")
        for scope in [scope for scope in self.untold if scope not in still]:
            self.raise_floor(self.processes, scope, self.untold.pop(scope))


@pytest.fixture
def folder() -> Generator[Path]:
    """On disk, whose SQLite is the product's; outside of pytest's folders, which keep what tests leave."""
    path = Path(tempfile.mkdtemp(prefix="cache-blocks-machine-"))
    yield path
    shutil.rmtree(path)


def run(servers: Servers, examples: int, **more: Any) -> Counter[str]:
    """Run so many random stories and return how many values were served, by tier."""

    class Machine(InvalidationMachine):
        served: ClassVar[Counter[str]] = Counter()

    Machine.servers = servers
    settings = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        database=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.filter_too_much],
        **more,
    )
    run_state_machine_as_test(Machine, settings=settings)  # pyright: ignore[reportUnknownMemberType]
    return Machine.served


@pytest.mark.promise("An invalidated result is never served", tries="60 stories of up to 40 steps")
def test_no_story_ends_in_a_stale_serve(folder: Path, redis_url: str) -> None:
    served = run(Servers(folder, redis_url), 60)
    assert served["redis"] > 50, f"a cache that never serves is never stale: {served}"


@pytest.mark.promise("An invalidated result is never served", tries="20 stories of up to 40 steps")
def test_no_story_of_a_cache_without_redis_does(folder: Path) -> None:
    served = run(Servers(folder), 20)
    assert served["memory"] > 5, served


def _without_generations(entry: Entry, generations: Mapping[str, int], now: float, tier: str = "") -> Lookup | None:
    return _judge(entry, dict(generations) | dict(zip(entry.scopes, entry.generations, strict=True)), now, tier)


_judge = plan.judge

MUTANTS: Final[dict[str, tuple[object, str, object]]] = {
    "generations do not count": (plan, "judge", _without_generations),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_build_with_a_mistake_is_found_out(
    folder: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch, mutant: str
) -> None:
    """The same machine over builds in which one safeguard is missing: it bites."""
    owner, name, replacement = MUTANTS[mutant]
    monkeypatch.setattr(owner, name, replacement)
    with pytest.raises(StaleServeError):
        run(Servers(folder, redis_url), 500, phases=[hypothesis.Phase.generate], derandomize=True)
