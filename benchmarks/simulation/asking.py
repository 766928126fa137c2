"""The night itself, in one process: pages and single lookups in turns, and what was missed is computed and stored."""

from __future__ import annotations

import time
import uuid
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.simulation.night import KINDS, NOWHERE, PLACES, Night, Step
from benchmarks.simulation.work import Work
from cache_blocks import NO_VALUE, TieredCache
from cache_blocks.events import CacheEvent, originating

if TYPE_CHECKING:
    from collections.abc import Generator

    from cache_blocks.calls import Call, Found

_EXAMPLES: Final = 5
_EXPECTED: Final = frozenset({"lookup hit", "lookup miss", "computed"})
_COUNTS: Final = ("requests", "transfer")
"""How events begin that sum up what was asked of the object store."""


@dataclass
class Answers:
    """What a process was answered.

    Attributes:
        numbers: The numbers that it has asked for, in its order.
        found: Hits by tier, and misses.
        seconds: How long each operation took, by its name.
        processor: Seconds of processor time of this process, by the operation's name.
        keys: How many keys that was.
        requests: Requests to the object store, by the operation's name and the request's.
        events: Events recorded, by action and outcome.
        problems: What should not have happened, and how often: errors, wrong values, an answer from elsewhere.
    """

    numbers: array[int] = field(default_factory=lambda: array("l"))
    found: Counter[str] = field(default_factory=Counter[str])
    seconds: dict[str, array[float]] = field(default_factory=dict[str, "array[float]"])
    processor: Counter[str] = field(default_factory=Counter[str])
    keys: Counter[str] = field(default_factory=Counter[str])
    requests: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    events: Counter[str] = field(default_factory=Counter[str])
    problems: Counter[str] = field(default_factory=Counter[str])

    @contextmanager
    def timing(self, name: Callable[[], str], sent: Mapping[str, int], keys: int = 1) -> Generator[None]:
        """Time a block of code, and count what it sends to the object store.

        Args:
            name: Returns what the operation is called, when it is over.
            sent: Counts all requests of this process.
            keys: How many keys it is about.
        """
        before, processor, began = dict(sent), time.process_time(), time.perf_counter()
        yield
        taken = time.perf_counter() - began
        for request, count in sent.items():
            self.requests[name(), request] += count - before.get(request, 0)
        self.seconds.setdefault(name(), array("d")).append(taken)
        self.processor[name()] += time.process_time() - processor  # pyright: ignore[reportArgumentType] - of seconds
        self.keys[name()] += keys

    def problem(self, what: str) -> None:
        """Note a problem; after a few of a sort, only their number."""
        sort = what.partition(":")[0]
        known = sum(1 for other in self.problems if other.partition(":")[0] == sort)
        self.problems[what if known < _EXAMPLES or what in self.problems else f"{sort}: and others"] += 1


class Asker:
    """Asks a cache for the keys of a night.

    Args:
        cache: The cache.
        night: What is where.
        work: The calls and what their values are.
        folder: Where computations put files.
        sent: Counts the requests that this process sends to the object store.
        again: Whether all has been asked for before, so that Redis has it.
    """

    def __init__(
        self,
        cache: TieredCache,
        night: Night,
        work: Work,
        folder: Path,
        sent: Mapping[str, int],
        *,
        again: bool = False,
    ) -> None:
        self._cache = cache
        self._night = night
        self._work = work
        self._folder = folder
        self._sent = sent
        self._again = again
        self._prefix = "again: " if again else ""
        self._flow_run = str(uuid.uuid4())
        self.answers = Answers()

    def ask(self, steps: Sequence[Step], tell: Callable[[int], object]) -> Answers:
        """Ask, and return what was answered; an error is noted, and the next step goes on."""
        listening = True

        def count(events: Iterable[CacheEvent]) -> None:
            if listening:
                self.answers.events.update(f"{event.action} {event.outcome}".strip() for event in events)

        self._cache.listen(count)
        for step in steps:
            try:
                self._one(step) if step.single else self._page(step)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
                self.answers.problem(f"{type(error).__name__}: {error}")
            self.answers.numbers.extend(step.numbers)
            tell(len(step.numbers))
        self._cache.parts.events.flush()
        listening = False
        for name in self.answers.events.keys() - _EXPECTED:
            if not name.startswith(_COUNTS):
                self.answers.problems[f"event {name}"] += self.answers.events[name]
        if dropped := self._cache.parts.events.dropped:
            self.answers.problems["events dropped"] += dropped
        return self.answers

    def _page(self, step: Step) -> None:
        """Look up as `cached_map` does: all at once, an event for each hit, and a task run for each miss."""
        calls = {number: self._work.call(number) for number in step.numbers}
        with self.answers.timing(lambda: f"{self._prefix}page of {KINDS[step.kind]}", self._sent, len(calls)):
            found = self._cache.peek([call.request for call in calls.values()], next(iter(calls.values())).annotation)
            for number, call in calls.items():
                if (one := found[call.key]).lookup.is_hit:
                    with originating(self._work.origin(number, self._flow_run)):
                        self._cache.record_lookup(call.key, one.lookup)
        for number, call in calls.items():
            if not found[call.key].lookup.is_hit:
                self._miss(number, call)
            else:
                self._check(number, found[call.key])

    def _one(self, step: Step) -> None:
        """Look up as a task run does."""
        number = step.numbers[0]
        call = self._work.call(number)
        found: list[Found] = []
        with (
            originating(self._work.origin(number, self._flow_run, str(uuid.uuid4()))),
            self.answers.timing(lambda: f"{self._prefix}{_name(found[0], call)}", self._sent),
        ):
            found.append(self._cache.find_call(call))
        if found[0].lookup.is_hit:
            self._check(number, found[0])
        else:
            self._compute(number, call)

    def _miss(self, number: int, call: Call) -> None:
        """Do what the task run of a page's miss does: look again, and say of the miss why."""
        with (
            originating(self._work.origin(number, self._flow_run, str(uuid.uuid4()))),
            self.answers.timing(lambda: f"{self._prefix}{_name(found, call)}", self._sent),
        ):
            found = self._cache.find_call(call)
        if found.lookup.is_hit:
            self.answers.problem("hit where there was a miss a moment before")
        self._compute(number, call)

    def _compute(self, number: int, call: Call) -> None:
        """Compute under a lease and store, as a task run does; computing itself takes no time here."""
        value: Any = NO_VALUE
        with (
            originating(self._work.origin(number, self._flow_run, str(uuid.uuid4()))),
            self.answers.timing(lambda: f"{self._prefix}store {call.kind.name}", self._sent),
        ):
            value = self._cache.compute(call, lambda: self._work.value(number, self._folder))
        self.answers.found["miss"] += 1
        if self._again or self._night.place(number) != NOWHERE:
            self.answers.problem("a miss where an entry was stored")
        if not self._work.is_right(number, value):
            self.answers.problem("a wrong value was computed")

    def _check(self, number: int, found: Found) -> None:
        """See that a hit came from where the entry is, and has the right value."""
        tier = found.lookup.tier
        self.answers.found[tier] += 1
        place = PLACES[0] if self._again else PLACES[self._night.place(number)]
        if tier != place:
            self.answers.problem(f"an answer from elsewhere: {tier}, which {place} was to give")
        if not self._work.is_right(number, found.value):
            self.answers.problem("a wrong value was served")


def _name(found: Found, call: Call) -> str:
    """Return what a single lookup is called: by the tier that answered, a miss by its kind."""
    return f"one from {found.lookup.tier}" if found.lookup.is_hit else f"miss of {call.kind.name}"
