"""A master that Sentinels know, and that they replace when it fails.

Who is master is asked when a connection is made, and again for each connection after a second: so a former master that
was cut off, or stood still, is not asked any more by the time that its successor has been invalidated. Most of the
Sentinels that the URL names must answer, and the newest of their views counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Final, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPoolProxy,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

from cache_blocks.tiers.redis_connections import KeptConnections, make_pool
from cache_blocks.tiers.redis_servers import OUTAGES, OneRedis, Script
from cache_blocks.tiers.redis_url import Address, RedisUrl

RECHECK_SECONDS: Final = 1.0
"""Shorter than Sentinels take to declare a master down, which is a second at the least."""


class MajorityOfSentinels(Sentinel):
    """Sentinels of which most must answer, so that nobody is led to a former master by those cut off with it."""

    def discover_master(self, service_name: str) -> Address:
        """Return where the master is, as the newest view among most of the Sentinels has it.

        Raises:
            MasterNotFoundError: Too few of them answer, or none sees a master that is well.
        """
        views: list[dict[str, Any]] = []
        silent: list[Any] = []
        needed = len(self.sentinels) // 2 + 1
        for sentinel in list(self.sentinels):
            try:
                views.append(dict(cast("dict[str, Any]", sentinel.sentinel_master(service_name))))
            except OUTAGES:
                silent.append(sentinel)
            if len(views) == needed:
                break
        self.sentinels = [one for one in self.sentinels if one not in silent] + silent  # whom to ask last next time
        if len(views) < needed:
            raise MasterNotFoundError(f"{len(views)} of {len(self.sentinels)} Sentinels know the master, not most")
        newest = max(views, key=lambda view: int(view["config-epoch"]))
        if not self.check_master_state(newest, service_name):
            raise MasterNotFoundError("the Sentinels see no master that is well")
        return str(newest["ip"]), int(newest["port"])

    def other_servers(self, service_name: str) -> list[Address]:
        """Return the servers beside the master that seem up: replicas, and who does not know yet that it is one."""
        found: dict[Address, None] = {}
        for sentinel in self.sentinels:
            with contextlib.suppress(*OUTAGES):
                found |= dict.fromkeys(
                    cast("list[Address]", self.filter_slaves(sentinel.sentinel_slaves(service_name)))
                )
        return [(str(host), int(port)) for host, port in found]


class SentinelRedis(OneRedis):
    """The master of a service.

    Args:
        place: What the URL says.
        timeout_seconds: Limit for connecting and for each reply, of servers and Sentinels.
    """

    def __init__(self, place: RedisUrl, timeout_seconds: float) -> None:
        limits: dict[str, Any] = {"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds}
        patience = {"retry": Retry(NoBackoff(), 0)}
        self._sentinels = MajorityOfSentinels(
            place.nodes, sentinel_kwargs={**limits, **patience, **place.sentinel_options}
        )
        self._service = place.service
        self._timeout_seconds = timeout_seconds
        self._options = dict(place.options)
        secure = self._options.get("connection_class") is redis.SSLConnection
        managed = SentinelManagedSSLConnection if secure else SentinelManagedConnection
        pool = make_pool({**self._options, "connection_class": managed}, timeout_seconds)
        self._proxy = SentinelConnectionPoolProxy(pool, True, False, self._service, self._sentinels)
        pool.connection_kwargs["connection_pool"] = self._proxy
        super().__init__(pool, KeptConnections(pool, RECHECK_SECONDS, self._is_right))

    def tell(self, scripts: Sequence[Script]) -> None:
        """See `RedisServers.tell`; a former master that answers is told, too, for as long as it believes to be one."""
        super().tell(scripts)
        for host, port in self._sentinels.other_servers(self._service):
            pool = make_pool({**self._options, "host": host, "port": port}, self._timeout_seconds)
            kept = KeptConnections(pool)
            with contextlib.suppress(*OUTAGES):  # a replica refuses, and one that does not answer serves nobody
                kept.send([script.command for script in scripts]).answers()
            pool.disconnect()

    def close(self) -> None:
        """See `RedisServers.close`."""
        super().close()
        self._sentinels.close()

    def describe(self) -> str:
        """See `RedisServers.describe`."""
        host, port = self._sentinels.discover_master(self._service)
        replicas = len(self._sentinels.other_servers(self._service))
        count = len(self._sentinels.sentinels)
        return f"master of {self._service} at {host}:{port} by {count} Sentinels, replicas up: {replicas}"

    def _is_right(self, connection: Any) -> bool:
        proxy: Any = self._proxy
        return (connection.host, connection.port) == tuple(proxy.get_master_address())
