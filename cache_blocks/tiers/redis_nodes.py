"""The nodes of a cluster: one node, which is skipped for a while when it fails, and views of who serves what."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS

from cache_blocks.tiers.base import describe
from cache_blocks.tiers.redis_connections import Command, KeptConnections, Pending, make_pool
from cache_blocks.tiers.redis_servers import OUTAGES
from cache_blocks.tiers.redis_url import Address

__all__ = ["SLOTS", "Node", "View", "merged", "opinion"]

logger = logging.getLogger("cache_blocks")

_SKIP_SECONDS: Final = 5.0


class Node:
    """One node; when it fails it is skipped for a while, so that it does not cost its timeout once a lookup.

    Attributes:
        client: For what is asked of the node and not of keys.
        kept: Connections for everything else.
        name: For people.

    Args:
        address: Host and port.
        options: Arguments of redis-py's connections.
        timeout_seconds: Limit for connecting and for each reply.
        recheck_seconds: See `KeptConnections`.
    """

    def __init__(
        self, address: Address, options: Mapping[str, Any], timeout_seconds: float, recheck_seconds: float
    ) -> None:
        host, port = address
        pool = make_pool({**options, "host": host, "port": port}, timeout_seconds)
        self.client = redis.Redis(connection_pool=pool)
        self.kept = KeptConnections(pool, recheck_seconds)
        self.name = f"redis node {host}:{port}"
        self._skipped_until = 0.0
        self._is_down = False

    @property
    def is_skipped(self) -> bool:
        """Whether it failed a moment ago."""
        return self._is_down and time.monotonic() < self._skipped_until

    def send(self, commands: Sequence[Command]) -> Pending:
        """Send commands; raises what redis-py raises, also when the node is skipped."""
        if self.is_skipped:
            raise redis.ConnectionError("skipped, it failed a moment ago")
        try:
            return self.kept.send(commands)
        except OUTAGES as error:
            self._fail(error)
            raise

    def answers(self, pending: Pending) -> list[Any]:
        """Return the answers to what was sent, see `Pending.answers`."""
        try:
            answers = pending.answers()
        except OUTAGES as error:
            self._fail(error)
            raise
        if self._is_down:
            self._is_down = False
            logger.warning("%s is back", self.name)
        return answers

    def _fail(self, error: BaseException) -> None:
        went = not self._is_down
        self._skipped_until = time.monotonic() + _SKIP_SECONDS
        self._is_down = True
        if went:
            logger.warning("%s is down (%s); going on without it, and trying again", self.name, describe(error))


@dataclass(frozen=True, slots=True)
class View:
    """Who serves what.

    Attributes:
        owners: Address of the master by slot; None where nobody, or nobody knows who.
        everyone: Addresses of all nodes, replicas too.
        at: When it was asked for, on the monotonic clock.
    """

    owners: Sequence[Address | None]
    everyone: frozenset[Address]
    at: float

    @property
    def masters(self) -> list[Address]:
        """Masters that serve slots, in the order of these."""
        return [owner for owner in dict.fromkeys(self.owners) if owner is not None]

    @property
    def replicas(self) -> int:
        """How many other nodes there are."""
        return len(self.everyone) - len(self.masters)


def opinion(slots: Sequence[Any], told_by: Address, at: float) -> View:
    """Return what one node says (``CLUSTER SLOTS``); a node that does not know its own address is called as it was."""
    owners: list[Address | None] = [None] * SLOTS
    everyone: set[Address] = {told_by}
    for first, last, *nodes in slots:
        addresses = [(_text(node[0]) or told_by[0], int(node[1])) for node in nodes]
        owners[int(first) : int(last) + 1] = [addresses[0]] * (int(last) + 1 - int(first))
        everyone.update(addresses)
    return View(owners, frozenset(everyone), at)


def merged(views: Sequence[View]) -> View:
    """Return what all the views agree on."""
    owners = [
        one if all(one == other for other in others) else None
        for one, *others in zip(*(view.owners for view in views), strict=True)
    ]
    return View(owners, frozenset[Address]().union(*(view.everyone for view in views)), min(view.at for view in views))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")
