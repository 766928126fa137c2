"""A batch on its way: items become ready, are looked up by the page, and are hits or task runs.

Items that wait for nothing are looked up where the batch is made. Items whose inputs are futures are looked up in a
thread, by the page as they become ready, so that a stage does not wait for the whole of the one before.
"""

from __future__ import annotations

import contextvars
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any, Final, cast

from prefect.client.schemas.objects import RunInput, State
from prefect.exceptions import UpstreamTaskError
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.tasks import Task
from prefect.utilities.annotations import BaseAnnotation, allow_failure, opaque
from prefect.utilities.collections import visit_collection
from prefect.utilities.engine import collect_task_run_inputs_sync, resolve_to_final_result

from cache_blocks import forking
from cache_blocks.entry import Entry
from cache_blocks.errors import CorruptEntryError
from cache_blocks.prefect.futures import (
    BatchFuture,
    DerivedFuture,
    MappedFuture,
    StoredHit,
    failed,
    final_result,
    not_ready,
)
from cache_blocks.prefect.lookups import Item, Lookups
from cache_blocks.prefect.spool import Spool
from cache_blocks.values import return_annotation

PAGE_ITEMS: Final = 1_000
"""Items of one lookup at most."""
_FIRST_PAGE_ITEMS: Final = 250
_PAGE_BYTES: Final = 16 * 1024 * 1024
_LINGER_SECONDS: Final = 0.02

Submit = Callable[..., PrefectFuture[Any] | State[Any]]
"""Takes task, parameters, what to wait for and dependencies, as a task runner's own ``submit`` does."""


class Page:
    """How many items the next lookup asks for: by the size of the last results, so that memory stays bounded."""

    def __init__(self) -> None:
        self.items = _FIRST_PAGE_ITEMS

    def learn(self, hits: int, stored_bytes: int) -> None:
        """Learn how large the results of a page were."""
        if hits:
            self.items = min(max(_PAGE_BYTES * hits // max(stored_bytes, 1), 1), PAGE_ITEMS)


class MappedBatch:
    """The items of one `cached_map`.

    Args:
        task: The task.
        items: Parameters of each item.
        lookups: What looks them up; None makes each a task run.
        submit: Takes misses: their task run, or the state that stands in its place.
        wait_for: What has to be done first: futures and states, in whatever Prefect finds them in.
    """

    def __init__(
        self,
        task: Task[..., Any],
        items: Sequence[Item],
        lookups: Lookups | None,
        submit: Submit,
        wait_for: Any = (),
    ) -> None:
        self.settled = threading.Condition(forking.rlock())
        self._task = task
        self._items = items
        self._lookups = lookups
        self._submit_to = submit
        self._wait_for = _visitable(wait_for)
        self._kept_back: State[Any] | None = None
        self._context = contextvars.copy_context()
        self._annotation = return_annotation(task.fn)
        self._spool = Spool()
        self._template: Entry | None = None
        self._page = Page()
        self.futures = [MappedFuture(self, index) for index in range(len(items))]

    def start(self) -> None:
        """Look up what waits for nothing, now; begin to wait for the rest."""
        if not self._wait_for and not any(awaited_by(item) for item in self._items):
            for page in self._pages(range(len(self._items))):
                self._settle(page)
        else:
            threading.Thread(
                target=self._context.copy().run, args=[self._stream], name="cached_map", daemon=True
            ).start()

    def load(self, hit: StoredHit) -> Any:
        """Return a hit's value, new for every caller."""
        if self._template is None or self._lookups is None:
            raise CorruptEntryError(f"{hit.key}: this batch has stored no hit")
        entry = replace(self._template, key=hit.key, size=hit.size, payload=self._spool.read(hit.offset, hit.length))
        return self._lookups.cache.reader.value_of(entry, self._annotation)

    def compute(self, index: int) -> PrefectFuture[Any] | State[Any]:
        """Make a task run of an item, in the context of the flow that made the batch."""
        item = self._items[index]
        return self._context.copy().run(self._submit, item, item)

    def _pages(self, indices: Sequence[int]) -> Iterator[Sequence[int]]:
        start = 0
        while start < len(indices):
            size = self._page.items  # as the page before has taught
            yield indices[start : start + size]
            start += size

    def _stream(self) -> None:
        """Settle items as they become ready; whatever happens, none stays open."""
        ready: SimpleQueue[int] = SimpleQueue()
        try:
            self._kept_back = _why_kept_back(self._wait_for)
            common = _common_to(self._items)
            for future in awaited_by(common):
                future.wait()
            for index, item in enumerate(self._items):
                own = {name: value for name, value in item.items() if name not in common}
                _when_done(awaited_by(own), lambda index=index: ready.put(index))
            left = len(self._items)
            while left:
                page = _next_page(ready, min(left, self._page.items))
                self._settle(page)
                left -= len(page)
        except BaseException as error:  # noqa: BLE001 - nobody may wait for ever; Prefect suspends a flow by one
            for future in self.futures:
                if future.is_open:
                    future.settle(failed(error))
            if isinstance(error, Exception):
                get_run_logger().error("the rest of a batch of %s cannot be run", self._task.name, exc_info=error)

    def _settle(self, page: Sequence[int]) -> None:
        """Make each item of a page a hit, a task run, or what cannot run."""
        resolved = {index: self._kept_back or self._resolved(self._items[index]) for index in page}
        items = {index: item for index, item in resolved.items() if isinstance(item, dict)}
        hits = self._hits(items) if self._lookups is not None and items else {}
        if self._lookups is not None and len(items) < len(page):
            self._lookups.left_out(len(page) - len(items))
        for index, answer in resolved.items():
            if (hit := hits.get(index)) is not None:
                self.futures[index].settle(hit)
            elif isinstance(answer, dict):
                self.futures[index].settle(self._submit(answer, self._items[index]))
            else:
                self.futures[index].settle(answer)

    def _resolved(self, item: Item) -> Item | State[Any]:
        """Return an item with the results of its futures; a state when one of them has none."""
        try:
            results = {name: final_result(future, name) for name, future in futures_in(item).items()}
        except UpstreamTaskError as error:
            return not_ready(error)
        except Exception as error:  # noqa: BLE001 - a result that cannot be had is its own item's failure
            return failed(error)
        return item | results

    def _hits(self, items: Mapping[int, Item]) -> dict[int, StoredHit]:
        """Look a page up; keep the payloads of its hits, record each, and sum them up in one task run."""
        lookups = self._lookups
        assert lookups is not None  # noqa: S101 - only called with it
        calls = {index: call for index, item in items.items() if (call := lookups.call_of(item)) is not None}
        found = lookups.hits((items[index], call) for index, call in calls.items())
        stored = {key: self._store(lookup.entry) for key, lookup in found.items() if lookup.entry is not None}
        self._page.learn(len(stored), sum(hit.length for hit in stored.values()))
        hits = {index: stored[call.key] for index, call in calls.items() if call.key in stored}
        for index, hit in hits.items():
            lookups.record(items[index], found[hit.key])
        lookups.sum_up([found[hit.key] for hit in hits.values()], len(items), len(calls))
        return hits

    def _store(self, entry: Entry) -> StoredHit:
        self._template = self._template or replace(entry, payload=b"", manifest={})
        return StoredHit(entry.key, entry.size, self._spool.append(entry.payload), len(entry.payload))

    def _submit(self, parameters: Item, item: Item) -> PrefectFuture[Any] | State[Any]:
        """Compute what was missed; ``item`` tells which task runs its parameters came from."""
        upstream = {name: _inputs(future) for name, future in futures_in(item).items()}
        dependencies = {name: inputs for name, inputs in upstream.items() if inputs}
        return self._submit_to(self._task, parameters, self._wait_for or None, dependencies or None)


def futures_in(item: Item) -> dict[str, PrefectFuture[Any]]:
    """Return the parameters of an item that are futures. Those inside of collections are left to the task run."""
    return {name: value for name, value in item.items() if isinstance(value, PrefectFuture)}


def awaited_by(item: Item) -> list[PrefectFuture[Any]]:
    """Return the futures that an item waits for, also those that its task run will find in a collection.

    A task run that waits itself takes a place in its runner, which what it waits for may need.
    """
    return [future for value in item.values() for future in _futures_of(value)]


def _futures_of(value: Any) -> Iterable[PrefectFuture[Any]]:
    if isinstance(value, PrefectFuture):
        return (cast("PrefectFuture[Any]", value),)
    if isinstance(value, BaseAnnotation):  # which are tuples; what is quoted stays as it is
        annotated = cast("Any", value)
        return _futures_of(annotated.unwrap()) if isinstance(value, allow_failure | opaque) else ()
    if isinstance(value, list | tuple | set | frozenset | dict):
        members = cast("Iterable[Any]", value.values() if isinstance(value, dict) else value)
        return [cast("PrefectFuture[Any]", member) for member in members if isinstance(member, PrefectFuture)]
    return ()


def _common_to(items: Sequence[Item]) -> Item:
    """Return the parameters that are the same for all items and hold futures: each item would wait for each of them."""
    return {
        name: value
        for name, value in (items[0] if items else {}).items()
        if _futures_of(value) and all(item.get(name) is value for item in items)
    }


def _visitable(wait_for: Any) -> Any:
    """Return what Prefect finds futures in: of other iterables, such as a generator, it sees no member."""
    if isinstance(wait_for, list | tuple | set | dict | PrefectFuture | State) or not isinstance(wait_for, Iterable):
        return cast("Any", wait_for)
    return list(cast("Iterable[Any]", wait_for))


def _why_kept_back(wait_for: Any) -> State[Any] | None:
    """Wait; return what stands in the place of all items, when something that they wait for has no result."""
    try:
        visit_collection(
            wait_for, visit_fn=_wait_unless_hit, return_data=False, max_depth=-1, remove_annotations=True, context={}
        )
    except UpstreamTaskError as error:
        return not_ready(error)
    except Exception as error:  # noqa: BLE001 - a result that cannot be had is the failure of who waits for it
        return failed(error)
    return None


def _wait_unless_hit(one: Any, context: dict[str, Any]) -> Any:
    """Do as Prefect's engine with what a task run waits for; a hit is not decoded for this."""
    if isinstance(one, MappedFuture):
        one.wait()
        if one.is_hit:
            return None
    return resolve_to_final_result(one, context)


def _when_done(futures: Iterable[PrefectFuture[Any]], call: Callable[[], None]) -> None:
    """Call once when all of these are done."""
    unique = {id(future): future for future in futures}
    left = itertools.count(len(unique) - 1, -1)  # which counts one at a time, whatever threads ask
    if not unique:
        call()

    def count_down(_: PrefectFuture[Any]) -> None:
        if next(left) == 0:
            call()

    for future in unique.values():
        future.add_done_callback(count_down)


def _next_page(ready: SimpleQueue[int], size: int) -> list[int]:
    """Return what is ready, at least one item; others that follow at once come along."""
    page = [ready.get()]
    while len(page) < size:
        try:
            page.append(ready.get(timeout=_LINGER_SECONDS))
        except Empty:
            break
    return sorted(page)


def _inputs(future: PrefectFuture[Any]) -> set[RunInput]:
    """Return the task runs behind a future, which Prefect draws as edges; a hit has none."""
    run = future.run if isinstance(future, MappedFuture | DerivedFuture) else future
    return set(collect_task_run_inputs_sync(run)) if run is not None and not isinstance(run, BatchFuture) else set()
