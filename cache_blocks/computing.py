"""What happens on a miss: take a turn, compute, keep the result; or share that of an equal call."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from cache_blocks import events
from cache_blocks.calls import Call, Found
from cache_blocks.costs import Prices
from cache_blocks.errors import (
    BlobMissingError,
    ConfigurationError,
    PrivateKeyMissingError,
    TierUnavailableError,
    UnsupportedValueError,
)
from cache_blocks.flights import Flight, Ticket, computing
from cache_blocks.private.privacy import told
from cache_blocks.writing import Computed

if TYPE_CHECKING:
    from cache_blocks.assembly import Parts
    from cache_blocks.values import Encoded

logger = logging.getLogger("cache_blocks")


class Computations:
    """Computes what was missed, once for all equal calls.

    Args:
        parts: The tiers and what keeps them together.
        record: Takes events.
        prices_of: Gives what results of a kind cost.
        writes: Whether results are stored, and leases taken.
    """

    def __init__(
        self,
        parts: Parts,
        record: Callable[[Iterable[events.CacheEvent]], None],
        prices_of: Callable[[str], Prices],
        *,
        writes: bool,
    ) -> None:
        self._parts = parts
        self._record = record
        self._prices_of = prices_of
        self._writes = writes

    def run(self, call: Call, function: Callable[[], Any], *, refresh: bool = False) -> Any:
        """Compute what a lookup has missed, or take the result of whoever computes it already."""
        flight = self.flight(call, refresh=refresh)
        while (turn := flight.step()).wait:
            time.sleep(turn.wait)
        if turn.hit is not None:
            return self.share(call, turn.hit)
        ticket = turn.ticket or Ticket(call.key)
        try:
            with computing(ticket):
                value = function()
        except BaseException:
            self.give_up(ticket)
            raise
        return self.keep(call, ticket, value)

    def flight(self, call: Call, *, refresh: bool = False) -> Flight:
        """Return the way from a miss to a result, to be stepped by who wants it; a refresh waits for nobody."""

        def unleased(why: str) -> None:
            self._record([events.CacheEvent(events.UNLEASED, call.kind.name, call.key, reason=why)])

        return Flight(
            call.key,
            call.scopes,
            look=lambda: self._parts.reader.find([call.request], call.annotation)[call.key],
            leases=self._parts.leases if self._writes and not refresh else None,
            begin=self._parts.begin if self._writes else None,
            on_unleased=unleased,
            namespace=self._parts.chain.namespace,
        )

    def share(self, call: Call, found: Found) -> Any:
        """Return the result of an equal call that a flight has met, and record that it was shared."""
        self._record([events.CacheEvent(events.SHARED, call.kind.name, call.key, tier=found.lookup.tier)])
        return found.value

    def keep(self, call: Call, ticket: Ticket, value: Any, *, only_if_equal: bool = False) -> Any:
        """Store a computed value and return it as a later hit will; what cannot be encoded is returned as it is.

        Args:
            call: What was computed.
            ticket: The right to store it.
            value: The result.
            only_if_equal: Refuse a value that would come back different, because its caller has it already.
        """
        seconds = time.monotonic() - ticket.started
        money = self._prices_of(call.kind.name).cost(ticket.usage, seconds)
        self._record([events.CacheEvent(events.COMPUTED, call.kind.name, call.key, seconds=seconds, money=money)])
        try:
            if only_if_equal:
                self._parts.writer.check_equal(call, value)
            encoded = self._parts.writer.encode(call, value)
            stored = self._store(call, ticket, encoded, seconds)
            if encoded.files and not stored:
                return value  # with the produced files, which are nowhere else
            return self._parts.reader.value_of_json(encoded.json, call.annotation)
        except (UnsupportedValueError, ConfigurationError, PrivateKeyMissingError) as error:
            why = told(error, private=call.private)
            logger.error("result of %s is not cached: %s", call.key, why)  # noqa: TRY400 - the message says it all
            self._unstored(call, error)
            return value
        except Exception as error:
            logger.error(  # noqa: TRY400 - a traceback would quote what is private
                "result of %s is not cached, for a reason that was not foreseen: %s",
                call.key,
                told(error, private=call.private),
                exc_info=not call.private,
            )
            self._unstored(call, error)
            return value
        finally:
            self._release(ticket, failed=False)
            self._parts.events.settle()

    def _store(self, call: Call, ticket: Ticket, encoded: Encoded, seconds: float) -> bool:
        """Store, and report rather than raise what the tiers do not take; return whether it was stored."""
        if not self._writes:
            return False
        try:
            return bool(self._parts.writer.store([Computed(call, ticket, encoded, seconds)]))
        except (BlobMissingError, ConfigurationError, PrivateKeyMissingError, TierUnavailableError) as error:
            self._unstored(call, error)
            return False

    def _unstored(self, call: Call, error: Exception) -> None:
        why = told(error, private=call.private)
        self._record([events.CacheEvent(events.UNSTORED, call.kind.name, call.key, reason=why)])

    def give_up(self, ticket: Ticket) -> None:
        """Let the waiters of a failed computation go on."""
        self._release(ticket, failed=True)

    def _release(self, ticket: Ticket, *, failed: bool) -> None:
        if ticket.token:
            self._parts.leases.release(ticket.key, ticket.token, failed=failed)
