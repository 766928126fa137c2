"""One attempt of one task run: its key, its lookup, its turn to compute.

The policy makes an attempt when Prefect asks for the key; the result store that it leaves in the run's context
carries it to Prefect's questions (exists? read!) and to the wrapped function, which owns the miss.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cache_blocks import events
from cache_blocks.cache import Call, Found, TieredCache
from cache_blocks.entry import Lookup, Outcome
from cache_blocks.errors import CacheError, UnhashableArgumentError
from cache_blocks.events import CacheEvent, Origin, originating
from cache_blocks.flights import Ticket, Turn, computing

LoggerLike = logging.Logger | logging.LoggerAdapter[Any]


@dataclass(slots=True)
class Attempt:
    """One attempt of one task run.

    Attributes:
        cache: The cache.
        call: What is cached; None when the call has no key.
        origin: Whom its events belong to.
        logger: The task run's logger.
        refresh: Whether Prefect was told to compute again.
        wrapped: Whether the task's function is ours (`cached_task`), so that it stores the result itself.
        error: Why there is no key, if `strict` wants that to fail the task.
    """

    cache: TieredCache
    call: Call | None
    origin: Origin
    logger: LoggerLike
    refresh: bool = False
    wrapped: bool = False
    error: UnhashableArgumentError | None = None
    taken: bool = False
    found: Found | None = field(default=None)
    ticket: Ticket | None = field(default=None)

    @property
    def key(self) -> str | None:
        """Key of the call."""
        return self.call.key if self.call else None

    def look(self) -> bool:
        """Look the key up, once; log what was found in one line; return whether it is a hit."""
        if self.call is None:
            return False
        if self.found is None:
            with self.attributed():
                self.found = self.cache.find([self.call.request], self.call.annotation)[self.call.key]
            self.logger.info(self.describe(self.found.lookup))
            if not self.found.lookup.is_hit:
                self.prepare()
        return self.found.lookup.is_hit

    def prepare(self) -> None:
        """Number the computation that Prefect is about to run by itself, without our wrapper."""
        if not self.wrapped and self.call is not None:
            self.ticket = self.cache.flight(self.call, refresh=True).step().ticket

    def bypass(self, reason: str) -> None:
        """Record that this call looked away."""
        kind = self.call.kind.name if self.call else ""
        lookup = Lookup(Outcome.BYPASSED, reason=reason)
        with self.attributed():
            self.cache.record([CacheEvent(events.LOOKUP, kind, self.key or "", lookup.outcome, reason=reason)])

    def describe(self, lookup: Lookup) -> str:
        """Return the line on a lookup, such as "hit transcript a.mp3 from redis, saved 2.1 s"."""
        what = f"{self.call.kind.name if self.call else ''} {self.origin.subject}".strip()
        if lookup.entry is None:
            outcome = "miss" if lookup.outcome is Outcome.MISS else f"miss ({lookup.outcome.value})"
            return f"{outcome} {what}: {lookup.reason}"
        return f"hit {what} from {lookup.tier}, saved {lookup.entry.compute_seconds - lookup.seconds:.1f} s"

    def run(self, function: Callable[[], Any]) -> Any:
        """Compute, or take the result of whoever computes it already."""
        call = self._take()
        with self.attributed():
            return self.cache.compute(call, function, refresh=self.refresh)

    async def arun(self, function: Callable[[], Awaitable[Any]]) -> Any:
        """Do as `run` does, and leave the event loop free."""
        call = self._take()
        with self.attributed():
            flight = self.cache.flight(call, refresh=self.refresh)
            while (turn := await self._step(flight.step)).wait:
                await asyncio.sleep(turn.wait)
            if turn.hit is not None:
                return await asyncio.to_thread(self.cache.take, call, turn.hit)
            ticket = turn.ticket or Ticket(call.key)
            try:
                with computing(ticket):
                    value = await function()
            except BaseException:
                await asyncio.shield(asyncio.to_thread(self.cache.give_up, ticket))
                raise
            return await asyncio.to_thread(self.cache.keep, call, ticket, value)

    def store(self, value: Any) -> None:
        """Store what Prefect computed by itself, if it comes back equal; say so if it does not."""
        if self.wrapped or self.call is None or self.ticket is None:
            return
        with self.attributed():
            decoded = self.cache.keep(self.call, self.ticket, value, only_if_equal=True)
        del decoded

    @contextmanager
    def attributed(self) -> Iterator[None]:
        """Attribute events to this task run."""
        with originating(self.origin):
            yield

    def _take(self) -> Call:
        """Mark the attempt as used, so that a plain call of the function inside it is a plain call."""
        self.taken = True
        if self.error is not None:
            raise self.error
        if self.call is None:
            raise CacheError("an attempt without a key computes nothing")
        return self.call

    async def _step(self, step: Callable[[], Turn]) -> Turn:
        """Step in a thread; a lease that is granted while the task is being cancelled goes back."""
        stepping = asyncio.ensure_future(asyncio.to_thread(step))
        try:
            return await asyncio.shield(stepping)
        except asyncio.CancelledError:
            turn = await stepping
            if turn.ticket is not None:
                await asyncio.to_thread(self.cache.give_up, turn.ticket)
            raise
