"""Events say what happened, metrics what they add up to."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, cast
from uuid import uuid4

import pytest

from cache_blocks import TRANSCRIPT, CacheMetrics, Outcome, TieredCache, event_log, events
from cache_blocks.database import Database
from cache_blocks.errors import TierUnavailableError
from cache_blocks.event_log import EventLog
from cache_blocks.events import CacheEvent, Origin, originating
from cache_blocks.runs import Runs

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path


def lookup(outcome: Outcome, tier: str = "", kind: str = "transcript", **more: float) -> CacheEvent:
    return CacheEvent(events.LOOKUP, kind, f"{kind}:1", outcome, tier, **more)  # pyright: ignore[reportArgumentType]


def test_metrics_add_up_by_kind_and_tier() -> None:
    metrics = CacheMetrics.from_events(
        [
            lookup(Outcome.HIT, "redis", stored_bytes=10, seconds=0.5, seconds_saved=2.0),
            lookup(Outcome.HIT, "sql", stored_bytes=5, seconds=0.25, seconds_saved=1.0),
            lookup(Outcome.MISS, seconds=0.25),
            lookup(Outcome.EXPIRED, "sql"),
            lookup(Outcome.BYPASSED),
            lookup(Outcome.HIT, "redis", kind="search-results"),
            CacheEvent(events.LOST, tier="redis"),
            CacheEvent(events.SHARED),
            CacheEvent(events.UNLEASED),
            CacheEvent(events.UNSTORED),
            CacheEvent(events.TIER_DOWN, tier="redis"),
            CacheEvent(events.TIER_UP, tier="redis"),
            CacheEvent(events.INVALIDATED),
        ]
    )
    assert (metrics.hits, metrics.misses, metrics.total, metrics.hit_rate) == (3, 2, 5, 0.6)
    assert metrics.by_tier == {"redis": 2, "sql": 1}
    assert metrics.seconds_saved == 3.0
    transcripts = metrics.by_kind["transcript"]
    assert (transcripts.hits, transcripts.misses, transcripts.bypassed, transcripts.hit_rate) == (2, 2, 1, 0.5)
    assert transcripts.by_outcome == {"miss": 1, "expired": 1, "bypassed": 1}
    assert (transcripts.stored_bytes, transcripts.lookup_seconds) == (15, 1.0)
    assert (metrics.lost_writes, metrics.outages) == ({"redis": 1}, {"redis": 1})
    assert (metrics.shared, metrics.unleased, metrics.unstored) == (1, 1, 1)


def test_nothing_looked_up_is_no_division_by_zero() -> None:
    assert (CacheMetrics().hit_rate, CacheMetrics().total) == (0.0, 0)


@pytest.fixture(params=["sqlite", "postgres"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[EventLog]:
    url = f"sqlite:///{tmp_path / 'events.db'}"
    if request.param == "postgres":
        url = cast("str", request.getfixturevalue("postgres_url"))
    database = Database(url, timeout_seconds=10)
    log = EventLog(database, f"n-{uuid4().hex}")
    yield log
    log.flush()
    database.close()


def test_the_hits_of_a_run_come_added_up_and_the_rest_without_them(log: EventLog) -> None:
    with originating(Origin("a.mp3", "transcribe", "run-1", "task-run-1", flow="nightly", deferred=True)):
        hits = [lookup(Outcome.HIT, tier, seconds_saved=2.5, stored_bytes=7) for tier in ("sql", "redis", "redis")]
        others = [lookup(Outcome.MISS), lookup(Outcome.BYPASSED), CacheEvent(events.COMPUTED, "transcript")]
    log.record([*hits, *others])

    assert log.of_run("run-1", hits=False) == others
    summed = Runs(log._database, log._namespace).hits_of("run-1")
    assert {one.event.tier: (one.number, one.event.seconds_saved, one.event.stored_bytes) for one in summed} == {
        "sql": (1, 2.5, 7),
        "redis": (2, 5.0, 14),
    }
    assert min(one.event.at for one in summed) == hits[0].at
    assert {one.event.origin.flow for one in summed} == {"nightly"}


def test_events_come_back_as_they_were_in_order(log: EventLog) -> None:
    origin = Origin("a.mp3", "transcribe", "run-1", "task-run-1", deferred=True)
    with originating(origin):
        sent = [lookup(Outcome.MISS, seconds=0.25), lookup(Outcome.HIT, "sql", seconds_saved=2.5, stored_bytes=7)]
    log.record(sent)
    assert log.of_run("run-1") == sent
    assert log.of_key("transcript:1") == sent
    assert log.since(sent[1].at) == sent[1:]
    assert log.of_run("another run") == []


def test_an_event_whose_origin_cannot_wait_is_there_at_once(log: EventLog) -> None:
    with originating(Origin(flow_run_id="run-1", deferred=False)):
        log.record([lookup(Outcome.MISS)])
    other_process = EventLog(log._database, log._namespace)
    assert len(other_process.of_run("run-1")) == 1


def test_events_of_a_namespace_are_its_own(log: EventLog) -> None:
    log.record([lookup(Outcome.MISS)])
    assert EventLog(log._database, "another").since(0) == []
    assert len(log.since(0)) == 1


def test_the_events_of_a_key_can_be_forgotten(log: EventLog) -> None:
    log.record([lookup(Outcome.MISS), lookup(Outcome.MISS, kind="search-results")])
    assert log.forget(["transcript:1"]) == 1
    assert [event.kind for event in log.since(0)] == ["search-results"]


@pytest.mark.parametrize(
    "origin",
    [
        Origin(subject=os.fsdecode(b"caf\xe9.mp3")),
        Origin(subject="nul\x00.mp3"),
        Origin(subject="x" * 1000),
        Origin(task="t" * 1000),
    ],
    ids=["name that is no UTF-8", "control character", "long subject", "long task"],
)
def test_no_name_of_a_file_or_task_keeps_events_from_being_written(log: EventLog, origin: Origin) -> None:
    with originating(origin):
        log.record([lookup(Outcome.MISS)])
    log.record([lookup(Outcome.HIT, "sql")])
    assert [event.outcome for event in log.since(0)] == ["miss", "hit"]


def test_events_wait_for_a_database_that_is_down(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.write_text("in the way")
    log = EventLog(Database(f"sqlite:///{folder / 'cache.db'}"), "n")
    log.record([lookup(Outcome.MISS)])
    log.flush()
    folder.unlink()
    assert len(log.since(0)) == 1
    log._database.close()


def test_many_events_are_written_in_several_transactions_and_none_twice_when_one_fails(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "_PAGE_EVENTS", 10)
    insert, tried = log._insert, list[int]()

    def troubled(page: Sequence[CacheEvent]) -> None:
        tried.append(len(page))
        if len(tried) == 2:
            raise TierUnavailableError("sql", "it is down for a moment")
        insert(page)

    monkeypatch.setattr(log, "_insert", troubled)
    with originating(Origin(flow_run_id="run-1")):
        sent = [lookup(Outcome.MISS, seconds=float(number)) for number in range(25)]
    log.record(sent)
    log.flush()
    assert log.of_run("run-1") == sent
    assert tried == [10, 10, 10, 5]


def test_what_is_recorded_at_once_while_a_page_is_written_leaves_no_empty_page_behind(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "_PAGE_EVENTS", 10)
    insert = log._insert
    pages: list[int] = []

    def tell_of_the_first(page: Sequence[CacheEvent]) -> None:
        insert(page)
        pages.append(len(page))
        if len(pages) == 1:  # as a breaker does when SQL is back
            with originating(Origin(deferred=False)):
                log.record([CacheEvent(events.TIER_UP, tier="sql")])

    monkeypatch.setattr(log, "_insert", tell_of_the_first)
    log.record([lookup(Outcome.MISS)] * 25)
    log.flush()
    assert sum(pages) == 26
    assert all(pages)


def test_who_records_faster_than_the_database_writes_waits_rather_than_filling_the_memory(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "_CROWD_EVENTS", 100)
    insert, writing, go_on = log._insert, threading.Event(), threading.Event()
    waiting: list[int] = []

    def slow(page: Sequence[CacheEvent]) -> None:
        writing.set()
        assert go_on.wait(60)
        insert(page)

    def record_many() -> None:
        for _ in range(5_000):
            log.record([lookup(Outcome.HIT, "sql")])
            waiting.append(len(log._new))

    monkeypatch.setattr(log, "_insert", slow)
    log.record([lookup(Outcome.MISS)])
    assert writing.wait(60)
    recorder = threading.Thread(target=record_many)
    recorder.start()
    while len(log._new) <= 100:
        pass
    go_on.set()
    recorder.join()
    log.flush()
    assert max(waiting) <= 101
    assert len(log.since(0)) == 5_001


def test_listeners_get_each_event_once_also_when_it_takes_several_turns_to_write_it(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.write_text("in the way")
    log = EventLog(Database(f"sqlite:///{folder / 'cache.db'}"), "n")
    log.record([lookup(Outcome.MISS)])
    told: list[CacheEvent] = []
    log.listen(told.extend)
    log.record([lookup(Outcome.HIT, "sql"), lookup(Outcome.HIT, "redis")])
    log.flush()
    log.deliver()
    folder.unlink()
    log.record([lookup(Outcome.HIT, "memory")])
    assert [event.tier for event in log.since(0)] == ["", "sql", "redis", "memory"]
    assert [event.tier for event in told] == ["sql", "redis", "memory"]
    log._database.close()


def test_listeners_are_told_within_a_moment_without_anybody_asking(tmp_path: Path) -> None:
    log = EventLog(Database(f"sqlite:///{tmp_path / 'cache.db'}"), "n")
    told = threading.Event()
    log.listen(lambda _: told.set())
    log.record([lookup(Outcome.MISS)])
    assert told.wait(60)
    log.flush()
    log._database.close()


def test_a_cache_counts_and_records_what_it_does() -> None:
    cache = TieredCache()
    for _ in range(3):
        assert cache.get_or_compute("transcript:1", lambda: "text", kind=TRANSCRIPT) == "text"
    cache.invalidate(tag="recording:a")
    assert (cache.metrics.hits, cache.metrics.misses) == (2, 1)
    assert cache.metrics.by_tier == {"memory": 2}
    kept = cache.parts.events.since(0)
    assert [event.outcome for event in kept if event.action == events.LOOKUP] == ["miss", "hit", "hit"]
    assert [event.reason for event in kept if event.action == events.INVALIDATED] == ["tag:recording:a"]
    assert kept[0].reason, "a miss has a reason"
    cache.close()
