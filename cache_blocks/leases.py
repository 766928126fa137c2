"""Leases: the right to compute a key, with an end, renewed while its holder lives.

A holder that dies loses its lease when the lease ends. A holder whose computation fails leaves a mark, so
that those who waited for it go on at once and not one after another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from cache_blocks.schema import LeaseRow, table
from cache_blocks.tiers.base import unavailable
from cache_blocks.tiers.redis_servers import OUTAGES, Script

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cache_blocks.database import Database
    from cache_blocks.tiers.redis_servers import RedisServers

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
        seconds_left: When a held one ends, unless it is renewed; it is free then.
    """

    state: LeaseState
    token: str = ""
    seconds_left: float = field(default=0.0, compare=False)


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


_HELD: Final = """
local held = redis.pcall('GET', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
if type(held) ~= 'string' or left <= 0 then held = '' end
"""
"""What is of another type, or has no end, is no lease."""
_ACQUIRE: Final = f"""{_HELD}
if string.sub(held, 1, 1) == 'h' then return {{held, left}} end
redis.call('SET', KEYS[1], 'h' .. ARGV[1], 'PX', ARGV[2])
return {{'m' .. ARGV[1], ARGV[2]}}
"""
_VIEW: Final = f"""{_HELD}
return {{held, left}}
"""
_RENEW: Final = f"""{_HELD}
if held ~= 'h' .. ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
_RELEASE: Final = f"""{_HELD}
if held ~= 'h' .. ARGV[1] then return 0 end
if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], 'f' .. ARGV[1], 'PX', ARGV[2])
return 1
"""


class RedisLeases(LeaseBook):
    """Leases in Redis: one small key each, with an end."""

    def __init__(self, servers: RedisServers, namespace: str, seconds: float) -> None:
        super().__init__(namespace, seconds)
        self._servers = servers

    def acquire(self, key: str, token: str) -> LeaseView:
        """See `LeaseBook.acquire`."""
        return _parse(self._run(_ACQUIRE, key, token, int(self.seconds * 1000)))

    def view(self, key: str) -> LeaseView:
        """See `LeaseBook.view`."""
        return _parse(self._run(_VIEW, key))

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
            (answer,), _ = self._servers.run([Script(script, self._name(key), arguments)])
        except OUTAGES as error:
            raise unavailable("redis", error) from error
        return answer


def _parse(answer: Sequence[Any]) -> LeaseView:
    states = {b"h": LeaseState.HELD, b"f": LeaseState.FAILED, b"m": LeaseState.MINE}
    value, left = bytes(answer[0]), float(answer[1])
    if value[:1] not in states or not value.isascii():
        return LeaseView(LeaseState.FREE)
    return LeaseView(states[value[:1]], value[1:].decode(), left / 1000)


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
        left = _lease.c.expires_at - self._database.now()
        with self._database.read() as connection:
            statement = sa.select(_lease.c.token, _lease.c.failed, left.label("left")).where(self._is(key), left > 0)
            row = connection.execute(statement).one_or_none()
        if row is None:
            return LeaseView(LeaseState.FREE)
        return LeaseView(LeaseState.FAILED if row.failed else LeaseState.HELD, row.token, float(row.left))

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
