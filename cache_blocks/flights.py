"""One computation of a key at a time: whose turn it is, and what is kept of the result.

A flight is stepped, not awaited, so that threads sleep and coroutines yield between the same steps.
"""

from __future__ import annotations

import contextvars
import random
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cache_blocks.errors import TierUnavailableError
from cache_blocks.leases import LeaseState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cache_blocks.calls import Found
    from cache_blocks.lease_keeper import LeaseKeeper
    from cache_blocks.leases import LeaseView

_FIRST_WAIT: Final = 0.01
_LONGEST_WAIT: Final = 0.25

_computing: contextvars.ContextVar[frozenset[tuple[str, str]]] = contextvars.ContextVar(
    "cache_blocks_computing", default=frozenset[tuple[str, str]]()
)
"""Namespaces and keys."""


@dataclass(slots=True)
class Ticket:
    """The right to compute a key and to store what comes out.

    Attributes:
        key: The key.
        token: Identity of the lease; empty without one.
        fence: Fencing number; of two writers the higher one wins.
        generations: Numbers of the key's scopes when computing began; None when they could not be learnt, so
            that the result cannot be stored.
        started: When computing began, on the monotonic clock.
        usage: What the computation has consumed so far.
        namespace: Environment that the key belongs to.
    """

    key: str
    token: str = ""
    fence: int = 0
    generations: Mapping[str, int] | None = None
    started: float = field(default_factory=time.monotonic)
    usage: dict[str, float] = field(default_factory=dict[str, float])
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """What to do next: take the hit, compute with the ticket, or step again after ``wait`` seconds."""

    hit: Found | None = None
    ticket: Ticket | None = None
    wait: float = 0.0


class Flight:
    """The way of one caller from a miss to a result.

    Args:
        key: The key that was missed.
        scopes: Scopes of the entry to be.
        look: Looks the key up again, and decodes it.
        leases: Leases; None to compute without, as a refresh does.
        begin: Numbers a computation, see `Generations.begin`; None when its result will not be stored.
        on_unleased: Called with the reason when there can be no lease.
        namespace: Environment that the key belongs to.
    """

    def __init__(
        self,
        key: str,
        scopes: tuple[str, ...],
        *,
        look: Callable[[], Found],
        leases: LeaseKeeper | None,
        begin: Callable[[tuple[str, ...]], tuple[int, Mapping[str, int]]] | None,
        on_unleased: Callable[[str], None],
        namespace: str = "",
    ) -> None:
        self._key = key
        self._namespace = namespace
        self._scopes = scopes
        self._look = look
        self._leases = leases
        self._begin = begin
        self._on_unleased = on_unleased
        self._waited_for = ""
        self._wait = _FIRST_WAIT

    def step(self) -> Turn:
        """Return what to do next."""
        if self._leases is None or (self._namespace, self._key) in _computing.get():
            return Turn(ticket=self._ticket(""))
        try:
            return self._step(self._leases)
        except TierUnavailableError as error:
            if self._waited_for and (found := self._look()).lookup.is_hit:
                return Turn(hit=found)  # whom we waited for has finished, and cannot say so
            self._on_unleased(str(error))
            return Turn(ticket=self._ticket(""))

    def _step(self, leases: LeaseKeeper) -> Turn:
        if self._waited_for:
            view = leases.view(self._key)
            if view.state is LeaseState.HELD and view.token == self._waited_for:
                return self._again(view)
            if view.state is LeaseState.FAILED and view.token == self._waited_for:
                return Turn(ticket=self._ticket(""))
            if (found := self._look()).lookup.is_hit:
                return Turn(hit=found)
        view = leases.acquire(self._key)
        if view.state is not LeaseState.MINE:
            self._waited_for = view.token
            return self._again(view)
        try:
            found = self._look()
            turn = Turn(hit=found) if found.lookup.is_hit else Turn(ticket=self._ticket(view.token))
        except BaseException:
            leases.release(self._key, view.token)  # or it would be renewed for as long as this process lives
            raise
        if turn.hit is not None:
            leases.release(self._key, view.token)
        return turn

    def _again(self, view: LeaseView) -> Turn:
        """Wait longer each time, and not in step with the others; never past the end of the lease."""
        wait = self._wait * random.uniform(0.5, 1.0)  # noqa: S311 - spreads polls, guards nothing
        wait = min(wait, max(view.seconds_left, _FIRST_WAIT))
        self._wait = min(self._wait * 1.5, _LONGEST_WAIT)
        return Turn(wait=wait)

    def _ticket(self, token: str) -> Ticket:
        """Number the computation before it begins; what is invalidated from now on will not be served."""
        ticket = Ticket(self._key, token, namespace=self._namespace)
        if self._begin is not None:
            with suppress(TierUnavailableError):
                ticket.fence, ticket.generations = self._begin(self._scopes)
        return ticket


_usage: contextvars.ContextVar[dict[str, float] | None] = contextvars.ContextVar("cache_blocks_usage", default=None)


@contextmanager
def computing(ticket: Ticket) -> Generator[None]:
    """Mark that this context computes the ticket's key: an equal call inside it does not wait for itself."""
    held = _computing.set(_computing.get() | {(ticket.namespace, ticket.key)})
    noted = _usage.set(ticket.usage)
    ticket.started = time.monotonic()
    try:
        yield
    finally:
        _usage.reset(noted)
        _computing.reset(held)


def record_usage(**amounts: float) -> None:
    """Note what the running task has consumed, such as ``tokens_in=120`` or ``audio_seconds=12.5``.

    Amounts of several calls add up and are kept with the entry. Outside a cached task it does nothing.
    """
    usage = _usage.get()
    if usage is None:
        return
    for name, amount in amounts.items():
        usage[name] = usage.get(name, 0.0) + float(amount)
