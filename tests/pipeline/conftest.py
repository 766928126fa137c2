"""Real flow runs of the pipeline: one API server and one first run over the samples per test process."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from cache_blocks import TieredCache
from cache_blocks.prefect.saved_block import forget_saved_blocks
from tests.pipeline.batches import SAMPLES, Ran, run_batch

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


PATIENT = {f"CACHE_BLOCKS_{tier}_TIMEOUT_SECONDS": "30" for tier in ("REDIS", "DATABASE", "OBJECT_STORE")}
"""These tests show where results come from, on a machine that may be busy, and not how soon a tier is given up."""


@dataclass(frozen=True)
class FirstRun:
    """What the first run over the samples, with the embedded defaults, has left behind.

    Attributes:
        home: The cache's files, to be copied.
        output: Its outputs, to be read.
        ran: What it did.
    """

    home: Path
    output: Path
    ran: Ran


@pytest.fixture(scope="session", autouse=True)
def api(prefect_server: str) -> Generator[str]:
    """The address of the API. Sending logs to it costs each flow run most of a second."""
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}):
        yield prefect_server


@pytest.fixture(autouse=True)
def cache(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[TieredCache]:
    """This test's cache, the one that tasks find by themselves; its tiers are the embedded defaults."""
    del cache_home
    set_all(monkeypatch, PATIENT)
    with closing_cache() as cache:
        yield cache


@pytest.fixture(scope="session")
def first_run(api: str, tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    """The first run over the samples: it is the only one that has to transcribe them all."""
    del api
    folder = tmp_path_factory.mktemp("first-run")
    home, output = folder / "home", folder / "output"
    with pytest.MonkeyPatch.context() as patch:
        set_all(patch, PATIENT | {"CACHE_BLOCKS_HOME": str(home)})
        with closing_cache():
            ran = run_batch(SAMPLES, output)
    return FirstRun(home, output, ran)


@pytest.fixture
def warm(first_run: FirstRun, cache: TieredCache, cache_home: Path) -> FirstRun:
    """This test's cache, with what the first run has put into it."""
    assert not cache_home.exists(), "the cache is opened after this"
    del cache
    shutil.copytree(first_run.home, cache_home)
    return first_run


@pytest.fixture
def child_environment(api: str) -> dict[str, str]:
    """The environment of a process that shares this test's API and cache."""
    quiet = {"PREFECT_LOGGING_TO_API_ENABLED": "false", "PREFECT_LOGGING_LEVEL": "WARNING"}
    return os.environ | quiet | {"PREFECT_API_URL": api}


def set_all(patch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Set environment variables."""
    for name, value in variables.items():
        patch.setenv(name, value)


@contextmanager
def closing_cache() -> Generator[TieredCache]:
    """The cache that the environment names, closed at the end."""
    forget_saved_blocks()
    cache = TieredCache.from_settings()
    try:
        yield cache
    finally:
        cache.close()
        forget_saved_blocks()
