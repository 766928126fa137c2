"""The servers behind one Redis URL, and what is asked of them, whatever they are arranged as.

Everything that is asked is about named keys, and every script about one: so it can be sent to the server that has it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self, cast

import redis
from redis.exceptions import NoPermissionError

from cache_blocks.errors import TierUnavailableError
from cache_blocks.tiers.redis_connections import Command, KeptConnections

OUTAGES: Final[tuple[type[Exception], ...]] = (redis.RedisError, OSError)
"""What is raised when a server is down, slow or full."""

_REPLICA_SECONDS: Final = 1.0
_TIMEOUT_SHARE: Final = 0.8
_CONNECTED: Final = re.compile(r"connected_slaves:(\d+)")


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and the one key that it is about; `redis_connections.HISTORY` may stand among its arguments."""

    text: str
    key: str
    arguments: tuple[Any, ...] = ()

    @property
    def command(self) -> Command:
        """What is sent."""
        return ("EVAL", self.text, 1, self.key, *self.arguments)


@dataclass(frozen=True, slots=True)
class Copies:
    """What stands under some names.

    Attributes:
        values: Bytes by name, None where there are none.
        histories: By name, the history that vouches for it; empty where none does.
    """

    values: Sequence[bytes | None]
    histories: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Seen:
    """What one server says of itself.

    Attributes:
        address: Host and port.
        info: The answer to ``INFO``; empty for a user that may not ask.
    """

    address: str
    info: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def summary(self) -> str:
        """Version, memory and what happens when it is full."""
        if not self.info:
            return "Redis, whose user may not ask for more (INFO)"
        policy = self.info.get("maxmemory_policy", "unknown policy")
        return f"Redis {self.info['redis_version']}, {self.info['used_memory_human']} used, {policy}"


class RedisServers(ABC):
    """Sends what is asked about keys to the servers that have them; raises what redis-py raises (`OUTAGES`)."""

    @abstractmethod
    def get(self, names: Sequence[str]) -> Copies:
        """Return what stands under some names, in one round trip a server."""

    @abstractmethod
    def run(self, scripts: Sequence[Script], then: Sequence[str] = ()) -> tuple[list[Any], Copies]:
        """Run scripts, then look at some names; return the answer of each script, and what was found."""

    @abstractmethod
    def tell(self, scripts: Sequence[Script]) -> None:
        """Run scripts on every server that may be asked about their keys, and see that its replicas have heard.

        Raises:
            TierUnavailableError: Not all of the replicas confirmed.
        """

    @abstractmethod
    def unlink(self, names: Sequence[str]) -> int:
        """Remove what stands under some names; return how many there were."""

    @abstractmethod
    def doubt(self) -> None:
        """Have histories asked for again: a copy names another one."""

    @abstractmethod
    def look(self) -> list[Seen]:
        """Return what each server with data that may be written says of itself."""

    @abstractmethod
    def describe(self) -> str:
        """Return how the servers are arranged, or nothing for a single one."""

    @property
    @abstractmethod
    def clients(self) -> Sequence[redis.Redis]:
        """A client of each server with data that may be written."""

    def scan(self, pattern: str) -> Iterator[str]:
        """Yield the names that match a pattern."""
        for client in self.clients:
            for name in cast("Iterator[bytes]", client.scan_iter(match=pattern, count=500)):
                yield name.decode()

    def close(self) -> None:
        """Close pooled connections; they are opened again when they are needed."""
        for client in self.clients:
            client.connection_pool.disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class OneRedis(RedisServers):
    """One server, or whatever stands behind one address.

    Args:
        pool: Connections to it, of `make_pool`.
        kept: The same, when they need more than that.
    """

    def __init__(self, pool: redis.ConnectionPool, kept: KeptConnections | None = None) -> None:
        self.client = redis.Redis(connection_pool=pool)
        self.kept = kept or KeptConnections(pool)

    @property
    def clients(self) -> Sequence[redis.Redis]:
        """See `RedisServers.clients`."""
        return (self.client,)

    def get(self, names: Sequence[str]) -> Copies:
        """See `RedisServers.get`."""
        values, history = self.kept.ask_whom("MGET", *names)
        return Copies(values, [history] * len(names))

    def run(self, scripts: Sequence[Script], then: Sequence[str] = ()) -> tuple[list[Any], Copies]:
        """See `RedisServers.run`; one round trip."""
        commands: list[Command] = [script.command for script in scripts]
        if then:
            commands.append(("MGET", *then))
        if not commands:
            return [], Copies((), ())
        pending = self.kept.send(commands)
        answers = checked(pending.answers())
        values = answers.pop() if then else ()
        return answers, Copies(values, [pending.history] * len(then))

    def tell(self, scripts: Sequence[Script]) -> None:
        """See `RedisServers.tell`."""
        tell_server(self.kept, scripts)

    def unlink(self, names: Sequence[str]) -> int:
        """See `RedisServers.unlink`."""
        return int(self.kept.ask("UNLINK", *names)) if names else 0

    def doubt(self) -> None:
        """See `RedisServers.doubt`."""
        self.kept.doubt()

    def look(self) -> list[Seen]:
        """See `RedisServers.look`."""
        return [look_at(self.client)]

    def describe(self) -> str:
        """See `RedisServers.describe`."""
        return ""


def checked(answers: list[Any]) -> list[Any]:
    """Return answers none of which is an error; raise the first that is."""
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers


def tell_server(kept: KeptConnections, scripts: Iterable[Script]) -> None:
    """Run scripts on a server, and wait for its replicas; see `RedisServers.tell`.

    A user that may not ask how many there are (``INFO``) does not wait: a replica that becomes master is not believed
    anyway, unless it takes over the address.
    """
    one = kept.alone()
    try:
        *answers, info = one.send([*(script.command for script in scripts), ("INFO", "replication")]).answers()
        checked(answers)
        if replicas := _replicas(info):  # on the same connection, because WAIT speaks of its own writes
            seconds = min(_REPLICA_SECONDS, (one.timeout_seconds or _REPLICA_SECONDS) * _TIMEOUT_SHARE)
            if int(one.ask("WAIT", str(replicas), str(int(seconds * 1000)))) < replicas:
                raise TierUnavailableError("redis", f"not all of {replicas} replicas confirmed")
    finally:
        one.close()


def _replicas(info: Any) -> int:
    """Return how many replicas an answer to ``INFO`` tells of; none when it is a refusal."""
    text = info.decode() if isinstance(info, bytes) else str(info)
    found = _CONNECTED.search(text)
    return int(found[1]) if found else 0


def look_at(client: redis.Redis) -> Seen:
    """Return what a server says of itself."""
    arguments: dict[str, Any] = client.connection_pool.connection_kwargs
    address = str(arguments.get("path") or f"{arguments.get('host', 'localhost')}:{arguments.get('port', 6379)}")
    try:
        return Seen(address, client.info())
    except NoPermissionError:  # which is an answer, too
        return Seen(address)
