"""Maintenance: collect, verify, inspect and forget what the tiers keep. Knows no orchestrator."""

from cache_blocks.maintenance.collecting import Collected, collect
from cache_blocks.maintenance.forgetting import Forgotten, digest_of_recording, forget
from cache_blocks.maintenance.inspecting import EntryDetails, EntrySummary, closest, count, ls, show
from cache_blocks.maintenance.statistics import KindStats, Stats, stats
from cache_blocks.maintenance.verifying import Verified, verify

__all__ = [
    "Collected",
    "EntryDetails",
    "EntrySummary",
    "Forgotten",
    "KindStats",
    "Stats",
    "Verified",
    "closest",
    "collect",
    "count",
    "digest_of_recording",
    "forget",
    "ls",
    "show",
    "stats",
    "verify",
]
