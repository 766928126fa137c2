"""Looking up the items of a batch by the page, and telling of it: an event an item, one task run a page."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed
from prefect.tasks import Task
from prefect.utilities.annotations import allow_failure, opaque, quote

from cache_blocks.cache import TieredCache
from cache_blocks.calls import Call
from cache_blocks.entry import Lookup
from cache_blocks.events import originating
from cache_blocks.prefect.origin import origin_of_item
from cache_blocks.prefect.policy import TieredCachePolicy
from cache_blocks.wording import seconds_in_words

Item = dict[str, Any]
"""The parameters of one call."""


@dataclass(frozen=True)
class Lookups:
    """What looks the items of a task up, and tells of it.

    Attributes:
        cache: The cache.
        policy: The task's policy.
        task: The task.
    """

    cache: TieredCache
    policy: TieredCachePolicy
    task: Task[..., Any]

    def call_of(self, item: Item) -> Call | None:
        """Return the call of an item; None when it has no key, which its task run reports."""
        if self.policy.others or any(isinstance(value, allow_failure | opaque | quote) for value in item.values()):
            return None
        try:
            return self.policy.call_of(self.task, item, self.cache)
        except Exception:  # noqa: BLE001 - whatever it is, the task run meets it again and says it
            return None

    def hits(self, calls: Iterable[tuple[Item, Call]]) -> dict[str, Lookup]:
        """Look the calls of items up in one go and return the hits by key, with what a lookup cost."""
        requests = list({call.key: call.request for _, call in calls}.values())
        if not requests:
            return {}
        started = time.perf_counter()
        try:
            with originating(origin_of_item(self.task, {}, ())):
                found = self.cache.reader.look(requests)
        except Exception:  # noqa: BLE001 - a cache that fails is a miss
            get_run_logger().exception(
                "lookup of %d items of %s failed for a reason that was not foreseen", len(requests), self.task.name
            )
            return {}
        each = (time.perf_counter() - started) / len(requests)
        return {key: lookup.costing(each) for key, lookup in found.items() if lookup.is_hit}

    def left_out(self, count: int) -> None:
        """Learn how many items of a page cannot run, because of what they depend on."""

    def record(self, item: Item, lookup: Lookup) -> None:
        """Record the hit of an item. A miss is recorded by its task run, which looks again."""
        assert lookup.entry is not None  # noqa: S101 - a hit has one
        origin = origin_of_item(self.task, item, self.policy.cache_ignore)
        with originating(self.cache.privacy.origin(self.policy.kind, origin)):
            self.cache.record_lookup(lookup.entry.key, lookup)

    def sum_up(self, hits: Sequence[Lookup], total: int, calls: int) -> None:
        """Sum a page up, in one task run if there are hits, in a log line if there are none.

        Args:
            hits: The hits, once per item.
            total: Items of the page.
            calls: How many of them have a key.
        """
        del calls
        tiers = Counter(lookup.tier for lookup in hits)
        saved = sum(max(hit.entry.compute_seconds - hit.seconds, 0.0) for hit in hits if hit.entry is not None)
        where = ", ".join(f"{count:,} from {tier}" for tier, count in tiers.most_common())
        count = f"{len(hits):,} of {total:,} cached"
        if hits:
            _summary_run(self.task.name, count, f"{count} ({where}), saved {seconds_in_words(saved)}")
        else:
            get_run_logger().info("%s: %s", self.task.name, count)


def _summary_run(task: str, count: str, line: str) -> None:
    """Show the hits of a page in Prefect as one task run in a state named Cached, which Prefect logs."""

    def cached() -> State[Any]:
        return Completed(name="Cached", message=line)

    def run_name() -> str:
        """Return the name as it is; in a text Prefect would take braces, which a task's name may have, for fields."""
        return f"{task}: {count}"

    summary = Task(cached, name=f"{task} (cached)", task_run_name=run_name, cache_policy=NO_CACHE, persist_result=False)
    summary(return_state=True)
