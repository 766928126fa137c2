"""For authors of tiers: the contract every tier fulfils, and tiers that fail or wait when a test says so.

A plugin's test module needs two fixtures and gets the whole suite::

    class TestMyTier(TierContract):
        @pytest.fixture
        def make_tier(self, server):
            return lambda namespace: MyTier(server.url, namespace)

        @pytest.fixture
        def plant(self, server, tier):
            return lambda key, data: server.raw_write(tier.namespace, key, data)

This is the one part of the package that imports pytest.
"""

from cache_blocks.testing.contract import MakeTier, Plant, TierContract
from cache_blocks.testing.samples import HOSTILE_KEYS, KEY, entry_for
from cache_blocks.testing.troubled import FaultyTier, SlowTier, TierAround

__all__ = [
    "HOSTILE_KEYS",
    "KEY",
    "FaultyTier",
    "MakeTier",
    "Plant",
    "SlowTier",
    "TierAround",
    "TierContract",
    "entry_for",
]
