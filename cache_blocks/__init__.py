"""A tiered preprocessing cache for Prefect.

The names below are the public face. They are loaded when they are used, so that importing the package, or its
core, does not import Prefect.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from cache_blocks.cache import TieredCache
    from cache_blocks.entry import NO_VALUE, Outcome
    from cache_blocks.errors import CacheError
    from cache_blocks.files import CachedFile
    from cache_blocks.flights import record_usage
    from cache_blocks.kinds import (
        AI_ENHANCEMENT,
        AUDIO_PREPROCESSING,
        SEARCH_RESULTS,
        TRANSCRIPT,
        USER_PREFERENCES,
        CacheKind,
        CacheTTL,
    )
    from cache_blocks.metrics import CacheMetrics
    from cache_blocks.prefect.block import TieredCacheBlock
    from cache_blocks.prefect.cached_map import cached_map
    from cache_blocks.prefect.cached_task import cached_task
    from cache_blocks.prefect.planning import plan_map
    from cache_blocks.prefect.policy import TieredCachePolicy, tiered_cache_key_fn
    from cache_blocks.settings import CacheSettings

__version__ = "0.1.0"

_HOMES: Final = {
    "cache_blocks.cache": ("TieredCache",),
    "cache_blocks.entry": ("NO_VALUE", "Outcome"),
    "cache_blocks.errors": ("CacheError",),
    "cache_blocks.files": ("CachedFile",),
    "cache_blocks.flights": ("record_usage",),
    "cache_blocks.kinds": (
        "AI_ENHANCEMENT",
        "AUDIO_PREPROCESSING",
        "SEARCH_RESULTS",
        "TRANSCRIPT",
        "USER_PREFERENCES",
        "CacheKind",
        "CacheTTL",
    ),
    "cache_blocks.metrics": ("CacheMetrics",),
    "cache_blocks.prefect.block": ("TieredCacheBlock",),
    "cache_blocks.prefect.cached_map": ("cached_map",),
    "cache_blocks.prefect.cached_task": ("cached_task",),
    "cache_blocks.prefect.planning": ("plan_map",),
    "cache_blocks.prefect.policy": ("TieredCachePolicy", "tiered_cache_key_fn"),
    "cache_blocks.settings": ("CacheSettings",),
}
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AI_ENHANCEMENT",
    "AUDIO_PREPROCESSING",
    "NO_VALUE",
    "SEARCH_RESULTS",
    "TRANSCRIPT",
    "USER_PREFERENCES",
    "CacheError",
    "CacheKind",
    "CacheMetrics",
    "CacheSettings",
    "CacheTTL",
    "CachedFile",
    "Outcome",
    "TieredCache",
    "TieredCacheBlock",
    "TieredCachePolicy",
    "cached_map",
    "cached_task",
    "plan_map",
    "record_usage",
    "tiered_cache_key_fn",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
