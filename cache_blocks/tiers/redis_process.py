"""Which process of a Redis server one talks to: another one may have forgotten what the last one was told."""

from __future__ import annotations

import re
from typing import Any, Final, Self

import redis

_RUN_ID: Final = re.compile(rb"run_id:([0-9a-f]{1,40})")
_LENGTH: Final = 12


class RedisProcess:
    """Learns, with every new connection of a pool, the server process at its other end.

    A connection never outlives that process, so it costs one command a connection and none a lookup. A user that may
    not ask (``INFO``) takes all processes for one; the copies of a Redis that has lost its last writes are then
    believed until they end.

    Attributes:
        name: Name of the process, as letters and digits; empty when it may not be asked.
    """

    def __init__(self) -> None:
        self.name = ""

    @classmethod
    def of(cls, client: redis.Redis) -> Self:
        """Return what watches a client's connections; made once a pool, and before its first connection."""
        arguments: dict[str, Any] = client.connection_pool.connection_kwargs
        if not isinstance(known := arguments.get("redis_connect_func"), cls):
            known = cls()
            arguments["redis_connect_func"] = known
            client.connection_pool.disconnect()  # what is open has not been asked
        return known

    def __call__(self, connection: Any) -> None:
        """Greet the server as redis-py does, and ask for its name."""
        connection.on_connect()
        connection.send_command("INFO", "server")
        try:
            answer = connection.read_response()
        except redis.ResponseError:
            self.name = ""
            return
        text = answer.encode() if isinstance(answer, str) else bytes(answer)
        found = _RUN_ID.search(text)
        self.name = found[1].decode()[:_LENGTH] if found else ""
