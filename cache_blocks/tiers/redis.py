"""The shared hot tier: Redis.

One ``MGET`` brings entries and generations together. Generations here are copies of SQL's: absent means unknown.
A copy is put back by compare-and-set: the reader first leaves a token in its place, reads SQL, and its number
counts only if the token is still there, so a reader that was overtaken by an invalidation cannot revive an
old number. What is no number of ours, whatever its type, counts as absent, and is replaced.

A copy names the history of the data that it was written to (`redis_history`), and counts only in that one: a Redis
that starts again from an older snapshot, and a replica that becomes master, have forgotten what they were told last.
What their generations contradict they do not keep: an entry that is copied here after it was invalidated goes again.
Every key has an end. One server, Sentinels and a cluster differ in where a key is (`redis_servers`), in nothing else.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final

from cache_blocks.entry import Entry
from cache_blocks.errors import EntryRefusedError
from cache_blocks.plan import stands
from cache_blocks.tiers import redis_url
from cache_blocks.tiers.base import BackendTier
from cache_blocks.tiers.redis_cluster import ClusterRedis
from cache_blocks.tiers.redis_connections import HISTORY, make_pool
from cache_blocks.tiers.redis_sentinel import SentinelRedis
from cache_blocks.tiers.redis_servers import OUTAGES, Copies, OneRedis, RedisServers, Script

GENERATION_TTL_MS: Final = 30 * 3600 * 1000
"""Longer than a day: what comes every night finds the copies of the night before, and need not ask SQL."""

_TOKEN_TTL_MS: Final = 5_000

_LONGEST_NUMBER: Final = 15
"""Digits that a generation may have: Lua's numbers are exact so far."""

_HELPERS: Final = """
local function text(key)
  local value = redis.pcall('GET', key)
  return type(value) == 'string' and value or ''
end
local function number(value, history)
  local digits, by = string.match(value, '^(%d+)@(%w*)$')
  return digits and #digits <= 15 and by == history and tonumber(digits) or nil
end
"""
_SET_UNLESS_NEWER: Final = """
local old = redis.pcall('GETRANGE', KEYS[1], 6, 13)
if type(old) == 'string' and #old == 8 and struct.unpack('>I8', old) > tonumber(ARGV[3]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_TAKE_BACK: Final = """
local old = redis.pcall('GETRANGE', KEYS[1], 6, 13)
if type(old) ~= 'string' or #old ~= 8 or struct.unpack('>I8', old) > tonumber(ARGV[1]) then return 0 end
return redis.call('UNLINK', KEYS[1])
"""
_RESERVE: Final = f"""{_HELPERS}
local old = text(KEYS[1])
if number(old, ARGV[3]) or (string.match(old, '^%?%x+$') and redis.call('PTTL', KEYS[1]) > 0) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_SEED_IF_RESERVED: Final = f"""{_HELPERS}
if text(KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2] .. '@' .. ARGV[4], 'PX', ARGV[3])
return 1
"""
_RAISE: Final = f"""{_HELPERS}
local old = number(text(KEYS[1]), ARGV[3])
if old and old >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1] .. '@' .. ARGV[3], 'PX', ARGV[2])
return 1
"""


def connect(url: str, timeout_seconds: float) -> RedisServers:
    """Return the servers behind a URL; opens no connection.

    Args:
        url: See `redis_url`.
        timeout_seconds: Limit for connecting and for each reply.

    Raises:
        ConfigurationError: The URL is not well-formed.
    """
    place = redis_url.parse(url)
    if place.topology == "sentinel":
        return SentinelRedis(place, timeout_seconds)
    if place.topology == "cluster":
        return ClusterRedis(place, timeout_seconds)
    address = {"host": place.nodes[0][0], "port": place.nodes[0][1]} if place.nodes else {}
    return OneRedis(make_pool({**place.options, **address}, timeout_seconds))


class RedisTier(BackendTier):
    """Keeps small entries in Redis, each with the time to live that is left to it.

    Args:
        servers: Where, see `connect`.
        namespace: Environment that the entries belong to.
    """

    name: ClassVar[str] = "redis"
    knows_generations: ClassVar[bool] = True
    keeps_manifest: ClassVar[bool] = False
    outages: ClassVar[tuple[type[BaseException], ...]] = OUTAGES

    def __init__(self, servers: RedisServers, namespace: str = "default") -> None:
        super().__init__(namespace)
        self._entries = f"cache-blocks:{namespace}:entry:"
        self._generations = f"cache-blocks:{namespace}:generation:"
        self.servers = servers

    def reserve(self, scopes: Sequence[str]) -> str:
        """Leave a token in the place of unknown generations and return it; `seed` needs it."""
        token = f"?{secrets.token_hex(8)}"
        with self._outage():
            self.servers.run([self._on(scope, _RESERVE, token, _TOKEN_TTL_MS, HISTORY) for scope in scopes])
        return token

    def seed(self, generations: Mapping[str, int], token: str) -> None:
        """Put SQL's numbers in the places that still hold the token."""
        with self._outage():
            self.servers.run(
                [
                    self._on(scope, _SEED_IF_RESERVED, token, number, GENERATION_TTL_MS, HISTORY)
                    for scope, number in generations.items()
                ]
            )

    def raise_generations(self, generations: Mapping[str, int]) -> None:
        """Make these numbers, or higher ones, what every reader sees; with replicas, on those too.

        Raises:
            TierUnavailableError: Redis, or one of its connected replicas, did not confirm.
        """
        with self._outage():
            self.servers.tell(
                [self._on(scope, _RAISE, number, GENERATION_TTL_MS, HISTORY) for scope, number in generations.items()]
            )

    def close(self) -> None:
        """Close pooled connections."""
        self.servers.close()

    def _fetch(
        self, keys: Sequence[str], scopes: Sequence[str]
    ) -> tuple[dict[str, bytes], dict[str, int], dict[str, int]]:
        names = [self._entries + key for key in keys] + [self._generations + scope for scope in scopes]
        if not names:
            return {}, {}, {}
        copies = self.servers.get(names)
        entries = {key: value for key, value in zip(keys, copies.values, strict=False) if value is not None}
        return entries, self._known(scopes, copies, len(keys)), {}

    def _known(self, scopes: Sequence[str], copies: Copies, start: int = 0) -> dict[str, int]:
        """Return the generations that count in the history that they were found in; anything else is unknown.

        Args:
            scopes: Whose numbers.
            copies: What was found.
            start: Where in that the first scope is.
        """
        known: dict[str, int] = {}
        for scope, value, history in zip(scopes, copies.values[start:], copies.histories[start:], strict=True):
            digits, at, by = (value or b"").partition(b"@")
            if not at or not digits.isdigit() or len(digits) > _LONGEST_NUMBER:
                continue
            if history and by == history:
                known[scope] = int(digits)
            else:
                self.servers.doubt()
        return known

    def _store(self, items: Sequence[tuple[Entry, bytes]]) -> set[str]:
        if not items:
            return set()
        keys: list[str] = []
        scripts: list[Script] = []
        now = time.time()
        for entry, envelope in items:
            if "redis" not in entry.placement:
                raise EntryRefusedError(self.name, f"{entry.key} is too large for Redis, or holds file contents")
            if (ttl_ms := int((entry.expires_at - now) * 1000)) > 0:
                arguments = (envelope, ttl_ms, entry.fence)
                keys.append(entry.key)
                scripts.append(Script(_SET_UNLESS_NEWER, self._entries + entry.key, arguments))
        scopes = sorted({scope for entry, _ in items for scope in entry.scopes})
        answers, copies = self.servers.run(scripts, [self._generations + scope for scope in scopes])
        stored = {key for key, stored in zip(keys, answers, strict=True) if stored}
        known = self._known(scopes, copies)
        fallen = {entry.key: entry.fence for entry, _ in items if entry.key in stored and not stands(entry, known)}
        if fallen:
            self.servers.run([Script(_TAKE_BACK, self._entries + key, (fence,)) for key, fence in fallen.items()])
        return stored - fallen.keys()

    def _remove(self, keys: Sequence[str]) -> int:
        return self.servers.unlink([self._entries + key for key in keys])

    def _scan(self) -> Iterator[str]:
        for name in self.servers.scan(f"{self._entries}*"):
            yield name.removeprefix(self._entries)

    def _describe(self) -> str:
        seen = [one.summary for one in self.servers.look()]
        return "; ".join(dict.fromkeys(filter(None, [self.servers.describe(), *seen])))

    def _on(self, scope: str, text: str, *arguments: object) -> Script:
        return Script(text, self._generations + scope, arguments)
