"""Keeping leases: one thread renews those that this process holds, while it holds any."""

from __future__ import annotations

import logging
import secrets
import threading
from typing import TYPE_CHECKING

from cache_blocks import forking
from cache_blocks.errors import TierUnavailableError
from cache_blocks.leases import LeaseBook, LeaseState, LeaseView

if TYPE_CHECKING:
    from cache_blocks.tiers.breaker import Breaker

logger = logging.getLogger("cache_blocks")


class LeaseKeeper:
    """Renews the leases that this process holds, from one daemon thread that runs while there are any.

    Args:
        book: Where the leases are.
        breaker: Breaker of that place.
    """

    def __init__(self, book: LeaseBook, breaker: Breaker) -> None:
        self._book = book
        self._breaker = breaker
        self._held: dict[str, str] = {}
        self._wake = threading.Condition()
        self._running = False
        forking.forget_parent_of(self)

    def view(self, key: str) -> LeaseView:
        """Return what there is; see `LeaseBook.view`."""
        return self._breaker.call(self._book.view, key)

    def acquire(self, key: str) -> LeaseView:
        """Take a lease and keep it renewed; see `LeaseBook.acquire`."""
        token = secrets.token_hex(12)
        view = self._breaker.call(self._book.acquire, key, token)
        if view.state is LeaseState.MINE:
            with self._wake:
                self._held[key] = view.token
                if not self._running:
                    self._running = True
                    threading.Thread(target=self._renew_all, name="cache-blocks-leases", daemon=True).start()
        return view

    def release(self, key: str, token: str, *, failed: bool = False) -> None:
        """Stop renewing and give the lease back; one that cannot be given back ends by itself."""
        with self._wake:
            if self._held.get(key) == token:
                del self._held[key]
            self._wake.notify_all()
        try:
            self._breaker.call(self._book.release, key, token, failed=failed)
        except TierUnavailableError as error:
            logger.debug("lease of %s ends by itself: %s", key, error)

    def forget_parent(self) -> None:
        """After a fork: the leases are the parent's, and so is the thread."""
        self._held = {}
        self._wake = threading.Condition()
        self._running = False

    def _renew_all(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: not self._held, timeout=self._book.seconds / 3)
                if not self._held:
                    self._running = False
                    return
                held = dict(self._held)
            for key, token in held.items():
                self._renew(key, token)

    def _renew(self, key: str, token: str) -> None:
        try:
            kept = self._breaker.call(self._book.renew, key, token)
        except TierUnavailableError as error:
            logger.debug("lease of %s not renewed this time: %s", key, error)
            return
        if not kept:
            with self._wake:
                if self._held.get(key) == token:
                    del self._held[key]
            self._say_lost(key)

    def _say_lost(self, key: str) -> None:
        try:
            gone_to_another = self.view(key).state is LeaseState.HELD
        except TierUnavailableError:
            gone_to_another = False
        if gone_to_another:
            logger.warning("lease of %s has gone to another; its result will not win", key)
        else:
            logger.warning(
                "lease of %s is gone before its work was done: where leases are kept was emptied or started anew, or "
                "this process stood still; another may compute the same, and then the later of both wins",
                key,
            )
