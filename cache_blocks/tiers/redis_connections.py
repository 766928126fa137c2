"""Connections that lookups keep between two commands, because taking one from redis-py's pool costs half a lookup."""

from __future__ import annotations

import os
from collections import deque
from typing import Any, Final

import redis

_MOST: Final = 8
"""Connections that are kept; the pool has more, for what else there is to do."""


class KeptConnections:
    """Asks a server over connections of a client's pool, without what the client does around each command.

    They are the pool's: it makes them, watches over their number and closes them.

    Args:
        client: Client without retries; a failure is the caller's to judge.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool: Any = client.connection_pool
        self._kept: deque[Any] = deque()  # whose ends are safe to use from several threads
        self._process = os.getpid()

    def ask(self, *command: str) -> Any:
        """Return the answer to one command, as the server gives it; raises what redis-py raises."""
        connection = self._take()
        try:
            connection.send_command(*command)
            answer = connection.read_response()
        except BaseException:  # an answer that comes late must not be taken for the next one's
            self._give_back(connection)
            raise
        if len(self._kept) < _MOST:
            self._kept.append(connection)
        else:
            self._pool.release(connection)
        return answer

    def _take(self) -> Any:
        """Return a connection that is ready to be asked."""
        if self._process != os.getpid():  # the parent's; the pool has made itself anew as well
            self._kept, self._process = deque(), os.getpid()
        try:
            connection = self._kept.pop()
        except IndexError:
            return self._pool.get_connection()
        if not _is_ready(connection):
            self._give_back(connection)
            return self._pool.get_connection()  # which connects anew, and raises if it cannot
        return connection

    def _give_back(self, connection: Any) -> None:
        connection.disconnect()
        self._pool.release(connection)


def _is_ready(connection: Any) -> bool:
    """Whether the server has neither closed a connection nor left something to read or to heed on it."""
    try:
        return not connection.should_reconnect() and not connection.can_read()
    except (redis.RedisError, OSError):
        return False
