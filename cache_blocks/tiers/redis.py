"""The shared hot tier: Redis.

One ``MGET`` brings entries and generations together. Generations here are copies of SQL's: absent means unknown.
A copy is put back by compare-and-set: the reader first leaves a token in its place, reads SQL, and its number
counts only if the token is still there, so a reader that was overtaken by an invalidation cannot revive an
old number. What is no number of ours, whatever its type, counts as absent, and is replaced.

A copy names the server process that took it (`redis_process`), and counts only while that one lives: a Redis that
starts again from an older snapshot, and a replica that becomes master, have forgotten what they were told last.
What their generations contradict they do not keep: an entry that is copied here after it was invalidated goes again.
Every key has an end.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cache_blocks.entry import Entry
from cache_blocks.errors import EntryRefusedError, TierUnavailableError
from cache_blocks.plan import stands
from cache_blocks.tiers.base import BackendTier
from cache_blocks.tiers.redis_connections import KeptConnections
from cache_blocks.tiers.redis_process import RedisProcess

GENERATION_TTL_MS: Final = 6 * 3600 * 1000
_TOKEN_TTL_MS: Final = 5_000
_REPLICA_TIMEOUT_MS: Final = 1_000

_LONGEST_NUMBER: Final = 15
"""Digits that a generation may have: Lua's numbers are exact so far."""

_HELPERS: Final = """
local function text(key)
  local value = redis.pcall('GET', key)
  return type(value) == 'string' and value or ''
end
local function number(value, process)
  local digits, by = string.match(value, '^(%d+)@(%w*)$')
  return digits and #digits <= 15 and by == process and tonumber(digits) or nil
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
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""
_RAISE: Final = f"""{_HELPERS}
local old = number(text(KEYS[1]), ARGV[3])
if old and old >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1] .. '@' .. ARGV[3], 'PX', ARGV[2])
return 1
"""


def connect(url: str, timeout_seconds: float) -> redis.Redis:
    """Return a client with a blocking pool, so that waiting for a connection is not mistaken for an outage.

    Args:
        url: ``redis://`` or ``rediss://``.
        timeout_seconds: Limit for connecting and for each reply.
    """
    pool = redis.BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
        url,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),
        max_connections=32,
        timeout=None,
    )
    return redis.Redis(connection_pool=pool)


class RedisTier(BackendTier):
    """Keeps small entries in Redis, each with the time to live that is left to it.

    Args:
        client: Connection, see `connect`.
        namespace: Environment that the entries belong to.
    """

    name: ClassVar[str] = "redis"
    knows_generations: ClassVar[bool] = True
    keeps_manifest: ClassVar[bool] = False
    outages: ClassVar[tuple[type[BaseException], ...]] = (redis.RedisError, OSError)

    def __init__(self, client: redis.Redis, namespace: str = "default") -> None:
        super().__init__(namespace)
        self._entries = f"cache-blocks:{namespace}:entry:"
        self._generations = f"cache-blocks:{namespace}:generation:"
        self._client = client
        self._process = RedisProcess.of(client)
        self._kept = KeptConnections(client)

    def reserve(self, scopes: Sequence[str]) -> str:
        """Leave a token in the place of unknown generations and return it; `seed` needs it."""
        token = f"?{secrets.token_hex(8)}"
        with self._outage():
            pipe = self._client.pipeline(transaction=False)
            for scope in scopes:
                name = self._generation_key(scope)
                pipe.eval(_RESERVE, 1, name, token, _TOKEN_TTL_MS, self._process.name)  # pyright: ignore[reportUnknownMemberType]
            pipe.execute()
        return token

    def seed(self, generations: Mapping[str, int], token: str) -> None:
        """Put SQL's numbers in the places that still hold the token."""
        with self._outage():
            pipe = self._client.pipeline(transaction=False)
            for scope, number in generations.items():
                copy = f"{number}@{self._process.name}"
                pipe.eval(_SEED_IF_RESERVED, 1, self._generation_key(scope), token, copy, GENERATION_TTL_MS)  # pyright: ignore[reportUnknownMemberType]
            pipe.execute()

    def raise_generations(self, generations: Mapping[str, int]) -> None:
        """Make these numbers, or higher ones, what every reader sees; with replicas, on those too.

        Raises:
            TierUnavailableError: Redis, or one of its connected replicas, did not confirm.
        """
        with self._outage(), self._client.client() as one:  # WAIT speaks of its own connection's writes
            replicas = int(one.info("replication").get("connected_slaves", 0))
            for scope, number in generations.items():
                name = self._generation_key(scope)
                one.eval(_RAISE, 1, name, str(number), str(GENERATION_TTL_MS), self._process.name)
            if replicas and one.wait(replicas, _REPLICA_TIMEOUT_MS) < replicas:
                raise TierUnavailableError(self.name, f"not all of {replicas} replicas confirmed")

    def close(self) -> None:
        """Close pooled connections."""
        self._client.connection_pool.disconnect()

    def _fetch(
        self, keys: Sequence[str], scopes: Sequence[str]
    ) -> tuple[dict[str, bytes], dict[str, int], dict[str, int]]:
        names = [self._entries + key for key in keys] + [self._generations + scope for scope in scopes]
        if not names:
            return {}, {}, {}
        values = cast("list[bytes | None]", self._kept.ask("MGET", *names))
        entries = {key: value for key, value in zip(keys, values, strict=False) if value is not None}
        return entries, self._known(scopes, values[len(keys) :]), {}

    def _known(self, scopes: Sequence[str], values: Sequence[bytes | None]) -> dict[str, int]:
        """Return the generations that this server process has taken; anything else is unknown."""
        mine = self._process.name.encode()
        known: dict[str, int] = {}
        for scope, value in zip(scopes, values, strict=True):
            digits, at, by = (value or b"").partition(b"@")
            if at and by == mine and digits.isdigit() and len(digits) <= _LONGEST_NUMBER:
                known[scope] = int(digits)
        return known

    def _store(self, items: Sequence[tuple[Entry, bytes]]) -> set[str]:
        if not items:
            return set()
        pipe = self._client.pipeline(transaction=False)
        keys: list[str] = []
        now = time.time()
        for entry, envelope in items:
            if "redis" not in entry.placement:
                raise EntryRefusedError(self.name, f"{entry.key} is too large for Redis, or holds file contents")
            if (ttl_ms := int((entry.expires_at - now) * 1000)) > 0:
                keys.append(entry.key)
                pipe.eval(_SET_UNLESS_NEWER, 1, self._entry_key(entry.key), envelope, ttl_ms, entry.fence)  # pyright: ignore[reportUnknownMemberType]
        scopes = sorted({scope for entry, _ in items for scope in entry.scopes})
        pipe.mget([self._generation_key(scope) for scope in scopes])
        *answers, values = pipe.execute()
        stored = {key for key, stored in zip(keys, answers, strict=True) if stored}
        known = self._known(scopes, values)
        fallen = {entry.key: entry.fence for entry, _ in items if entry.key in stored and not stands(entry, known)}
        for key, fence in fallen.items():
            self._client.eval(_TAKE_BACK, 1, self._entry_key(key), str(fence))
        return stored - fallen.keys()

    def _remove(self, keys: Sequence[str]) -> int:
        return self._client.unlink(*(self._entry_key(key) for key in keys)) if keys else 0

    def _scan(self) -> Iterator[str]:
        for name in self._client.scan_iter(match=f"{self._entries}*", count=500):  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
            yield cast("bytes", name).decode().removeprefix(self._entries)

    def _describe(self) -> str:
        info = self._client.info()
        policy = info.get("maxmemory_policy", "unknown policy")
        return f"Redis {info['redis_version']}, {info['used_memory_human']} used, {policy}"

    def _entry_key(self, key: str) -> str:
        return self._entries + key

    def _generation_key(self, scope: str) -> str:
        return self._generations + scope
