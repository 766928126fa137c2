"""A Redis Cluster: every key is on the node that serves its slot.

What is asked is grouped by node, sent to all of them and then read, so a lookup takes as long as one round trip. The
keys have no common slot: what every lookup reads, the copies of generations, would put all the load on one node.

redis-py's own client connects when it is made, retries past every time limit, and does not tell which server a copy
came from. So this routes, over redis-py's connections.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import redis
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError

from cache_blocks import forking
from cache_blocks.errors import TierUnavailableError
from cache_blocks.tiers.redis_connections import Command, Pending
from cache_blocks.tiers.redis_nodes import SLOTS, Node, View, merged, opinion
from cache_blocks.tiers.redis_servers import OUTAGES, Copies, RedisServers, Script, Seen, checked, look_at, tell_server
from cache_blocks.tiers.redis_url import Address, RedisUrl

RECHECK_SECONDS: Final = 1.0
"""How long what the nodes say about each other is believed: less than they take to replace one."""
_TRIES: Final = 3
_OPINIONS: Final = 2

Keyed = tuple[str, Command]
_NOWHERE: Final = Copies((), ())
_ELSEWHERE: Final = (redis.ConnectionError, redis.TimeoutError, AskError, redis.ReadOnlyError, OSError)
"""Errors after which the key may be found on another node; a redirection (MOVED) is an ``AskError``."""
_GONE: Final = (*_ELSEWHERE, ClusterDownError)


class ClusterRedis(RedisServers):
    """The nodes of a cluster.

    Args:
        place: What the URL says.
        timeout_seconds: Limit for connecting and for each reply.
    """

    def __init__(self, place: RedisUrl, timeout_seconds: float) -> None:
        self._make: Callable[[Address], Node] = lambda address: Node(
            address, place.options, timeout_seconds, RECHECK_SECONDS
        )
        self._seeds = place.nodes
        self._nodes: dict[Address, Node] = {}
        self._view: View | None = None
        self._lock = forking.lock()

    def get(self, names: Sequence[str]) -> Copies:
        """See `RedisServers.get`; what was on a node that is down is not there."""
        found = self._ask([(name, ("MGET", name)) for name in names])
        errors = [answer for answer, _ in found if isinstance(answer, BaseException)]
        if len(errors) == len(found) or not all(isinstance(error, _GONE) for error in errors):
            self._raise_first(errors)
        values = [None if isinstance(answer, BaseException) else answer[0] for answer, _ in found]
        return Copies(values, [history for _, history in found])

    def run(self, scripts: Sequence[Script], then: Sequence[str] = ()) -> tuple[list[Any], Copies]:
        """See `RedisServers.run`; one round trip for the scripts, and one for the names."""
        found = self._ask([(script.key, script.command) for script in scripts])
        self._raise_first([answer for answer, _ in found if isinstance(answer, BaseException)])
        return [answer for answer, _ in found], self.get(then) if then else _NOWHERE

    def tell(self, scripts: Sequence[Script]) -> None:
        """See `RedisServers.tell`; each node is told of its own keys, and its replicas with it."""
        asked_at = time.monotonic()  # nothing older will do: who is told must be who is asked
        for last in (False, True):
            view = self._current(asked_at)
            asked_at = time.monotonic()
            untold: list[Script] = []
            for address, mine in _by_owner(view, scripts).items():
                try:
                    tell_server(self._node(address).kept, mine)
                except _ELSEWHERE:
                    if last:
                        raise
                    untold += mine
            scripts = untold

    def unlink(self, names: Sequence[str]) -> int:
        """See `RedisServers.unlink`."""
        found = self._ask([(name, ("UNLINK", name)) for name in names])
        self._raise_first([answer for answer, _ in found if isinstance(answer, BaseException)])
        return sum(int(answer) for answer, _ in found)

    def doubt(self) -> None:
        """See `RedisServers.doubt`."""
        for node in list(self._nodes.values()):
            node.kept.doubt()

    def look(self) -> list[Seen]:
        """See `RedisServers.look`."""
        return [look_at(client) for client in self.clients]

    def describe(self) -> str:
        """See `RedisServers.describe`."""
        view = self._current()
        served = sum(owner is not None for owner in view.owners)
        return f"cluster of {len(view.masters)} masters and {view.replicas} replicas, {served} of {SLOTS} slots served"

    @property
    def clients(self) -> Sequence[redis.Redis]:
        """See `RedisServers.clients`."""
        return [self._node(address).client for address in self._current().masters]

    def close(self) -> None:
        """See `RedisServers.close`."""
        for node in list(self._nodes.values()):
            node.client.connection_pool.disconnect()

    def _ask(self, keyed: Sequence[Keyed]) -> list[tuple[Any, bytes]]:
        """Return, for each command, its answer or error, and the history that it comes from."""
        found: list[tuple[Any, bytes]] = [(None, b"")] * len(keyed)
        left = list(range(len(keyed)))
        asked_at = 0.0
        for _ in range(_TRIES):
            if not left:
                break
            view = self._current(asked_at)
            asked_at = time.monotonic()
            for place, answer in self._round(view, {place: keyed[place] for place in left}).items():
                found[place] = answer
            left = [place for place in left if isinstance(found[place][0], _ELSEWHERE)]
        for place in left:
            found[place] = self._followed(keyed[place], found[place])
        return found

    def _round(self, view: View, keyed: dict[int, Keyed]) -> dict[int, tuple[Any, bytes]]:
        """Send everything, then read everything."""
        found: dict[int, tuple[Any, bytes]] = {}
        groups: dict[Address, list[int]] = {}
        for place, (key, _) in keyed.items():
            if (owner := view.owners[key_slot(key.encode())]) is None:
                found[place] = redis.ConnectionError("no node serves its slot, as far as two of them agree"), b""
            else:
                groups.setdefault(owner, []).append(place)
        sent: list[tuple[Node, list[int], Pending]] = []
        try:
            for address, places in groups.items():
                node = self._node(address)
                try:
                    sent.append((node, places, node.send([keyed[place][1] for place in places])))
                except OUTAGES as error:
                    found.update(dict.fromkeys(places, (error, b"")))
            while sent:
                node, places, pending = sent.pop(0)
                try:
                    answers = node.answers(pending)
                except OUTAGES as error:
                    found.update(dict.fromkeys(places, (error, b"")))
                else:
                    found.update(
                        {place: (answer, pending.history) for place, answer in zip(places, answers, strict=True)}
                    )
        finally:
            for _, _, pending in sent:
                pending.drop()
        return found

    def _followed(self, keyed: Keyed, found: tuple[Any, bytes]) -> tuple[Any, bytes]:
        """Return what the node that a slot is moving to answers, where one has pointed to it."""
        if not isinstance(found[0], AskError):
            return found
        error: Any = found[0]
        node = self._node((str(error.host), int(error.port)))
        try:
            pending = node.send([("ASKING",), keyed[1]])
            return node.answers(pending)[1], pending.history
        except OUTAGES as again:
            return again, b""

    def _current(self, newer_than: float = 0.0) -> View:
        """Return who serves what, learnt within the last second, and after a time on the monotonic clock."""
        oldest = max(newer_than, time.monotonic() - RECHECK_SECONDS)
        if (view := self._view) is not None and view.at >= oldest:
            return view
        with self._lock:
            if (view := self._view) is None or view.at < oldest:
                self._view = view = self._learn()
        return view

    def _learn(self) -> View:
        """Ask two nodes: what one alone believes of itself may be out of date."""
        at = time.monotonic()
        known = dict.fromkeys((*(self._view.everyone if self._view else ()), *self._seeds))
        waiting = random.sample(list(known), len(known))
        waiting.sort(key=lambda address: self._node(address).is_skipped)
        heard: dict[Address, View] = {}
        why: Exception = redis.ConnectionError("no node of the cluster answers")
        while waiting and len(heard) < _OPINIONS:
            address = waiting.pop(0)
            node = self._node(address)
            try:
                (slots,) = checked(node.answers(node.send([("CLUSTER", "SLOTS")])))
            except OUTAGES as error:
                why = error
                continue
            view = heard[address] = opinion(slots, address, at)
            news = [one for one in view.everyone if one not in known]
            known |= dict.fromkeys(news)
            waiting += random.sample(news, len(news))
        if not heard:
            raise why
        if len(heard) < min(_OPINIONS, len({one for view in heard.values() for one in view.everyone})):
            raise redis.ConnectionError("one node alone answers, and it may have been cut off")
        return merged(list(heard.values()))

    def _node(self, address: Address) -> Node:
        if (node := self._nodes.get(address)) is None:
            node = self._nodes.setdefault(address, self._make(address))
        return node

    def _raise_first(self, errors: Sequence[BaseException]) -> None:
        """Raise the first error, as one of a single node if that is all that is down."""
        if not errors:
            return
        view = self._view
        down = [address for address in (view.masters if view else ()) if self._node(address).is_skipped]
        if view and 0 < len(down) < len(view.masters) and isinstance(errors[0], _ELSEWHERE):
            raise TierUnavailableError(self._node(down[0]).name, "it is down, and what is kept there with it")
        raise errors[0]


def _by_owner(view: View, scripts: Sequence[Script]) -> dict[Address, list[Script]]:
    groups: dict[Address, list[Script]] = {}
    for script in scripts:
        if (owner := view.owners[key_slot(script.key.encode())]) is None:
            raise redis.ConnectionError("no node serves the slot of a generation, as far as two of them agree")
        groups.setdefault(owner, []).append(script)
    return groups
