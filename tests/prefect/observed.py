"""What tests look at: how often a function ran, what the cache recorded, what was logged."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import sqlalchemy as sa
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from cache_blocks import Outcome
from cache_blocks import events as actions
from cache_blocks.events import CacheEvent
from cache_blocks.schema import EventRow, LeaseRow, table

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping
    from pathlib import Path

    import pytest

    from cache_blocks import TieredCache

T = TypeVar("T")
HIT, MISS, BYPASSED = Outcome.HIT, Outcome.MISS, Outcome.BYPASSED


class Calls:
    """Counts from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0

    def note(self) -> int:
        """Count a call and return its number."""
        with self._lock:
            self.count += 1
            return self.count


class Gate:
    """Holds a computation open until somebody has seen it begin."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.release = threading.Event()

    def pass_through(self) -> None:
        """Say that the computation has begun, and wait to be released."""
        self.begun.set()
        assert self.release.wait(60)


def outcomes(cache: TieredCache) -> list[str]:
    """Outcomes of this test's lookups, oldest first."""
    return [event.outcome for event in recorded(cache, actions.LOOKUP)]


def recorded(cache: TieredCache, action: str) -> list[CacheEvent]:
    """All events of an action that SQL has, whatever run they belong to, oldest first."""
    cache.parts.events.flush()
    with cache.parts.database.read() as connection:
        runs = list(connection.execute(sa.select(table(EventRow).c.flow_run_id).distinct()).scalars())
    found = [event for run in runs for event in cache.parts.events.of_run(run) if event.action == action]
    return sorted(found, key=lambda event: event.at)


def leases_held(cache: TieredCache) -> list[str]:
    """Keys that somebody has the right to compute."""
    leases = table(LeaseRow)
    with cache.parts.database.read() as connection:
        rows = sa.select(leases.c.key).where(leases.c.failed.is_(False))
        return list(connection.execute(rows).scalars())


def errors_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Messages at level ERROR and above."""
    return [record.getMessage() for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}]


def lines_of(caplog: pytest.LogCaptureFixture, *starts: str) -> list[str]:
    """Messages that begin with one of ``starts``."""
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith(starts)]


def artifacts_of(flow_run_id: UUID | str) -> dict[str, list[Any]]:
    """Data of a flow run's artifacts by key, as the API has them; a table's is parsed. Prefect's own have no key."""
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(str(flow_run_id))]))
    found: dict[str, list[Any]] = {}
    with get_client(sync_client=True) as client:
        for artifact in client.read_artifacts(artifact_filter=wanted):
            data: Any = artifact.data
            if artifact.key is not None:
                found.setdefault(artifact.key, []).append(json.loads(data) if artifact.type == "table" else data)
    return found


def totals_of(flow_run_id: UUID | str) -> tuple[int, int, int]:
    """Lookups, hits and bypassed calls in the one table of a flow run."""
    (table,) = artifacts_of(flow_run_id)["cache-hits"]
    return tuple(sum(row[name] for row in table if row["kind"] != "all") for name in ("lookups", "hits", "bypassed"))  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


def run_python(*arguments: str | Path, environment: Mapping[str, str], cwd: Path | None = None) -> str:
    """Run Python in a process of its own and return its standard output; fails with what it wrote."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=dict(environment), cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """Do as `asyncio.run` does; what Prefect leaves open is collected here rather than in somebody else's test.

    An async flow, of plain tasks as well, leaves its client's connection to the garbage collector.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "unclosed <socket", ResourceWarning)
        try:
            return asyncio.run(coroutine)
        finally:
            gc.collect()
