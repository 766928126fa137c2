"""What `test_invalidation_processes` runs in processes of their own: invalidation_worker.py VERB SEED AMOUNT.

Both count in a file that all of them map. For each scope it has two numbers, which only the one invalidating process
raises: `begun` before it invalidates the scope, and `done` when `invalidate` has returned. A value is what its
computing read of `begun`; it is stale when a number in it is lower than `done` was before the read began. Whether a
read overlaps an invalidation shows in the same numbers: one that had begun when the read ended was not done when the
read began.
"""

import mmap
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from cache_blocks import NO_VALUE, SEARCH_RESULTS, TRANSCRIPT, TieredCache, plan
from cache_blocks.entry import Entry, Lookup, scopes_of
from cache_blocks.errors import TierUnavailableError

KINDS = {f"{kind.name}:{number}": kind for kind in (TRANSCRIPT, SEARCH_RESULTS) for number in range(6)}
TAGS = {key: [f"recording:{key[-1]}"] for key in KINDS}
SCOPES = sorted({scope for key in KINDS for scope in scopes_of(key, TAGS[key])})
FILE_BYTES = 16 * (len(SCOPES) + 1)
FINISHED = 2 * len(SCOPES)
MOST_READS = 60_000


class Truth:
    """The numbers, in a file that all processes map."""

    def __init__(self, path: str) -> None:
        with Path(path).open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), FILE_BYTES)
        self.numbers = memoryview(self._map).cast("q")

    def begun(self) -> dict[str, int]:
        return {scope: self.numbers[2 * at] for at, scope in enumerate(SCOPES)}

    def done(self) -> dict[str, int]:
        return {scope: self.numbers[2 * at + 1] for at, scope in enumerate(SCOPES)}

    def invalidations(self) -> int:
        return sum(self.begun().values())


class Reader:
    """Reads and computes at random until enough of its reads have overlapped an invalidation."""

    def __init__(self, cache: TieredCache, truth: Truth, seed: int) -> None:
        self.cache, self.truth, self.random = cache, truth, random.Random(seed)  # noqa: S311 - a story to repeat, no secret
        self.counts: Counter[str] = Counter()

    def run(self, overlapping: int) -> Counter[str]:
        while self.counts["overlapping"] < overlapping and self.counts["reads"] < MOST_READS:
            key = self.random.choice(list(KINDS))
            before = self.truth.done()
            values = self.ask(key)
            after = self.truth.begun()
            for name, value in values.items():
                self.judge(name, value, before, after)
        return self.counts

    def ask(self, key: str) -> dict[str, Any]:
        chance = self.random.random()
        if chance < 0.2:
            return {key: self.cache.get(key)}
        if chance < 0.8:
            return self.cache.get_many(KINDS)
        slow = chance > 0.98
        return {
            key: self.cache.get_or_compute(key, partial(self.compute, key, slow=slow), kind=KINDS[key], tags=TAGS[key])
        }

    def compute(self, key: str, *, slow: bool) -> dict[str, int]:
        self.counts["computed"] += 1
        begun = self.truth.begun()
        value = {scope: begun[scope] for scope in scopes_of(key, TAGS[key])}
        if slow:  # until something has been invalidated meanwhile
            seen = self.truth.invalidations()
            while self.truth.invalidations() < seen + 3:
                time.sleep(0.001)
        return value

    def judge(self, key: str, value: Any, before: dict[str, int], after: dict[str, int]) -> None:
        scopes = scopes_of(key, TAGS[key])
        self.counts["reads"] += 1
        self.counts["overlapping"] += any(after[scope] > before[scope] for scope in scopes)
        if value is not NO_VALUE:
            self.counts["served"] += 1
            self.counts["stale"] += any(value[scope] < before[scope] for scope in scopes)


def invalidate(cache: TieredCache, truth: Truth, seed: int, readers: int) -> Counter[str]:
    """Invalidate one scope after the other until all readers have finished."""
    choose = random.Random(seed)  # noqa: S311 - a story to repeat, no secret
    weights = [{"all": 6, "kind": 6, "tag": 4, "key": 2}[scope.partition(":")[0]] for scope in SCOPES]
    while truth.numbers[FINISHED] < readers:
        at = choose.choices(range(len(SCOPES)), weights)[0]
        name, _, value = SCOPES[at].partition(":")
        truth.numbers[2 * at] += 1
        try:
            cache.invalidate(**({name: value} if value else {}))
        except TierUnavailableError:
            continue  # nothing has changed: a deadlock with the test, which empties the database
        truth.numbers[2 * at + 1] = truth.numbers[2 * at]
    return Counter(invalidations=truth.invalidations())


def judge_without_generations(
    entry: Entry, generations: Mapping[str, int], now: float, tier: str = ""
) -> Lookup | None:
    """The mutant: as the product judges, but no generation counts."""
    return _judge(entry, {**generations, **dict(zip(entry.scopes, entry.generations, strict=True))}, now, tier)


_judge = plan.judge


def main(verb: str, seed: int, amount: int) -> None:
    if os.environ.get("WORKER_MUTANT"):
        plan.judge = judge_without_generations
    truth = Truth(os.environ["WORKER_TRUTH"])
    cache = TieredCache.from_settings()
    work = invalidate(cache, truth, seed, amount) if verb == "invalidate" else Reader(cache, truth, seed).run(amount)
    cache.close()
    sys.stdout.write(orjson.dumps(work).decode())


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
