"""Events: one frozen record for everything that a report, a log line or a hook may want to know.

They carry whom they belong to, and go where `cache_blocks.event_log` brings them.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Final

from cache_blocks.records import record

LOOKUP: Final = "lookup"
LOST: Final = "lost"
UNLEASED: Final = "unleased"
SHARED: Final = "shared"
COMPUTED: Final = "computed"
UNSTORED: Final = "unstored"
TIER_DOWN: Final = "tier-down"
TIER_UP: Final = "tier-up"
INVALIDATED: Final = "invalidated"
NEAR_LIMIT: Final = "near-limit"
REQUESTS: Final = "requests"
TRANSFER: Final = "transfer"


@record
class Origin:
    """Who asks: filled in by what faces an orchestrator, empty elsewhere.

    Attributes:
        subject: What the work is about, for people, such as a file's name.
        task: Name of the task.
        flow: Name of the flow.
        flow_run_id: Flow run whose report the event belongs to.
        task_run_id: Task run.
        deferred: Whether the event may be written in the background.
    """

    subject: str = ""
    task: str = ""
    flow_run_id: str = ""
    task_run_id: str = ""
    deferred: bool = True
    flow: str = ""


_origin: contextvars.ContextVar[Origin] = contextvars.ContextVar("cache_blocks_origin", default=Origin())  # noqa: B039 - frozen


class originating:  # noqa: N801 - a context manager; a class, because a generator costs thrice
    """Attribute the events of a block of code to ``origin``."""

    __slots__ = ("_before", "_mine")

    def __init__(self, origin: Origin) -> None:
        self._mine = origin

    def __enter__(self) -> None:
        self._before = _origin.set(self._mine)

    def __exit__(self, *raised: object) -> None:
        _origin.reset(self._before)


def origin_now() -> Origin:
    """Return whom events that are recorded now belong to."""
    return _origin.get()


@record
class CacheEvent:
    """One event.

    Attributes:
        action: ``lookup``, ``lost`` (a write that a tier did not take), ``unleased`` (computed without a lease),
            ``shared`` (took the result of an equal call),
            ``unstored`` (a result that could not be kept), ``near-limit`` (one that hardly could), ``computed``,
            ``tier-down``, ``tier-up``, ``invalidated``; or, for many at once, ``requests`` to the object store and
            ``transfer`` of bytes to and from it.
        kind: Name of the kind.
        key: Key, if it is about one.
        outcome: Outcome of a lookup; of requests ``put``, ``get`` or ``delete``, of a transfer ``up`` or ``down``.
        tier: Tier that it is about.
        reason: Why, in words for a person.
        stored_bytes: Size of the payload as stored; of requests and invalidated entries their number, of a transfer
            its bytes.
        seconds: What the lookup, or the computation, took.
        seconds_saved: Seconds of computing that a hit has spared, less the lookup.
        money: What the computation cost, in the currency of the settings.
        money_saved: What computing a hit again would have cost.
        origin: Who asked.
        at: Seconds since the epoch.
    """

    action: str
    kind: str = ""
    key: str = ""
    outcome: str = ""
    tier: str = ""
    reason: str = ""
    stored_bytes: int = 0
    seconds: float = 0.0
    seconds_saved: float = 0.0
    money: float = 0.0
    money_saved: float = 0.0
    origin: Origin = field(default_factory=_origin.get)
    at: float = field(default_factory=time.time)


Listener = Callable[[Sequence[CacheEvent]], None]
"""Takes events a moment after they were recorded, in bulk, such as an exporter of metrics."""
