"""Leases: the right to compute a key, with an end, renewed while its holder lives.

A holder that dies loses its lease when the lease ends. A holder whose computation fails leaves a mark, so
that those who waited for it go on at once and not one after another.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import weakref
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import redis
import sqlalchemy as sa

from cache_blocks.errors import TierUnavailableError
from cache_blocks.schema import LeaseRow, table
from cache_blocks.tiers.base import describe

if TYPE_CHECKING:
    from cache_blocks.database import Database
    from cache_blocks.tiers.breaker import Breaker

logger = logging.getLogger("cache_blocks")

FAILURE_MARK_SECONDS: Final = 2.0
"""How long a failure stays visible; longer than any waiter's poll."""

_lease = table(LeaseRow)


class LeaseState(StrEnum):
    """What there is under a key."""

    FREE = "free"
    MINE = "mine"
    HELD = "held"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class LeaseView:
    """State of a lease, and whose it is.

    Attributes:
        state: What there is.
        token: Identity of the attempt that holds it, or whose failure is marked.
    """

    state: LeaseState
    token: str = ""


class LeaseBook(ABC):
    """Where leases are kept. Every method raises `TierUnavailableError` when that place is down.

    Args:
        namespace: Environment that the keys belong to.
        seconds: Length of a lease.
    """

    def __init__(self, namespace: str, seconds: float) -> None:
        self.namespace = namespace
        self.seconds = seconds

    @abstractmethod
    def acquire(self, key: str, token: str) -> LeaseView:
        """Take the lease if it is free or marked as failed; MINE on success, else whose it is."""

    @abstractmethod
    def view(self, key: str) -> LeaseView:
        """Return what there is, and change nothing."""

    @abstractmethod
    def renew(self, key: str, token: str) -> bool:
        """Extend the lease if it is still this attempt's; return whether it is."""

    @abstractmethod
    def release(self, key: str, token: str, *, failed: bool = False) -> None:
        """Give the lease back if it is still this attempt's, leaving a mark if its computation failed."""


_ACQUIRE: Final = """
local held = redis.call('GET', KEYS[1])
if held and string.sub(held, 1, 1) == 'h' then return held end
redis.call('SET', KEYS[1], 'h' .. ARGV[1], 'PX', ARGV[2])
return 'm' .. ARGV[1]
"""
_RENEW: Final = """
if redis.call('GET', KEYS[1]) ~= 'h' .. ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
_RELEASE: Final = """
if redis.call('GET', KEYS[1]) ~= 'h' .. ARGV[1] then return 0 end
if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], 'f' .. ARGV[1], 'PX', ARGV[2])
return 1
"""


class RedisLeases(LeaseBook):
    """Leases in Redis: one small key each, with an end."""

    _outages: ClassVar[tuple[type[Exception], ...]] = (redis.RedisError, OSError)

    def __init__(self, client: redis.Redis, namespace: str, seconds: float) -> None:
        super().__init__(namespace, seconds)
        self._client = client

    def acquire(self, key: str, token: str) -> LeaseView:
        """See `LeaseBook.acquire`."""
        return _parse(self._run(_ACQUIRE, key, token, int(self.seconds * 1000)))

    def view(self, key: str) -> LeaseView:
        """See `LeaseBook.view`."""
        try:
            return _parse(cast("bytes | None", self._client.get(self._name(key))))
        except self._outages as error:
            raise TierUnavailableError("redis", describe(error)) from error

    def renew(self, key: str, token: str) -> bool:
        """See `LeaseBook.renew`."""
        return bool(self._run(_RENEW, key, token, int(self.seconds * 1000)))

    def release(self, key: str, token: str, *, failed: bool = False) -> None:
        """See `LeaseBook.release`."""
        self._run(_RELEASE, key, token, int(FAILURE_MARK_SECONDS * 1000) if failed else 0)

    def _name(self, key: str) -> str:
        return f"cache-blocks:{self.namespace}:lease:{key}"

    def _run(self, script: str, key: str, *arguments: Any) -> Any:
        try:
            return self._client.eval(script, 1, self._name(key), *arguments)  # pyright: ignore[reportUnknownMemberType]
        except self._outages as error:
            raise TierUnavailableError("redis", describe(error)) from error


def _parse(value: bytes | None) -> LeaseView:
    if not value:
        return LeaseView(LeaseState.FREE)
    states = {"h": LeaseState.HELD, "f": LeaseState.FAILED, "m": LeaseState.MINE}
    text = value.decode()
    return LeaseView(states[text[0]], text[1:])


class SqlLeases(LeaseBook):
    """Leases in SQL, for where no Redis is configured. Time is the database's, so that workers' clocks may differ."""

    def __init__(self, database: Database, namespace: str, seconds: float) -> None:
        super().__init__(namespace, seconds)
        self._database = database

    def acquire(self, key: str, token: str) -> LeaseView:
        """See `LeaseBook.acquire`."""
        now = self._database.now()
        row: dict[str, Any] = {"namespace": self.namespace, "key": key, "token": token, "failed": False}
        statement = self._database.upsert(_lease).values(row | {"expires_at": now + self.seconds})
        statement = statement.on_conflict_do_update(
            index_elements=["namespace", "key"],
            set_={name: statement.excluded[name] for name in ("token", "failed", "expires_at")},
            where=(_lease.c.expires_at <= now) | _lease.c.failed,
        )
        with self._database.begin() as connection:
            if connection.execute(statement.returning(_lease.c.token)).one_or_none() is not None:
                return LeaseView(LeaseState.MINE, token)
        return self.view(key)

    def view(self, key: str) -> LeaseView:
        """See `LeaseBook.view`."""
        with self._database.read() as connection:
            row = connection.execute(
                sa.select(_lease.c.token, _lease.c.failed).where(
                    self._is(key), _lease.c.expires_at > self._database.now()
                )
            ).one_or_none()
        if row is None:
            return LeaseView(LeaseState.FREE)
        return LeaseView(LeaseState.FAILED if row.failed else LeaseState.HELD, row.token)

    def renew(self, key: str, token: str) -> bool:
        """See `LeaseBook.renew`."""
        now = self._database.now()
        statement = sa.update(_lease).where(self._is(key), _lease.c.token == token, _lease.c.expires_at > now)
        with self._database.begin() as connection:
            return connection.execute(statement.values(expires_at=now + self.seconds)).rowcount > 0

    def release(self, key: str, token: str, *, failed: bool = False) -> None:
        """See `LeaseBook.release`."""
        mine = self._is(key) & (_lease.c.token == token)
        mark = sa.update(_lease).where(mine).values(failed=True, expires_at=self._database.now() + FAILURE_MARK_SECONDS)
        with self._database.begin() as connection:
            connection.execute(mark if failed else sa.delete(_lease).where(mine))

    def _is(self, key: str) -> Any:
        return (_lease.c.namespace == self.namespace) & (_lease.c.key == key)


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
        _keepers.add(self)

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
            logger.warning("lease of %s has gone to another; its result will not win", key)


_keepers: weakref.WeakSet[LeaseKeeper] = weakref.WeakSet()


def _after_fork() -> None:
    for keeper in list(_keepers):
        keeper.forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
