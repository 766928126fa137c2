"""Tests of this folder run their tasks and flows against one real API server, in a test's own cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prefect.settings import (
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_LOGGING_TO_API_ENABLED,
    PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW,
    temporary_settings,
)

from cache_blocks import TieredCache
from cache_blocks.prefect.saved_block import forget_saved_blocks

if TYPE_CHECKING:
    from collections.abc import Generator

_ROOT = Path(__file__).parents[2]

# What the processes that tests start inherit.
_FOR_CHILDREN = {"PREFECT_LOGGING_TO_API_ENABLED": "false", "PREFECT_LOGGING_LEVEL": "WARNING"}


@pytest.fixture(scope="session", autouse=True)
def api(prefect_server: str) -> Generator[str]:
    """The address of the API; most tests run tasks outside of flows, whose logs have nowhere to go."""
    quick: dict[Any, Any] = {
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,  # a flow run waits up to a second for the end of its heart
        PREFECT_LOGGING_TO_API_ENABLED: False,
        PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW: "ignore",
    }
    with temporary_settings(quick):
        yield prefect_server


@pytest.fixture
def child_environment(api: str, cache_home: Path) -> dict[str, str]:
    """The environment of a process that shares this test's API and cache."""
    shared = {"PREFECT_API_URL": api, "CACHE_BLOCKS_HOME": str(cache_home), "PYTHONPATH": str(_ROOT)}
    return os.environ | _FOR_CHILDREN | shared


@pytest.fixture(autouse=True)
def cache(cache_home: Path) -> Generator[TieredCache]:
    """This test's cache, the one that tasks find by themselves."""
    del cache_home
    forget_saved_blocks()
    cache = TieredCache.from_settings()
    yield cache
    cache.close()
    forget_saved_blocks()
