"""What the object store was asked for: requests by what they are billed as, and bytes, by the run that asked.

Counted where a request is made, and turned into events a moment later, some for a thousand requests: what does not
touch the store pays nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from cache_blocks import forking
from cache_blocks.events import REQUESTS, TRANSFER, CacheEvent, Origin, origin_now

_UP: Final = "up"
_DOWN: Final = "down"
_WRITING: Final = ("Put", "Create", "Upload", "Complete", "Copy", "List")
_FREE: Final = ("Delete", "Abort")


class Traffic:
    """Requests and bytes that nobody has taken yet.

    Args:
        tier: Whose they are.

    Attributes:
        on_first: Called when there is something to take; in any thread.
    """

    def __init__(self, tier: str = "object_store") -> None:
        self._tier = tier
        self.on_first: Callable[[], object] = int  # nobody
        self._lock = forking.lock()
        self._process = os.getpid()
        self._counts: dict[Origin, Counter[tuple[str, str]]] = {}

    def count(self, operation: str = "", *, up: int = 0, down: int = 0) -> None:
        """Count a request, or bytes that have come with its answer, for whom it is made.

        Args:
            operation: What S3 calls it, such as ``GetObject``; nothing for an answer.
            up: Bytes that the request sends.
            down: Bytes that the answer brings.
        """
        origin = origin_now()
        asker = Origin(flow=origin.flow, flow_run_id=origin.flow_run_id, deferred=origin.deferred)
        with self._lock:
            if self._process != os.getpid():  # a fork does not count what its parent has asked for
                self._process, self._counts = os.getpid(), {}
            is_first = not self._counts
            counts = self._counts.setdefault(asker, Counter())
            if operation:
                counts[REQUESTS, _billed_as(operation)] += 1
            counts[TRANSFER, _UP] += up
            counts[TRANSFER, _DOWN] += down
        if is_first:
            self.on_first()

    def take(self) -> list[CacheEvent]:
        """Return what has been counted since the last time, as events."""
        if not self._counts:
            return []
        with self._lock:
            taken, self._counts = self._counts, {}
        return [
            replace(CacheEvent(action, outcome=what, tier=self._tier, stored_bytes=number), origin=origin)
            for origin, counts in taken.items()
            for (action, what), number in counts.items()
            if number
        ]


def _billed_as(operation: str) -> str:
    """Return the class of requests that Amazon bills an operation as: writing and listing cost the most."""
    if operation.startswith(_FREE):
        return "delete"
    return "put" if operation.startswith(_WRITING) else "get"
