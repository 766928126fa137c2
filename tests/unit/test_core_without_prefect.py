"""The core knows no orchestrator, and importing it touches nothing. Each test is a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import cache_blocks

CORE = [
    "assembly",
    "blobs",
    "cache",
    "codec",
    "database",
    "entry",
    "errors",
    "events",
    "files",
    "fingerprint",
    "flights",
    "generations",
    "invalidation",
    "keys",
    "kinds",
    "lease_keeper",
    "leases",
    "metrics",
    "plan",
    "schema",
    "settings",
    "values",
    "wholeness",
    "tiers",
    "tiers.base",
    "tiers.breaker",
    "tiers.chain",
    "tiers.memory",
    "tiers.object_store",
    "tiers.redis",
    "tiers.redis_cluster",
    "tiers.redis_history",
    "tiers.redis_sentinel",
    "tiers.redis_servers",
    "tiers.sql",
]
WATCH = """
import os, sys
opened = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "sqlite3.connect"):
        opened.append((event, arguments))
sys.addaudithook(watch)
"""


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_core_imports_no_prefect() -> None:
    imports = "".join(f"import cache_blocks.{name}\n" for name in CORE)
    run(f"import sys, cache_blocks\n{imports}assert 'prefect' not in sys.modules")


def test_the_public_face_of_the_core_loads_no_prefect() -> None:
    names = (
        "TieredCache, CacheSettings, CacheKind, CachedFile, CacheMetrics, Outcome, NO_VALUE, TRANSCRIPT, record_usage"
    )
    run(f"from cache_blocks import {names}\nimport sys\nassert 'prefect' not in sys.modules")


def test_the_cache_works_without_prefect(cache_home: object) -> None:
    code = "from cache_blocks import TieredCache, TRANSCRIPT\nimport sys\ncache = TieredCache.from_settings()\n"
    code += "print([cache.get_or_compute('transcript:1', lambda: 'text', kind=TRANSCRIPT) for _ in range(2)])\n"
    code += "cache.close()\nassert 'prefect' not in sys.modules"
    assert run(code, CACHE_BLOCKS_HOME=str(cache_home)) == "['text', 'text']\n"


def test_importing_opens_no_connection_and_reads_no_setting() -> None:
    code = WATCH + "import cache_blocks\n" + "".join(f"import cache_blocks.{name}\n" for name in CORE)
    code += "assert not opened, opened\nos.environ['CACHE_BLOCKS_MODE'] = 'read-only'\n"
    code += "assert cache_blocks.TieredCache.from_settings().settings.mode == 'read-only'"
    run(code, CACHE_BLOCKS_MODE="nonsense that is not read")


def test_making_a_cache_opens_nothing(cache_home: object) -> None:
    code = WATCH + "from cache_blocks import TieredCache, CacheSettings\ncache = TieredCache(CacheSettings())\n"
    code += "cache.parts\nassert not opened, opened\nassert not cache.settings.home.exists()\n"
    run(code, CACHE_BLOCKS_HOME=str(cache_home), CACHE_BLOCKS_REDIS_URL="redis://127.0.0.1:1/0")


@pytest.mark.parametrize("name", cache_blocks.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(cache_blocks, name) is not None
    assert name in dir(cache_blocks)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cache_blocks.nothing  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]
