"""Where events go: to who listens in this process, and to SQL, because there all processes of a flow run meet.

In the process that owns the run they are written in the background; elsewhere at once, since nobody there waits for
the last ones.
"""

from __future__ import annotations

import atexit
import logging
import secrets
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from cache_blocks import events as actions
from cache_blocks import forking
from cache_blocks.causes import cause_of
from cache_blocks.entry import Outcome
from cache_blocks.errors import TierUnavailableError
from cache_blocks.events import CacheEvent, Listener, Origin, origin_now
from cache_blocks.schema import EventRow, table

if TYPE_CHECKING:
    from cache_blocks.database import Database
    from cache_blocks.tiers.breaker import Breaker

logger = logging.getLogger("cache_blocks")

_event = table(EventRow)
IS_HIT: Final = (_event.c.action == actions.LOOKUP) & (_event.c.outcome == Outcome.HIT)
"""Which rows are hits."""

_FLUSH_SECONDS: Final = 0.2
_BUFFER_EVENTS: Final = 100_000
_CROWD_EVENTS: Final = 2_000
"""How many may come while others are being written; who records the next one waits, since memory is not endless."""
_PAGE_EVENTS: Final = 500
"""Events of one transaction: others that write wait no longer than it takes."""

Source = Callable[[], Sequence[CacheEvent]]
"""Gives what has been counted since it was last asked."""


class EventLog:
    """Events of one namespace in SQL.

    Recording is what every lookup waits for, so it keeps the events and nothing else.

    Args:
        database: Connection.
        namespace: Environment.
        breaker: Breaker of SQL, which what is written by itself goes through; not what `flush` is asked to write.
        source: Asked for more whenever events are delivered.
    """

    def __init__(
        self, database: Database, namespace: str, breaker: Breaker | None = None, source: Source = tuple
    ) -> None:
        self._database = database
        self._namespace = namespace
        self._breaker = breaker
        self._source = source
        self._listeners: list[Listener] = []
        self._new: list[CacheEvent] = []  # which listeners do not have yet
        self._buffer: list[CacheEvent] = []
        self._lock = forking.lock()
        self._delivering = forking.rlock()
        self._flushing = forking.rlock()  # the breaker's own events come while others are being written
        self._timer: threading.Timer | None = None
        self.dropped = 0
        _logs.add(self)
        forking.forget_parent_of(self)

    def record(self, events: Iterable[CacheEvent]) -> None:
        """Keep events; they are delivered and in SQL within a moment, or at once when their origin cannot wait."""
        events = list(events)
        urgent = False
        for event in events:  # not any(): one event is the rule, and a generator costs more than all the rest
            urgent = urgent or not event.origin.deferred
        with self._lock:
            self._new += events
            urgent = urgent or len(self._new) > _CROWD_EVENTS
            if not urgent and events:
                self._start_timer()
        if urgent:
            self._flush(self._insert_guarded)

    def settle(self) -> None:
        """Write what is still to come of a worker that cannot wait: the run that it works for may be reported next."""
        if not origin_now().deferred:
            self._flush(self._insert_guarded)

    def expect(self) -> None:
        """See to it that what the source has to give is delivered and written within a moment."""
        with self._lock:
            self._start_timer()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(_FLUSH_SECONDS, self._flush, [self._insert_guarded])
            self._timer.daemon = True
            self._timer.start()

    def listen(self, listener: Listener) -> None:
        """Deliver what is recorded from now on to a function too; it must neither block nor raise."""
        self.deliver()
        self._listeners.append(listener)

    def deliver(self) -> None:
        """Hand what has been recorded to the listeners, each event once."""
        with self._delivering:
            with self._lock:
                new, self._new = [*self._new, *self._source()], []
                self._keep(new)
            for listener in self._listeners if new else ():
                listener(new)

    def flush(self) -> None:
        """Deliver and write what is buffered. When SQL is down it stays buffered, within bounds."""
        self._flush(self._insert)

    def _keep(self, events: list[CacheEvent]) -> None:
        """Buffer events until they are written; of too many, the oldest are dropped."""
        self._buffer += events
        if (excess := len(self._buffer) - _BUFFER_EVENTS) > 0:
            del self._buffer[:excess]
            self.dropped += excess

    def _flush(self, insert: Callable[[Sequence[CacheEvent]], None]) -> None:
        with self._flushing:
            with self._lock:
                self._timer = None  # before anything is taken: what comes from now on sets another
            self.deliver()
            for _ in range(0, len(self._buffer), _PAGE_EVENTS):
                with self._lock:
                    page, self._buffer = self._buffer[:_PAGE_EVENTS], self._buffer[_PAGE_EVENTS:]
                if not page:  # the breaker's own events have been written meanwhile, and the rest with them
                    return
                try:
                    insert(page)
                except TierUnavailableError as error:
                    logger.debug("events kept back: %s", error)
                    with self._lock:
                        rest, self._buffer = self._buffer, page
                        self._keep(rest)
                    return

    def _insert(self, events: Sequence[CacheEvent]) -> None:
        with self._database.begin() as connection:
            connection.execute(sa.insert(_event), [_row(event, self._namespace) for event in events])

    def _insert_guarded(self, events: Sequence[CacheEvent]) -> None:
        if self._breaker is None:
            self._insert(events)
        else:
            self._breaker.call(self._insert, events)

    def of_run(self, flow_run_id: str, *, hits: bool = True) -> list[CacheEvent]:
        """Return the events of a flow run, oldest first; with hits, which may be very many, or without."""
        mine = _event.c.flow_run_id == flow_run_id
        return self._select(mine if hits else mine & ~IS_HIT)

    def of_key(self, key: str) -> list[CacheEvent]:
        """Return the events of a key, oldest first."""
        return self._select(_event.c.key == key)

    def since(self, at: float) -> list[CacheEvent]:
        """Return the events from a time on, oldest first."""
        return self._select(_event.c.at >= at)

    def runs(self, since: float) -> dict[str, float]:
        """Return the flow runs that have events since a time, each with the time of its last one."""
        mine = (_event.c.namespace == self._namespace) & (_event.c.flow_run_id != "") & (_event.c.at >= since)
        statement = sa.select(_event.c.flow_run_id, sa.func.max(_event.c.at)).where(mine).group_by(_event.c.flow_run_id)
        self.flush()
        with self._database.read() as connection:
            return dict(connection.execute(statement).all())

    def forget(self, keys: Sequence[str]) -> int:
        """Erase the events of these keys; return how many."""
        statement = sa.delete(_event).where(_event.c.namespace == self._namespace, _event.c.key.in_(keys))
        self.flush()
        with self._database.begin() as connection:
            return connection.execute(statement).rowcount

    def forget_parent(self) -> None:
        """After a fork: the parent delivers and writes what it has buffered."""
        self._new, self._buffer = [], []
        self._timer = None

    def _select(self, condition: sa.ColumnElement[bool]) -> list[CacheEvent]:
        self.flush()
        statement = sa.select(_event).where(_event.c.namespace == self._namespace, condition).order_by(_event.c.at)
        with self._database.read() as connection:
            return [_event_of(row) for row in connection.execute(statement).mappings()]


_logs: weakref.WeakSet[EventLog] = weakref.WeakSet()


def deliver_all() -> None:
    """Hand what any log of this process still holds to its listeners."""
    for log in list(_logs):
        log.deliver()


@atexit.register
def flush_all() -> None:
    """Write what any log of this process still holds."""
    for log in list(_logs):
        log.flush()


def _row(event: CacheEvent, namespace: str) -> dict[str, Any]:
    # Ids rise with time, so that however many events there are, the next ones go to one end of the index.
    number = f"{int(event.at * 1e6) & _MOMENT:016x}{secrets.token_hex(8)}"
    cause = cause_of(event.outcome, event.reason)
    values = (*_parts_of_event(event), *_parts_of_origin(event.origin), cause, number, namespace)
    return {
        name: _fitting(value, width) if isinstance(value, str) else value
        for (name, width), value in zip(_COLUMNS, values, strict=True)
    }


_MOMENT: Final = (1 << 64) - 1
_OF_EVENT: Final = tuple(each.name for each in fields(CacheEvent) if each.name != "origin")
_OF_ORIGIN: Final = tuple(each.name for each in fields(Origin) if each.name != "deferred")
_parts_of_event = attrgetter(*_OF_EVENT)
_parts_of_origin = attrgetter(*_OF_ORIGIN)
_COLUMNS: Final[tuple[tuple[str, int | None], ...]] = tuple(
    (name, getattr(_event.columns[name].type, "length", None))
    for name in (*_OF_EVENT, *_OF_ORIGIN, "cause", "id", "namespace")
)


def _fitting(value: str, width: int | None) -> str:
    """Return text that every database takes: names of files and errors of servers are anybody's."""
    if value.isascii() and "\x00" not in value:
        return value[:width]
    return value.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")[:width]


def _event_of(row: sa.RowMapping) -> CacheEvent:
    names = {column.name for column in _event.columns} - {"id", "namespace", "cause"}
    values = {name: row[name] for name in names}
    origin = Origin(**{name: values.pop(name) for name in _OF_ORIGIN})
    return replace(CacheEvent(action=values.pop("action"), origin=origin), **values)
