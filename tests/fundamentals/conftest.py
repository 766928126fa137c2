"""What the lessons share: a cache with the embedded defaults, and a clock to turn."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from cache_blocks import TieredCache

if TYPE_CHECKING:
    from collections.abc import Generator


class Clock:
    """Seconds since the epoch that a test can move."""

    def __init__(self) -> None:
        self.moved = 0.0

    def __call__(self) -> float:
        return time.time() + self.moved


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> Generator[TieredCache]:
    """Memory, SQLite and a folder: what anybody gets who configures nothing."""
    cache = TieredCache(clock=clock)
    yield cache
    cache.close()
