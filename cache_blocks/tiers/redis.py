"""The shared hot tier: Redis.

One ``MGET`` brings entries and generations together. Generations here are copies of SQL's: absent means unknown.
A copy is put back by compare-and-set: the reader first leaves a token in its place, reads SQL, and its number
counts only if the token is still there, so a reader that was overtaken by an invalidation cannot revive an
old number. Every key has an end.
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
from cache_blocks.tiers.base import BackendTier

GENERATION_TTL_MS: Final = 6 * 3600 * 1000
_TOKEN_TTL_MS: Final = 5_000
_REPLICA_TIMEOUT_MS: Final = 1_000

_SET_UNLESS_NEWER: Final = """
local old = redis.call('GETRANGE', KEYS[1], 6, 13)
if #old == 8 and struct.unpack('>I8', old) > tonumber(ARGV[3]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_SEED_IF_RESERVED: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""
_RAISE: Final = """
local old = tonumber(redis.call('GET', KEYS[1]) or '')
if old and old >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
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
        self._client = client

    def reserve(self, scopes: Sequence[str]) -> str:
        """Leave a token in the place of unknown generations and return it; `seed` needs it."""
        token = f"?{secrets.token_hex(8)}"
        with self._outage():
            pipe = self._client.pipeline(transaction=False)
            for scope in scopes:
                pipe.set(self._generation_key(scope), token, px=_TOKEN_TTL_MS, nx=True)
            pipe.execute()
        return token

    def seed(self, generations: Mapping[str, int], token: str) -> None:
        """Put SQL's numbers in the places that still hold the token."""
        with self._outage():
            pipe = self._client.pipeline(transaction=False)
            for scope, number in generations.items():
                pipe.eval(_SEED_IF_RESERVED, 1, self._generation_key(scope), token, number, GENERATION_TTL_MS)  # pyright: ignore[reportUnknownMemberType]
            pipe.execute()

    def raise_generations(self, generations: Mapping[str, int]) -> None:
        """Make these numbers, or higher ones, what every reader sees; with replicas, on those too.

        Raises:
            TierUnavailableError: Redis, or one of its connected replicas, did not confirm.
        """
        with self._outage(), self._client.client() as one:  # WAIT speaks of its own connection's writes
            for scope, number in generations.items():
                one.eval(_RAISE, 1, self._generation_key(scope), str(number), str(GENERATION_TTL_MS))
            replicas = int(one.info("replication").get("connected_slaves", 0))
            if replicas and one.wait(replicas, _REPLICA_TIMEOUT_MS) < replicas:
                raise TierUnavailableError(self.name, f"not all of {replicas} replicas confirmed")

    def close(self) -> None:
        """Close pooled connections."""
        self._client.connection_pool.disconnect()

    def _fetch(
        self, keys: Sequence[str], scopes: Sequence[str]
    ) -> tuple[dict[str, bytes], dict[str, int], dict[str, int]]:
        names = [self._entry_key(key) for key in keys] + [self._generation_key(scope) for scope in scopes]
        values = cast("list[bytes | None]", self._client.mget(names))
        entries = {key: value for key, value in zip(keys, values, strict=False) if value is not None}
        numbers = zip(scopes, values[len(keys) :], strict=True)
        generations = {scope: int(value) for scope, value in numbers if value is not None and value.isdigit()}
        return entries, generations, {}

    def _store(self, items: Sequence[tuple[Entry, bytes]]) -> set[str]:
        pipe = self._client.pipeline(transaction=False)
        keys: list[str] = []
        now = time.time()
        for entry, envelope in items:
            if "redis" not in entry.placement:
                raise EntryRefusedError(self.name, f"{entry.key} is too large for Redis, or holds file contents")
            if (ttl_ms := int((entry.expires_at - now) * 1000)) > 0:
                keys.append(entry.key)
                pipe.eval(_SET_UNLESS_NEWER, 1, self._entry_key(entry.key), envelope, ttl_ms, entry.fence)  # pyright: ignore[reportUnknownMemberType]
        answers = cast("list[int]", pipe.execute())
        return {key for key, stored in zip(keys, answers, strict=True) if stored}

    def _remove(self, keys: Sequence[str]) -> int:
        return self._client.unlink(*(self._entry_key(key) for key in keys)) if keys else 0

    def _scan(self) -> Iterator[str]:
        prefix = self._entry_key("")
        for name in self._client.scan_iter(match=f"{prefix}*", count=500):  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
            yield cast("bytes", name).decode().removeprefix(prefix)

    def _describe(self) -> str:
        info = self._client.info()
        policy = info.get("maxmemory_policy", "unknown policy")
        return f"Redis {info['redis_version']}, {info['used_memory_human']} used, {policy}"

    def _entry_key(self, key: str) -> str:
        return f"cache-blocks:{self.namespace}:entry:{key}"

    def _generation_key(self, scope: str) -> str:
        return f"cache-blocks:{self.namespace}:generation:{scope}"
