"""A run of the flow in `dying.py` that is about to end before its time, and what must hold afterwards."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.client.orchestration import get_client

from cache_blocks.blobs import GRACE_SECONDS
from cache_blocks.maintenance import collect
from cache_blocks.prefect.dead_runs import SETTLE_SECONDS, SILENT_SECONDS, report_dead_runs
from tests.faults.conftest import until
from tests.prefect.dying import SOUND
from tests.prefect.observed import artifacts_of, recorded, totals_of

if TYPE_CHECKING:
    import subprocess

    from prefect.client.schemas.objects import StateType

    from cache_blocks import TieredCache
    from cache_blocks.leases import LeaseState

PROMISE = "A flow run leaves no half-written entry, no lease, and a report"
SETTINGS = {f"CACHE_BLOCKS_{tier}_TIMEOUT_SECONDS": "30" for tier in ("REDIS", "DATABASE", "OBJECT_STORE")}
SETTINGS["CACHE_BLOCKS_LEASE_SECONDS"] = "1"  # nobody renews those of the dead
SETTLED = SETTLE_SECONDS + 60
SILENT = SILENT_SECONDS + 60


@dataclass(frozen=True)
class Doomed:
    """A run of the flow that has come to a step.

    Attributes:
        cache: The cache that it uses.
        id: Its id.
        first: Key of the file that it has kept.
        second: Key of the file that it is about to keep.
        pid: The process that runs it.
    """

    cache: TieredCache
    id: UUID
    first: str
    second: str
    pid: int

    @property
    def state(self) -> StateType | None:
        """What Prefect says of it."""
        with get_client(sync_client=True) as client:
            return client.read_flow_run(self.id).state_type

    @property
    def lease(self) -> LeaseState:
        """Who may compute the second file."""
        return self.cache.parts.leases.view(self.second).state

    def objects(self, folder: str) -> list[str]:
        """What the object store has in a folder."""
        store = self.cache.parts.store
        return [path for path, _ in store.walk(store.path("default", folder))]

    def kept(self, key: str) -> bytes:
        """The bytes that a reader gets."""
        return self.cache.get(key, annotation=Path).path.read_bytes()


def doomed(cache: TieredCache, note: Path, process: subprocess.Popen[bytes] | None = None) -> Doomed:
    """Wait until the flow has noted that it is at its step, and its two lookups are in SQL.

    Args:
        cache: Its cache.
        note: Where it notes that.
        process: Its process, if the test has started it: nothing is to be waited for once that has ended.
    """
    until(lambda: note.exists() or (process is not None and process.poll() is not None))
    assert note.exists(), "it has ended before; its standard error says why"
    until(lambda: len(recorded(cache, "lookup")) == 2)
    first, second = recorded(cache, "lookup")
    return Doomed(cache, UUID(first.origin.flow_run_id), first.key, second.key, int(note.read_text()))


def assert_nothing_half_written_is_visible(run: Doomed) -> None:
    for tier in run.cache.parts.chain.tiers:
        assert run.second not in tier.read([run.second]).entries, tier.name
        assert run.second not in set(tier.keys()), tier.name
    assert run.cache.lookup(run.second).outcome == "miss"
    assert run.objects("entries") == [], "such small entries are in SQL and Redis"
    assert run.kept(run.first) == SOUND + b"first"


def assert_reported_once(run: Doomed, now: float, *, by_maintenance: bool, says: str) -> None:
    assert report_dead_runs(run.cache, now=now).reported == by_maintenance
    for _ in range(2):
        (report,) = artifacts_of(run.id)["cache-report"]
        assert says in report
        assert "2 misses" in report
        assert totals_of(run.id) == (2, 0, 0)
        again = report_dead_runs(run.cache, now=now)
        assert (again.reported, again.errors) == (0, [])


def assert_maintenance_takes_what_nothing_refers_to(run: Doomed, *, blobs: int, unfinished: int) -> None:
    early = collect(run.cache)
    assert (early.blobs, early.unfinished, early.errors) == (0, 0, [])
    late = collect(run.cache, now=time.time() + GRACE_SECONDS + 60)
    assert (late.blobs, late.unfinished, late.errors) == (blobs, unfinished, [])
    assert len(run.objects("blobs")) == 1
    assert run.cache.lookup(run.first).is_hit
    assert run.kept(run.first) == SOUND + b"first"
