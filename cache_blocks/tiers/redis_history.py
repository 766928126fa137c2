"""Which history of a Redis server's data one talks to: another one may lack what this one was told.

Redis gives every history a replication id. It changes when a server starts, also from an older snapshot, and when a
replica becomes master; so a copy that names the history it was written to is never taken for one of the present, not
even when the former master is master again.
"""

from __future__ import annotations

import hashlib
import re
import time
from typing import Any, Final

import redis

_ROLE: Final = re.compile(rb"^role:(\w+)", re.MULTILINE)
_REPLICATION_ID: Final = re.compile(rb"^master_replid:([0-9a-f]{8,40})", re.MULTILINE)
_LENGTH: Final = 12
_NOTES: Final = "cache_blocks_history"


def greet(connection: Any) -> None:
    """Greet a server as redis-py does, and ask for its history; given to pools as ``redis_connect_func``."""
    connection.on_connect()
    learn(connection)


def learn(connection: Any) -> bytes:
    """Ask for the history at the other end of a connection, and note it there; return its name.

    A server that is no master has none: nothing it holds is believed. For a user that may not ask (``INFO``), the
    address stands for the history.
    """
    connection.send_command("INFO", "replication")
    try:
        answer = connection.read_response()
        name = _named(answer.encode() if isinstance(answer, str) else bytes(answer))
    except redis.ResponseError:
        name = None
    name = _address(connection) if name is None else name
    setattr(connection, _NOTES, (name, time.monotonic()))
    return name


def history_of(connection: Any) -> bytes:
    """Return the name of the history that a connection has learnt last: letters and digits, or nothing."""
    return getattr(connection, _NOTES)[0]


def learnt_at(connection: Any) -> float:
    """Return when a connection has learnt its history, on the monotonic clock."""
    return getattr(connection, _NOTES)[1]


def _named(info: bytes) -> bytes | None:
    """Return the name of a history, nothing for a server that is no master, None where it is not told."""
    role = _ROLE.search(info)
    if role is not None and role[1] != b"master":
        return b""
    found = _REPLICATION_ID.search(info)
    return found[1][:_LENGTH] if found else None


def _address(connection: Any) -> bytes:
    pieces = [str(value) for name, value in connection.repr_pieces() if name in ("host", "port", "path")]
    return hashlib.blake2b(":".join(pieces).encode(), digest_size=_LENGTH // 2).hexdigest().encode()
