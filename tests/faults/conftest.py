"""What the tests of outages share: caches over real servers, and what counts attempts to reach one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from cache_blocks import CacheSettings, TieredCache

if TYPE_CHECKING:
    from collections.abc import Generator

MakeCache = Callable[..., TieredCache]


@pytest.fixture
def make_cache() -> Generator[MakeCache]:
    """Makes caches that look again at a failed tier after a moment; closes them in the end."""
    caches: list[TieredCache] = []

    def make(**settings: Any) -> TieredCache:
        given: dict[str, Any] = {"breaker_seconds": 0.1, **settings}
        caches.append(TieredCache(CacheSettings(**given)))
        return caches[-1]

    yield make
    for cache in caches:
        cache.close()


def until(condition: Callable[[], object]) -> None:
    """Wait for what another process or clock brings about; fail when it does not."""
    for _ in _patience():
        if condition():
            return
    pytest.fail("it never happened")


def _patience() -> Iterator[None]:
    deadline = time.monotonic() + 90  # processes that start on a busy machine
    while time.monotonic() < deadline:
        yield
        time.sleep(0.02)
