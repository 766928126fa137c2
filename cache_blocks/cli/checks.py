"""Checks of `doctor` that need no orchestrator. Each says what it found, and what to do if that is not good."""

from __future__ import annotations

import difflib
import importlib.metadata
import platform
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import sqlalchemy as sa
from alembic.util import CommandError
from packaging.requirements import Requirement

from cache_blocks.cli.settings_shown import PREFIX, unknown_variables
from cache_blocks.errors import CacheError, ConfigurationError, TierUnavailableError
from cache_blocks.maintenance.walking import object_store_errors
from cache_blocks.schema import UntoldRow, table
from cache_blocks.settings import CacheSettings
from cache_blocks.tiers.base import describe
from cache_blocks.tiers.redis import connect
from cache_blocks.tiers.redis_servers import OUTAGES
from cache_blocks.upgrading import SCHEMA_VERSION

if TYPE_CHECKING:
    from cache_blocks.cache import TieredCache
    from cache_blocks.tiers.redis_servers import Seen

DISTRIBUTION: Final = "prefect-cache-blocks"
_VERSION_TABLE: Final = "cache_blocks_schema"
_WAYS_OUT: Final = {
    "redis": "start it or correct CACHE_BLOCKS_REDIS_URL; until then every lookup asks SQL",
    "sql": "start it or correct CACHE_BLOCKS_DATABASE_URL; until then nothing hits and nothing is stored",
    "object_store": "correct CACHE_BLOCKS_OBJECT_STORE_URL and CACHE_BLOCKS_OBJECT_STORE_OPTIONS; until then no file "
    "is stored or found",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        state: ``ok``; ``advice``: it works, but could be better; ``broken``.
        found: What was found.
        way_out: What to do; empty when all is well.
    """

    name: str
    state: Literal["ok", "advice", "broken"]
    found: str
    way_out: str = ""


def packages() -> Iterator[Check]:
    """Check that what is installed is what this package was made for, FastAPI's upper bound among it."""
    yield Check("python", "ok", platform.python_version())
    try:
        required = importlib.metadata.requires(DISTRIBUTION) or []
        version = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        yield Check(
            "packages", "advice", f"{DISTRIBUTION} is not installed", "`pip install -e .` in its checkout installs it"
        )
        return
    yield Check(DISTRIBUTION, "ok", version)
    for requirement in map(Requirement, required):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _package(requirement)


def _package(requirement: Requirement) -> Check:
    way_out = f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Check(requirement.name, "broken", "not installed", way_out)
    if requirement.specifier.contains(version, prereleases=True):
        return Check(requirement.name, "ok", version)
    return Check(requirement.name, "broken", f"{version}, needs {requirement.specifier}", way_out)


def variables() -> Iterator[Check]:
    """Check that no environment variable is a setting misspelt."""
    known = [f"{PREFIX}{field.upper()}" for field in CacheSettings.model_fields]
    for name in unknown_variables():
        meant = difflib.get_close_matches(name.upper(), known, n=1)
        yield Check(name, "advice", "is not a setting", f"did you mean {meant[0]}?" if meant else "remove it")


def mode(settings: CacheSettings) -> Check:
    """Check that the cache is on."""
    if settings.mode == "on":
        return Check("mode", "ok", "on")
    return Check("mode", "advice", settings.mode, "results are not stored; unset CACHE_BLOCKS_MODE to store them")


def home(settings: CacheSettings) -> Check:
    """Check that the home can be written."""
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.home):
            return Check("home", "ok", str(settings.home))
    except OSError as error:
        found = f"{settings.home} cannot be written ({error.strerror})"
        return Check("home", "broken", found, "correct its permissions, or set CACHE_BLOCKS_HOME")


def tiers(cache: TieredCache) -> Iterator[Check]:
    """Check that every tier answers, and that the object store can be written."""
    for tier in cache.parts.chain.tiers:
        yield _timed(tier.name, tier.ping)
    yield _timed("object_store writes", lambda: _write_probe(cache))


def _timed(name: str, function: Callable[[], str]) -> Check:
    """Check that a function returns, and tell what it returned and how long it took."""
    started = time.perf_counter()
    try:
        found = function()
    except (CacheError, CommandError) as error:
        why = error.why if isinstance(error, TierUnavailableError) else str(error)
        return Check(name, "broken", why, _WAYS_OUT.get(name.partition(" ")[0], ""))
    return Check(name, "ok", f"{found} ({(time.perf_counter() - started) * 1000:.1f} ms)")


def _write_probe(cache: TieredCache) -> str:
    """Write, read and delete an object that maintenance would collect if it were left."""
    store, content = cache.parts.store, secrets.token_bytes(16)
    path = store.path(cache.settings.namespace, "blobs", f".tmp-doctor-{content.hex()}")
    with object_store_errors():
        store.write(path, content)
        if store.read(path) != content:
            raise TierUnavailableError("object_store", "gives back other bytes than were written")
        store.delete([path])
    return "written, read and deleted"


def redis_memory(settings: CacheSettings) -> Iterator[Check]:
    """Check that every Redis makes room when it is full, and that what goes first is not what is needed most."""
    if settings.hot_tier_is_local:
        yield Check(
            "hot tier",
            "advice",
            "none is configured; every process has a hot tier of its own",
            "set CACHE_BLOCKS_REDIS_URL to share one",
        )
        return
    try:
        with connect(settings.redis_url.get_secret_value(), settings.redis_timeout_seconds) as servers:
            seen = servers.look()
    except (CacheError, *OUTAGES) as error:
        yield Check("redis memory", "broken", describe(error), _WAYS_OUT["redis"])
        return
    for one in seen:
        yield memory_of(one, "redis memory" if len(seen) == 1 else f"redis memory of {one.address}")


def memory_of(seen: Seen, name: str = "redis memory") -> Check:
    """Return what to say of one server's limit and policy."""
    if not seen.info:
        return Check(name, "advice", "its user may not ask (INFO)", "grant it +info, or see docs/how-to/redis.md")
    limit, policy = int(seen.info.get("maxmemory", 0)), str(seen.info.get("maxmemory_policy", "unknown"))
    found = f"maxmemory {seen.info.get('maxmemory_human', limit)}, policy {policy}"
    if not limit:
        return Check(name, "advice", found, "set maxmemory, so that Redis cannot take all of the machine's")
    if policy == "noeviction":
        return Check(name, "advice", found, "set maxmemory-policy allkeys-lru; when full it refuses writes")
    if policy == "volatile-ttl" or policy.endswith("-random"):
        way_out = "set maxmemory-policy allkeys-lru; this one evicts leases and generations before what is never read"
        return Check(name, "advice", found, way_out)
    forever = sum(int(one["keys"]) - int(one["expires"]) for one in seen.info.values() if _is_database(one))
    if policy.startswith("volatile-") and forever:
        way_out = "set maxmemory-policy allkeys-lru, or move what has no expiry to another Redis; only ours makes room"
        return Check(name, "advice", f"{found}, {forever} keys without an expiry", way_out)
    return Check(name, "ok", found)


def _is_database(section: object) -> bool:
    return isinstance(section, dict) and "expires" in section


def schema(cache: TieredCache) -> Check:
    """Check that the tables are this version's."""
    try:
        with cache.parts.database.read() as connection:
            version: object = connection.execute(sa.text(f"SELECT version_num FROM {_VERSION_TABLE}")).scalar()  # noqa: S608
    except TierUnavailableError as error:
        return Check("schema", "broken", error.why, _WAYS_OUT["sql"])
    except CommandError as error:
        way_out = "another version of this package has made the tables; upgrade this one to it"
        return Check("schema", "broken", re.sub(r"\s+", " ", str(error)), way_out)
    if version == SCHEMA_VERSION:
        return Check("schema", "ok", str(version))
    way_out = "another version of this package has made the tables; upgrade the older one"
    return Check("schema", "broken", f"version {version}, this package knows {SCHEMA_VERSION}", way_out)


def untold(cache: TieredCache) -> Check:
    """Check that every tier has been told of every invalidation."""
    rows = table(UntoldRow)
    statement = (
        sa.select(rows.c.tier, sa.func.count())
        .where(rows.c.namespace == cache.settings.namespace)
        .group_by(rows.c.tier)
        .order_by(rows.c.tier)
    )
    try:
        with cache.parts.database.read() as connection:
            counts = [f"{tier} {number}" for tier, number in connection.execute(statement)]
    except (TierUnavailableError, ConfigurationError, CommandError) as error:
        return Check("invalidations", "broken", describe(error), _WAYS_OUT["sql"])
    if not counts:
        return Check("invalidations", "ok", "every tier has been told")
    found = f"not told yet: {', '.join(counts)}"
    return Check("invalidations", "broken", found, "run `cache-blocks gc` when the tier answers again")
