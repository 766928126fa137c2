"""From settings to parts: which tiers there are, and how they are wired."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from cache_blocks import events
from cache_blocks.blobs import BlobStore
from cache_blocks.database import Database
from cache_blocks.errors import ConfigurationError
from cache_blocks.event_log import EventLog
from cache_blocks.explaining import Explainer
from cache_blocks.generations import Generations
from cache_blocks.history import History
from cache_blocks.invalidation import Invalidator, Teller
from cache_blocks.lease_keeper import LeaseKeeper
from cache_blocks.leases import RedisLeases, SqlLeases
from cache_blocks.local_files import LocalFiles
from cache_blocks.plans import PlanLog
from cache_blocks.private.files import PrivateFiles
from cache_blocks.reading import Reader
from cache_blocks.tiers.breaker import Breaker
from cache_blocks.tiers.chain import Chain
from cache_blocks.tiers.memory import MemoryTier
from cache_blocks.tiers.object_store import ObjectStore, ObjectStoreTier
from cache_blocks.tiers.redis import RedisTier, connect
from cache_blocks.tiers.sql import SqlTier
from cache_blocks.traffic import Traffic
from cache_blocks.writing import Writer

if TYPE_CHECKING:
    from cache_blocks.private.privacy import Privacy
    from cache_blocks.settings import CacheSettings
    from cache_blocks.tiers.base import Tier
    from cache_blocks.tiers.redis_servers import RedisServers

Record = Callable[[Iterable[events.CacheEvent]], None]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a cache is made of."""

    chain: Chain
    database: Database
    store: ObjectStore
    blobs: BlobStore
    reader: Reader
    writer: Writer
    generations: Generations
    invalidator: Invalidator
    leases: LeaseKeeper
    events: EventLog
    explainer: Explainer
    history: History
    plans: PlanLog

    def begin(self, scopes: Sequence[str]) -> tuple[int, dict[str, int]]:
        """Number a computation that begins now, see `Generations.begin`, unless SQL is being skipped."""
        return self.chain.breakers["sql"].call(self.generations.begin, scopes)


def assemble(settings: CacheSettings, clock: Callable[[], float], record: Record, privacy: Privacy) -> Parts:
    """Return the parts for these settings; opens no connection.

    Args:
        settings: Where the tiers are.
        clock: Seconds since the epoch.
        record: Takes the events of tiers that go and return.
        privacy: Seals and opens what is private.
    """
    namespace = settings.namespace
    database = Database(
        settings.database_url.get_secret_value(), settings.database_timeout_seconds, settings.database_connections
    )
    traffic = Traffic()
    store = ObjectStore(
        settings.object_store_url.get_secret_value(),
        _options(settings),
        settings.object_store_timeout_seconds,
        traffic,
    )
    far = ObjectStoreTier(store, namespace)
    breakers: dict[str, Breaker] = {}
    generations = Generations(database, namespace, lambda: breakers["object_store"].call(far.mirrored_generations))
    sql = SqlTier(database, namespace, generations.reseed)
    client = _redis(settings)
    hot: Tier = MemoryTier(namespace, settings.memory_max_bytes) if client is None else RedisTier(client, namespace)

    tellers: dict[str, Teller] = {"object_store": far.mirror_generations}
    if isinstance(hot, RedisTier):
        tellers["redis"] = hot.raise_generations
    invalidator = Invalidator(generations, tellers, breakers)
    breakers.update({tier.name: _breaker(tier.name, settings, record, invalidator) for tier in (hot, sql, far)})
    book = (
        SqlLeases(database, namespace, settings.lease_seconds)
        if client is None
        else RedisLeases(client, namespace, settings.lease_seconds)
    )
    chain = Chain([hot, sql, far], breakers)
    log = EventLog(database, namespace, breakers["sql"], traffic.take)
    traffic.on_first = log.expect
    blobs = BlobStore(
        store,
        breakers["object_store"],
        namespace,
        LocalFiles(settings.local_files, settings.local_files_max_bytes),
        lambda digests: breakers["sql"].call(sql.referring, digests),
        PrivateFiles(privacy, namespace, settings.local_files),
    )
    return Parts(
        chain=chain,
        database=database,
        store=store,
        blobs=blobs,
        reader=Reader(chain, blobs, clock, privacy, promote=settings.mode == "on"),
        explainer=Explainer(database, namespace, breakers["sql"]),
        history=History(database, namespace),
        plans=PlanLog(database, namespace, privacy),
        writer=Writer(chain, blobs, namespace, clock, record, privacy),
        generations=generations,
        invalidator=invalidator,
        leases=LeaseKeeper(book, breakers["sql" if client is None else "redis"]),
        events=log,
    )


def _redis(settings: CacheSettings) -> RedisServers | None:
    if settings.hot_tier_is_local:
        return None
    return connect(settings.redis_url.get_secret_value(), settings.redis_timeout_seconds)


def _options(settings: CacheSettings) -> dict[str, Any]:
    try:
        options: Any = orjson.loads(settings.object_store_options.get_secret_value())
    except orjson.JSONDecodeError:  # which holds the text
        raise ConfigurationError("CACHE_BLOCKS_OBJECT_STORE_OPTIONS is not JSON") from None
    if not isinstance(options, dict):
        raise ConfigurationError("CACHE_BLOCKS_OBJECT_STORE_OPTIONS is not a JSON object")
    return options  # pyright: ignore[reportUnknownVariableType]


def _breaker(tier: str, settings: CacheSettings, record: Record, invalidator: Invalidator) -> Breaker:
    """Return a breaker that tells the log of outages, and a returning tier what it has missed."""

    def changed(tier: str, down: bool, why: str) -> None:  # noqa: FBT001 - the hook's one flag
        record([events.CacheEvent(events.TIER_DOWN if down else events.TIER_UP, tier=tier, reason=why)])

    def catch_up() -> None:
        invalidator.catch_up(tier)

    return Breaker(tier, settings.breaker_seconds, before_close=catch_up, on_change=changed)
