"""A circuit breaker: a tier that fails is skipped, and probed by one caller at a time until it is back.

A tier that is full has not failed: it is asked on, what it does not take is lost to it, and the log says so once.

pybreaker, the usual library, holds its lock while the guarded call runs, which would make every lookup of a
process wait for the others; hence these few lines. The pattern is Michael Nygard's ("Release It!", 2007).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from cache_blocks import forking
from cache_blocks.errors import TierFullError, TierUnavailableError

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("cache_blocks")


class Breaker:
    """Guards the calls to one tier.

    Args:
        tier: Name of the tier.
        reset_seconds: How long a failed tier is skipped before it is probed.
        before_close: Called before a probe, to bring the tier up to date; raising `TierUnavailableError` keeps it
            out.
        on_change: Called with True when the tier goes and False when it returns.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        tier: str,
        reset_seconds: float = 5.0,
        *,
        before_close: Callable[[], None] | None = None,
        on_change: Callable[[str, bool, str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tier = tier
        self._reset_seconds = reset_seconds
        self._before_close = before_close
        self._on_change = on_change
        self._clock = clock
        self._lock = forking.lock()
        self._open_until: float | None = None
        self._probe: object | None = None
        self._full_at: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether the tier is being skipped."""
        return self._open_until is not None

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the tier.

        Raises:
            TierFullError: It answers, and has no room.
            TierUnavailableError: It failed now, or failed a short while ago and was not asked.
        """
        probe = self._admit()
        if probe is not None:
            self._prepare(probe)
        try:
            answer = function(*args, **kwargs)
        except TierUnavailableError as error:
            if isinstance(error, TierFullError) and error.tier == self._tier:
                self._note_full(error.why)
                self._close(probe)
            elif probe is not None or error.tier == self._tier:  # a probe that fails for another's sake has failed
                self.trip(error.why)
            raise
        except BaseException:
            self._probe_over(probe)
            raise
        self._close(probe)
        return answer

    def write(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the tier with what it is to keep; raises as `call` does."""
        answer = self.call(function, *args, **kwargs)
        if self._full_at is not None and self._clock() - self._full_at >= self._reset_seconds:  # or a little may fit
            self._full_at = None
            logger.warning("%s takes writes again", self._tier)
        return answer

    def _note_full(self, why: str) -> None:
        with self._lock:
            went = self._full_at is None
            self._full_at = self._clock()
        if went:
            logger.warning("%s has no room (%s); it is read on, and what it does not take is lost", self._tier, why)

    def trip(self, why: str) -> None:
        """Skip the tier from now on; a probe that is under way will not bring it back."""
        with self._lock:
            went = self._open_until is None
            self._open_until = self._clock() + self._reset_seconds
            self._probe = None
        if went:
            logger.warning("%s is down (%s); going on without it, and trying again", self._tier, why)
            if self._on_change is not None:
                self._on_change(self._tier, True, why)

    def _admit(self) -> object | None:
        """Return this call's mark if it is a probe; raise when the tier is to be skipped."""
        if not self.is_open:
            return None
        with self._lock:
            if self._open_until is None:
                return None
            if self._probe is not None or self._clock() < self._open_until:
                raise TierUnavailableError(self._tier, "skipped, it failed a moment ago")
            self._probe = object()
            return self._probe

    def _prepare(self, probe: object) -> None:
        """Bring the tier up to date first: what is read before it has caught up may be out of date."""
        try:
            if self._before_close is not None:
                self._before_close()
        except TierUnavailableError as error:
            self.trip(error.why)
            raise
        except BaseException:
            self._probe_over(probe)
            raise

    def _probe_over(self, probe: object | None) -> None:
        with self._lock:
            if self._probe is probe:
                self._probe = None

    def _close(self, probe: object | None) -> None:
        if probe is None:
            return
        with self._lock:
            if self._probe is not probe:
                return  # the tier failed again meanwhile, or could not be told of an invalidation
            self._open_until = None
            self._probe = None
        logger.warning("%s is back", self._tier)
        if self._on_change is not None:
            self._on_change(self._tier, False, "")
