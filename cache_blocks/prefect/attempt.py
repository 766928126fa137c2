"""One attempt of one task run: its key, its lookup, its turn to compute.

The policy makes an attempt when Prefect asks for the key; the result store that it leaves in the run's context
carries it to Prefect's questions (exists? read!) and to the wrapped function, which owns the miss.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from prefect.logging import get_logger, get_run_logger

from cache_blocks import events
from cache_blocks.cache import TieredCache
from cache_blocks.calls import Call, Found
from cache_blocks.entry import NO_VALUE, Lookup, Outcome
from cache_blocks.errors import CacheError, UnhashableArgumentError
from cache_blocks.events import CacheEvent, Origin, originating
from cache_blocks.flights import Ticket, Turn, computing
from cache_blocks.private.privacy import told
from cache_blocks.wording import seconds_in_words

LoggerLike = logging.Logger | logging.LoggerAdapter[Any]


def describe(kind: str, subject: str, lookup: Lookup) -> str:
    """Return the line on a lookup, such as "hit transcript a.mp3 from redis, saved 2.1 s"."""
    if lookup.entry is None:
        outcome = "miss" if lookup.outcome is Outcome.MISS else f"miss ({lookup.outcome.value})"
        return f"{outcome} {kind} {subject}: {lookup.reason}"
    saved = max(lookup.entry.compute_seconds - lookup.seconds, 0.0)
    return f"hit {kind} {subject} from {lookup.tier}, saved {seconds_in_words(saved)}"


@dataclass(slots=True)
class Attempt:
    """One attempt of one task run.

    Attributes:
        cache: The cache.
        call: What is cached; None when the call has no key.
        origin: Whom its events belong to.
        refresh: Whether Prefect was told to compute again.
        wrapped: Whether the task's function is ours (`cached_task`), so that it stores the result itself.
        error: Why there is no key, if `strict` wants that to fail the task.
    """

    cache: TieredCache
    call: Call | None
    origin: Origin
    refresh: bool = False
    wrapped: bool = False
    error: UnhashableArgumentError | None = None
    taken: bool = False
    found: Found | None = field(default=None)
    ticket: Ticket | None = field(default=None)
    value: Any = None
    ended: float = 0.0

    @property
    def key(self) -> str | None:
        """Key of the call."""
        return self.call.key if self.call else None

    @property
    def logger(self) -> LoggerLike:
        """Logger of the task run; made when there is something to say, because every hit would wait for it.

        Outside a flow run, Prefect warns of run loggers: their lines belong to no run that the UI shows.
        """
        return get_run_logger() if self.origin.flow_run_id else get_logger("cache_blocks")

    def look(self) -> bool:
        """Look the key up, once; log what was found in one line; return whether it is a hit."""
        if self.call is None:
            return False
        if self.found is None:
            self.found = self._find(self.call)
            self._log(self.call, self.found.lookup)
            if not self.found.lookup.is_hit:
                self.prepare()
        return self.found.lookup.is_hit

    def hand_over(self) -> Found:
        """Return the hit, whose value is the caller's alone from now on; who asks again gets another one."""
        assert self.call is not None  # noqa: S101 - Prefect reads only after exists() has said yes
        assert self.found is not None  # noqa: S101 - likewise
        if self.found.value is NO_VALUE:
            self.found = self.cache.reader.decode(self.found.lookup, self.call.annotation)
        found, self.found = self.found, Found(self.found.lookup)
        return found

    def _log(self, call: Call, lookup: Lookup) -> None:
        """Say what was found. Of a hit Prefect says enough, unless somebody wants to know from where it came."""
        level = logging.DEBUG if lookup.is_hit else logging.INFO
        if get_logger("task_runs" if self.origin.flow_run_id else "cache_blocks").isEnabledFor(level):
            self.logger.log(level, describe(call.kind.name, self.origin.subject, lookup))

    def _find(self, call: Call) -> Found:
        try:
            with originating(self.origin):
                return self.cache.find_call(call)
        except Exception as error:
            why = told(error, private=True) if call.private else repr(error)
            self.logger.error(  # noqa: TRY400 - a traceback would quote what is private
                "lookup of %s failed for a reason that was not foreseen: %s", call.key, why, exc_info=not call.private
            )
            return Found(Lookup(Outcome.MISS, reason=why))

    def prepare(self) -> None:
        """Number the computation that Prefect is about to run by itself, without our wrapper."""
        if not self.wrapped and self.call is not None:
            self.ticket = self.cache.computations.flight(self.call, refresh=True).step().ticket

    def bypass(self, kind: str, reason: str) -> None:
        """Record that this call, of this kind, looked away."""
        with originating(self.origin):
            self.cache.record([CacheEvent(events.LOOKUP, kind, self.key or "", Outcome.BYPASSED, reason=reason)])

    def run(self, function: Callable[[], Any]) -> Any:
        """Compute, or take the result of whoever computes it already."""
        call = self._take()
        with originating(self.origin):
            return self.cache.compute(call, function, refresh=self.refresh)

    async def arun(self, function: Callable[[], Awaitable[Any]]) -> Any:
        """Do as `run` does, and leave the event loop free."""
        call = self._take()
        with originating(self.origin):
            flight = self.cache.computations.flight(call, refresh=self.refresh)
            while (turn := await self._step(flight.step)).wait:  # noqa: ASYNC110 - another process has no event for us
                await asyncio.sleep(turn.wait)
            if turn.hit is not None:
                return self.cache.computations.share(call, turn.hit)
            ticket = turn.ticket or Ticket(call.key)
            try:
                with computing(ticket):
                    value = await function()
            except BaseException:
                await asyncio.shield(asyncio.to_thread(self.cache.computations.give_up, ticket))
                raise
            return await asyncio.shield(asyncio.to_thread(self.cache.computations.keep, call, ticket, value))

    def computed(self, value: Any, *, stored_later: bool) -> None:
        """Note what Prefect computed by itself; a copy, if a transaction stores it after its caller may change it."""
        self.ended = time.monotonic()
        self.value = _copy_of(value) if stored_later and not self.wrapped else value

    def store(self) -> None:
        """Store what Prefect computed by itself, if it comes back equal; say so if it does not."""
        if self.wrapped or self.call is None or self.ticket is None:
            return
        self.ticket.started += time.monotonic() - self.ended  # a transaction's time is not the task's
        with originating(self.origin):
            self.cache.computations.keep(self.call, self.ticket, self.value, only_if_equal=True)

    def _take(self) -> Call:
        """Mark the attempt as used, so that a plain call of the function inside it is a plain call."""
        self.taken = True
        if self.error is not None:
            raise self.error
        if self.call is None:
            raise CacheError("an attempt without a key computes nothing")
        return self.call

    async def _step(self, step: Callable[[], Turn]) -> Turn:
        """Step in a thread; a lease that is granted while the task is being cancelled goes back.

        The thread sees to that: whoever cancels may cancel every further await too, as anyio does.
        """
        stepped = Future[Turn]()

        def in_thread() -> Turn:
            try:
                stepped.set_result(step())
            except BaseException as error:
                stepped.set_exception(error)
                raise
            return stepped.result()

        try:
            return await asyncio.to_thread(in_thread)
        except asyncio.CancelledError:
            stepped.add_done_callback(self._hand_back)
            raise

    def _hand_back(self, stepped: Future[Turn]) -> None:
        if stepped.exception() is None and (ticket := stepped.result().ticket) is not None:
            self.cache.computations.give_up(ticket)


def _copy_of(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - what cannot be copied cannot be stored either, which storing it will say
        return value
