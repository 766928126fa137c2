"""Connections that are kept between two questions, because taking one from redis-py's pool costs half a lookup.

Each knows which history of the data its server has (`redis_history`), so every answer comes with the name of the one
that vouches for it. What is sent and what is read are two steps: several servers can be asked at once.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cache_blocks.tiers.redis_history import greet, history_of, learn, learnt_at

Command = tuple[Any, ...]

HISTORY: Final = object()
"""Stands in a command for the name of the history that it is sent to."""

_MOST: Final = 8
"""Connections that are kept; the pool has more, for what else there is to do."""
_DOUBT_SECONDS: Final = 1.0
"""At most so often are histories asked for because a copy named another one."""


def make_pool(options: Mapping[str, Any], timeout_seconds: float) -> redis.BlockingConnectionPool:
    """Return a pool that makes who wants a connection wait, so that waiting is not mistaken for an outage.

    Args:
        options: Arguments of redis-py's connections and pools.
        timeout_seconds: Limit for connecting and for each reply.
    """
    ours: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "retry": Retry(NoBackoff(), 0),
        "max_connections": 32,
        "timeout": None,
        "redis_connect_func": greet,
    }
    return redis.BlockingConnectionPool(**{**ours, **options})


class Pending:
    """Questions that are on their way.

    Attributes:
        history: Name of the history that the answers come from.
    """

    __slots__ = ("_connection", "_count", "_kept", "history")

    def __init__(self, kept: KeptConnections, connection: Any, count: int, history: bytes) -> None:
        self._kept = kept
        self._connection = connection
        self._count = count
        self.history = history

    def answers(self) -> list[Any]:
        """Return an answer to each question, or the error that the server gave instead; raises what redis-py raises."""
        connection = self._connection
        found: list[Any] = []
        try:
            for _ in range(self._count):
                try:
                    found.append(connection.read_response())
                except redis.ResponseError as error:
                    found.append(error)
        except BaseException:  # an answer that comes late must not be taken for the next one's
            self.drop()
            raise
        self._kept.keep(connection)
        return found

    def drop(self) -> None:
        """Give up the answers, and the connection that they would come on."""
        self._kept.drop(self._connection)


class KeptConnections:
    """Asks a server over connections of a pool, without what redis-py's client does around each command.

    They are the pool's: it makes them, watches over their number and closes them.

    Args:
        pool: A pool of `make_pool`; a failure is the caller's to judge.
        recheck_seconds: How long a connection is taken to lead to the right history before that is looked at again;
            None where no other server can take this one's place.
        is_right: Whether a connection leads to the right server; asked along with that.
    """

    def __init__(
        self,
        pool: redis.ConnectionPool,
        recheck_seconds: float | None = None,
        is_right: Callable[[Any], bool] = lambda _: True,
    ) -> None:
        self._pool: Any = pool
        self._recheck_seconds = recheck_seconds
        self._is_right = is_right
        self._doubted_at = 0.0
        self._kept: deque[Any] = deque()  # whose ends are safe to use from several threads
        self._process = os.getpid()

    def ask(self, *command: str) -> Any:
        """Return the answer to one command, as the server gives it; raises what redis-py raises."""
        return self.ask_whom(*command)[0]

    def ask_whom(self, *command: str) -> tuple[Any, bytes]:
        """Return the same, and the name of the history that the answer comes from."""
        connection = self._take()
        history = history_of(connection)
        try:
            connection.send_command(*command)
            answer = connection.read_response()
        except BaseException:  # an answer that comes late must not be taken for the next one's
            self.drop(connection)
            raise
        self.keep(connection)
        return answer, history

    def send(self, commands: Sequence[Command]) -> Pending:
        """Send commands, without waiting for the answers."""
        connection = self._take()
        history = history_of(connection)
        try:
            packed = connection.pack_commands([_addressed(command, history) for command in commands])
            connection.send_packed_command(packed)
        except BaseException:
            self.drop(connection)
            raise
        return Pending(self, connection, len(commands), history)

    def keep(self, connection: Any) -> None:
        """Keep a connection on which nothing is under way."""
        if len(self._kept) < _MOST:
            self._kept.append(connection)
        else:
            self._pool.release(connection)

    def drop(self, connection: Any) -> None:
        """Close a connection and give it back to the pool."""
        connection.disconnect()
        self._pool.release(connection)

    def alone(self) -> KeptConnections:
        """Return one more for the same pool, for several questions on one connection, which is looked at first."""
        return KeptConnections(self._pool, None if self._recheck_seconds is None else 0.0, self._is_right)

    @property
    def timeout_seconds(self) -> float | None:
        """Limit for each reply, if there is one."""
        return self._pool.connection_kwargs.get("socket_timeout")

    def close(self) -> None:
        """Give what is kept back to the pool, as it is."""
        while self._kept:
            self._pool.release(self._kept.pop())

    def doubt(self) -> None:
        """Have every connection ask again which history it leads to: something there names another one."""
        now = time.monotonic()
        if now - self._doubted_at > _DOUBT_SECONDS:
            self._doubted_at = now

    def _take(self) -> Any:
        """Return a connection that is ready to be asked, and knows whom it asks."""
        while True:
            connection, is_new = self._next()
            if is_new or not self._is_doubtful(connection):
                return connection
            try:
                if self._is_right(connection) and learn(connection):
                    return connection
            except BaseException:
                self.drop(connection)
                raise
            self.drop(connection)

    def _next(self) -> tuple[Any, bool]:
        """Return a connection, and whether it was made just now."""
        if self._process != os.getpid():  # the parent's; the pool has made itself anew as well
            self._kept, self._process = deque(), os.getpid()
        started = time.monotonic() if self._recheck_seconds is not None else 0.0
        if (kept := self._pop()) is not None:
            if _is_ready(kept):
                return kept, False
            self.drop(kept)
        connection = self._pool.get_connection()  # which connects anew where it must, and raises if it cannot
        return connection, self._recheck_seconds is not None and learnt_at(connection) >= started

    def _pop(self) -> Any:
        """Return a kept connection; None when there is none, which another thread may have taken just now."""
        try:
            return self._kept.pop()
        except IndexError:
            return None

    def _is_doubtful(self, connection: Any) -> bool:
        learnt = learnt_at(connection)
        if learnt < self._doubted_at:
            return True
        return self._recheck_seconds is not None and time.monotonic() - learnt > self._recheck_seconds


def _addressed(command: Command, history: bytes) -> Command:
    return tuple([history if part is HISTORY else part for part in command]) if HISTORY in command else command


def _is_ready(connection: Any) -> bool:
    """Whether the server has neither closed a connection nor left something to read or to heed on it."""
    try:
        return not connection.should_reconnect() and not connection.can_read()
    except (redis.RedisError, OSError):
        return False
