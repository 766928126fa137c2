"""`cache-maintenance`: what may go goes, what is in use stays, and the run says what it did."""

import json
import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from cache_blocks import NO_VALUE, CacheKind, TieredCache
from cache_blocks.blobs import GRACE_SECONDS
from flows.cache_maintenance import cache_maintenance
from tests.pipeline.batches import SAMPLES, artifacts_of, run_batch
from tests.pipeline.conftest import FirstRun

MOMENTARY = CacheKind("momentary", ttl=timedelta(microseconds=1))


def maintained() -> tuple[dict[str, object], dict[str, str]]:
    """What a run returns, and its artifact."""
    state = cache_maintenance(return_state=True)
    artifact = artifacts_of(str(state.state_details.flow_run_id))["cache-maintenance"]
    return state.result(), {row["what"]: row["count"] for row in json.loads(str(artifact.data))}


def grow_old(folder: Path) -> None:
    """Let the files of a folder, and the folders, be older than the time in which a blob's entry may yet come."""
    then = time.time() - 2 * GRACE_SECONDS
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def test_a_cache_in_use_is_left_alone(warm: FirstRun, cache: TieredCache, cache_home: Path, tmp_path: Path) -> None:
    grow_old(cache_home / "objects")
    grow_old(cache_home / "files")

    counts, shown = maintained()

    assert cache.settings.home == cache_home
    assert {name: count for name, count in counts.items() if count} == {}
    assert (shown["expired"], shown["bytes freed"], shown["errors"]) == ("0", "0", "none")
    assert run_batch(SAMPLES, tmp_path / "output").hits == warm.ran.misses


def test_expired_and_invalidated_entries_go_with_their_sound(
    warm: FirstRun, cache: TieredCache, cache_home: Path
) -> None:
    recording = warm.ran.summary.results[0].recording
    cache.put("momentary:1", "gone already", kind=MOMENTARY)
    cache.invalidate(tag=f"recording:{recording}")
    grow_old(cache_home / "objects")

    counts, shown = maintained()

    assert (counts["expired"], counts["invalidated"], counts["blobs"]) == (1, 3, 1)
    assert shown["invalidated"] == "3"
    assert cache.get("momentary:1") is NO_VALUE
    assert len([path for path in (cache_home / "objects").rglob("blobs/*/*") if path.is_file()]) == 4


def test_what_could_not_be_done_is_said(
    warm: FirstRun, cache_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CACHE_BLOCKS_REDIS_URL", "redis://127.0.0.1:9/0")

    counts, shown = maintained()

    assert warm.home != cache_home
    assert counts["errors"]
    assert shown["errors"].startswith("redis")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any(text.startswith("maintenance: redis") for text in warnings)
