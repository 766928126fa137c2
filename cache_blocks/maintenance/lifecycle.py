"""A lifecycle rule for the bucket: a second net behind maintenance, should nobody run that.

It deletes later than maintenance would, and never what still lives: each prefix keeps its objects for the longest
lifetime of what is under it, and a margin. The mirror of the generations has no rule, because it has no lifetime.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from cache_blocks.errors import ConfigurationError
from cache_blocks.kinds import BUILT_IN_KINDS
from cache_blocks.tallies import DAY_SECONDS

if TYPE_CHECKING:
    from cache_blocks.cache import TieredCache
    from cache_blocks.database import Database

MARGIN_DAYS: Final = 7
"""How much longer than its lifetime an object is left to maintenance. It also covers what S3 counts differently: an
object's age begins when it is written, and a blob may be that an hour before its entry."""
ABORT_DAYS: Final = 2
"""How old an upload is that nobody will finish."""


def lifecycle(cache: TieredCache, own_kinds: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Return a lifecycle configuration, as ``aws s3api put-bucket-lifecycle-configuration`` takes it.

    Args:
        cache: The cache whose namespace it is for.
        own_kinds: Lifetimes, in seconds, of kinds that are not built in.

    Raises:
        ConfigurationError: The object store is not S3, or there are entries of a kind whose lifetime is not known.
        TierUnavailableError: SQL does not answer.
    """
    store, namespace = cache.parts.store, cache.settings.namespace
    if not store.is_s3:
        raise ConfigurationError(f"object store {store.label} is not S3, and takes no lifecycle configuration")
    declared = {kind.name: kind.ttl.total_seconds() for kind in BUILT_IN_KINDS} | dict(own_kinds or {})
    stored = _longest_stored(cache.parts.database, namespace)
    if unknown := sorted(stored.keys() - declared.keys()):
        raise ConfigurationError(f"how long do entries of kind {unknown[0]!r} live? Say --kind {unknown[0]}=30d")
    lifetimes = {kind: max(seconds, stored.get(kind, 0.0)) for kind, seconds in declared.items()}
    return rules(store.path(namespace).partition("/")[2], lifetimes)


def rules(folder: str, lifetimes: Mapping[str, float]) -> dict[str, Any]:
    """Return the configuration for a namespace's folder in its bucket.

    Args:
        folder: Without a slash at its end.
        lifetimes: By kind, in seconds.
    """
    prefixes = {f"entries/{kind}/": [seconds] for kind, seconds in sorted(lifetimes.items())}
    prefixes["blobs/"] = list(lifetimes.values())  # a blob may belong to entries of any kind
    expiring = [
        _rule(f"{folder}/{prefix}", Expiration={"Days": _days(seconds)}) for prefix, seconds in prefixes.items()
    ]
    return {
        "Rules": [
            *expiring,
            _rule(f"{folder}/", AbortIncompleteMultipartUpload={"DaysAfterInitiation": ABORT_DAYS}),
        ]
    }


def _days(lifetimes: Iterable[float]) -> int:
    return math.ceil(max(lifetimes) / DAY_SECONDS) + MARGIN_DAYS


def _rule(prefix: str, **action: Any) -> dict[str, Any]:
    return {"ID": f"cache-blocks {prefix}"[:255], "Status": "Enabled", "Filter": {"Prefix": prefix}, **action}


def _longest_stored(database: Database, namespace: str) -> dict[str, float]:
    """Return by kind the longest lifetime of an entry, which may be of a time when the kind had a longer one."""
    mark = "?" if database.is_sqlite else "%s"
    statement = (
        "SELECT kind, max(expires_at - created_at) FROM cache_blocks_entry "  # noqa: S608 - a constant
        f"WHERE namespace = {mark} GROUP BY kind"
    )
    with database.unhurried() as driver:  # it reads all entries
        return {str(kind): float(seconds) for kind, seconds in driver.execute(statement, (namespace,)).fetchall()}
