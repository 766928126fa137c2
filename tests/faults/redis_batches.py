"""A batch that goes on while Redis is in trouble and results are invalidated: who was told what, and what failed."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cache_blocks import SEARCH_RESULTS
from cache_blocks.errors import InvalidationIncompleteError
from tests.faults.conftest import until

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from cache_blocks import TieredCache

KEYS = [f"search-results:{number}" for number in range(12)]


class Batch:
    """Calls of several caches, as of several processes, and one more that invalidates everything now and then.

    A result is the number of the last change that it has seen; what is returned must have seen every change whose
    invalidation had returned before it was asked for.

    Attributes:
        failures: What a call raised, or what it returned that was stale.
        incomplete: How many invalidations said that Redis could not be told.
    """

    def __init__(self, workers: Sequence[TieredCache], invalidating: TieredCache) -> None:
        self._workers = workers
        self._invalidating = invalidating
        self._change = 0
        self._told = 0
        self._calls = [0] * len(workers)
        self._end = threading.Event()
        self.failures: list[object] = []
        self.incomplete = 0

    @contextmanager
    def running(self) -> Generator[None]:
        """Go on for as long as the block runs; in the end, and on entering, every worker has had its turn."""
        threads = [threading.Thread(target=self._work, args=(number,)) for number in range(len(self._workers))]
        threads.append(threading.Thread(target=self._invalidate))
        for thread in threads:
            thread.start()
        try:
            self.go_on()
            yield
            self.go_on()
        finally:
            self._end.set()
            for thread in threads:
                thread.join()

    def go_on(self, calls: int = 2 * len(KEYS)) -> None:
        """Wait until every worker has made so many more calls, and a further invalidation has returned."""
        before, told = list(self._calls), self._told
        until(
            lambda: (
                self._told > told and all(now - then >= calls for now, then in zip(self._calls, before, strict=True))
            )
        )

    def _work(self, number: int) -> None:
        cache = self._workers[number]
        while not self._end.is_set():
            key, told = KEYS[self._calls[number] % len(KEYS)], self._told
            try:
                seen = cache.get_or_compute(key, lambda: self._change, kind=SEARCH_RESULTS)
            except Exception as error:  # noqa: BLE001 - whatever it is, a task would have failed
                self.failures.append(error)
            else:
                if seen < told:
                    self.failures.append(f"{key} is of change {seen}, and change {told} had been invalidated")
            self._calls[number] += 1

    def _invalidate(self) -> None:
        while not self._end.wait(0.1):
            self._change += 1
            change = self._change
            try:
                self._invalidating.invalidate(kind=SEARCH_RESULTS)
            except InvalidationIncompleteError:
                self.incomplete += 1
            else:
                self._told = change
