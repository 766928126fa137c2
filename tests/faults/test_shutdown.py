"""A process that uses the cache may fork, be handed a cache, and end whenever it likes."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from cache_blocks import AUDIO_PREPROCESSING, TRANSCRIPT, CachedFile, TieredCache, events
from tests.faults.conftest import MakeCache, until
from tests.servers.proxy import proxy_to_postgres

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.conftest import Notes, Spawn

KEY = "transcript:1"
PATIENT = {f"{tier}_timeout_seconds": 30 for tier in ("redis", "database", "object_store")}
NEVER = {"CACHE_BLOCKS_LEASE_SECONDS": "3600", "CACHE_BLOCKS_BREAKER_SECONDS": "3600"}


@pytest.mark.promise("Clients survive a fork", tries="400 lookups and 8 batches on both sides")
def test_both_sides_of_a_fork_go_on_with_connections_of_their_own(
    spawn: Spawn, environment: dict[str, str], make_cache: MakeCache
) -> None:
    del environment
    assert spawn("fork", KEY).wait(90) == 0
    cache = make_cache(**PATIENT)
    assert len(cache.parts.events.of_key(KEY)) == 3, "no event is written twice"
    assert cache.get(f"{KEY}-49") == f"{KEY}-49"


def ask(cache: TieredCache, file: CachedFile) -> tuple[Any, bytes, int]:
    """What a process runner does with what it is handed."""
    answer = cache.get_or_compute(KEY, lambda: "computed again", kind=TRANSCRIPT)
    return answer, file.path.read_bytes(), id(cache)


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
@pytest.mark.promise("Clients survive pickling into a process runner", tries="8 calls")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_cache_and_its_files_can_be_handed_to_processes(
    method: str, make_cache: MakeCache, redis_url: str, tmp_path: Path
) -> None:
    produced = tmp_path / "a.wav"
    produced.write_bytes(b"RIFF sound")
    cache = make_cache(redis_url=redis_url, **PATIENT)
    cache.put(KEY, "computed here", kind=TRANSCRIPT)
    file = cache.get_or_compute(
        "audio-preprocessing:1", lambda: CachedFile.from_path(produced), kind=AUDIO_PREPROCESSING, annotation=CachedFile
    )
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        answers = list(pool.map(ask, [cache] * 8, [file] * 8))
    assert {answer[:2] for answer in answers} == {("computed here", b"RIFF sound")}
    assert len({answer[2] for answer in answers}) <= 2, "a process makes one cache of equal ones"
    assert cache.get(KEY) == "computed here"


@pytest.mark.promise("No thread keeps the interpreter alive", tries="a lease of an hour, events in the buffer")
def test_a_process_with_leases_and_events_pending_ends_by_itself(
    spawn: Spawn, notes: Notes, make_cache: MakeCache
) -> None:
    assert spawn("leave", KEY, **NEVER).wait(60) == 0
    (alive,) = [int(line.partition(": ")[2]) for line in notes.count() if line.startswith("threads")]
    assert alive >= 3, "the main one, the one that computes, and the one that renews its lease"
    cache = make_cache(**PATIENT)
    found = [(event.action, event.outcome) for event in cache.parts.events.of_key(KEY)]
    written = [(events.LOOKUP, "miss"), (events.COMPUTED, ""), (events.LOOKUP, "hit")]
    assert found == written, "what was in the buffer has been written"


@pytest.mark.parametrize("environment", ["postgres"], indirect=True)
@pytest.mark.promise("No thread keeps the interpreter alive", tries="a database that hangs")
def test_a_process_ends_by_itself_though_its_database_hangs(spawn: Spawn, notes: Notes, postgres_url: str) -> None:
    with proxy_to_postgres(postgres_url) as proxy:
        limits = {"CACHE_BLOCKS_DATABASE_URL": proxy.url, "CACHE_BLOCKS_DATABASE_TIMEOUT_SECONDS": "1"}
        worker = spawn("leave", KEY, WORKER_WAITS="", **NEVER, **limits)
        until(lambda: notes.count()["ready"])
        proxy.hold()
        notes.tell("go-on")
        assert worker.wait(60) == 0
