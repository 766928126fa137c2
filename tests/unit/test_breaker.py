"""A tier that fails is asked no more, until one probe has found it well."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from cache_blocks.errors import EntryRefusedError, TierFullError, TierUnavailableError
from cache_blocks.tiers.breaker import Breaker

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Server:
    """A tier's call that counts, and fails while it is down."""

    def __init__(self) -> None:
        self.calls = 0
        self.down = False

    def __call__(self) -> str:
        self.calls += 1
        if self.down:
            raise TierUnavailableError("redis", "timed out")
        return "answer"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server() -> Server:
    return Server()


def failing(breaker: Breaker, call: Callable[[], object]) -> str:
    with pytest.raises(TierUnavailableError) as refusal:
        breaker.call(call)
    return refusal.value.why


def test_a_tier_that_failed_is_not_asked_again_for_a_while(clock: Clock, server: Server) -> None:
    breaker = Breaker("redis", 5, clock=clock)
    assert breaker.call(server) == "answer"
    server.down = True
    assert failing(breaker, server) == "timed out"
    for _ in range(100):
        assert "skipped" in failing(breaker, server)
    assert server.calls == 2
    assert breaker.is_open


def test_it_is_probed_when_the_time_is_over_and_skipped_on_when_that_fails(clock: Clock, server: Server) -> None:
    breaker = Breaker("redis", 5, clock=clock)
    server.down = True
    failing(breaker, server)
    clock.now += 5
    assert failing(breaker, server) == "timed out"
    clock.now += 4.9
    assert "skipped" in failing(breaker, server)
    assert server.calls == 2


def test_it_is_trusted_again_after_a_probe(clock: Clock, server: Server) -> None:
    breaker = Breaker("redis", 5, clock=clock)
    server.down = True
    failing(breaker, server)
    server.down = False
    clock.now += 5
    assert breaker.call(server) == "answer"
    assert not breaker.is_open
    assert breaker.call(server) == "answer"


def test_one_caller_probes_while_the_others_skip(clock: Clock, server: Server) -> None:
    breaker = Breaker("redis", 5, clock=clock)
    server.down = True
    failing(breaker, server)
    clock.now += 5
    inside, go = threading.Event(), threading.Event()

    def slow_probe() -> str:
        inside.set()
        assert go.wait(20)
        return "probed"

    with ThreadPoolExecutor(1) as pool:
        probe = pool.submit(breaker.call, slow_probe)
        assert inside.wait(20)
        assert "skipped" in failing(breaker, server)
        go.set()
        assert probe.result(20) == "probed"


def test_calls_go_side_by_side(clock: Clock) -> None:
    """A breaker that held a lock during the call would make every lookup of a process wait for the others."""
    breaker = Breaker("redis", clock=clock)
    together = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(breaker.call, together.wait, 20) for _ in range(2)]
        assert sorted(call.result(20) for call in calls) == [0, 1]


def test_what_a_tier_has_missed_is_told_before_its_answers_count(clock: Clock, server: Server) -> None:
    """An answer that was read before the tier had caught up may hold what was invalidated meanwhile."""
    said: list[str] = []
    tier = {"generation": "old"}

    def catch_up() -> None:
        said.append("caught up")
        tier["generation"] = "new"

    breaker = Breaker("redis", 5, before_close=catch_up, clock=clock)
    server.down = True
    failing(breaker, server)
    clock.now += 5
    assert breaker.call(lambda: tier["generation"]) == "new"
    assert said == ["caught up"]


def test_a_tier_that_cannot_catch_up_stays_out(clock: Clock, server: Server) -> None:
    def cannot() -> None:
        raise TierUnavailableError("sql", "does not answer")

    breaker = Breaker("redis", 5, before_close=cannot, clock=clock)
    server.down = True
    failing(breaker, server)
    server.down = False
    clock.now += 5
    failing(breaker, server)
    assert breaker.is_open
    assert "skipped" in failing(breaker, server)


def test_a_refusal_is_an_answer(clock: Clock, server: Server) -> None:
    def refuse() -> None:
        raise EntryRefusedError("redis", "too large")

    breaker = Breaker("redis", 5, clock=clock)
    with pytest.raises(EntryRefusedError):
        breaker.call(refuse)
    assert not breaker.is_open
    server.down = True
    failing(breaker, server)
    clock.now += 5
    with pytest.raises(EntryRefusedError):
        breaker.call(refuse)
    server.down = False
    assert breaker.call(server) == "answer", "a probe that was refused lets another one in"


def test_going_and_returning_are_told_once_each(clock: Clock, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    changes: list[tuple[str, bool, str]] = []
    breaker = Breaker("redis", 5, on_change=lambda tier, down, why: changes.append((tier, down, why)), clock=clock)
    server.down = True
    with caplog.at_level(logging.INFO, "cache_blocks"):
        for _ in range(20):
            failing(breaker, server)
            clock.now += 1
        server.down = False
        clock.now += 5
        breaker.call(server)
        breaker.call(server)
    assert changes == [("redis", True, "timed out"), ("redis", False, "")]
    assert [record.message for record in caplog.records if "redis" in record.message] == [
        "redis is down (timed out); going on without it, and trying again",
        "redis is back",
    ]


# Full is not down


class FullServer(Server):
    """A tier's call that finds no room while it is full."""

    full = False

    def __call__(self) -> str:
        answer = super().__call__()
        if self.full:
            raise TierFullError("redis", "out of memory")
        return answer


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "redis" in record.message]


def test_a_full_tier_is_asked_on_and_said_to_be_full_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    changes: list[tuple[str, bool, str]] = []
    breaker = Breaker("redis", 5, on_change=lambda tier, down, why: changes.append((tier, down, why)), clock=clock)
    server, reader = FullServer(), Server()
    server.full = True
    for _ in range(50):
        with pytest.raises(TierFullError):
            breaker.write(server)
        assert breaker.call(reader) == "answer"
        clock.now += 1
    assert not breaker.is_open
    server.full = False
    clock.now += 5
    assert breaker.call(reader) == "answer"
    for _ in range(2):
        assert breaker.write(server) == "answer"
    assert (server.calls, reader.calls, changes) == (52, 51, [])
    assert lines(caplog) == [
        "redis has no room (out of memory); it is read on, and what it does not take is lost",
        "redis takes writes again",
    ]


def test_a_tier_that_takes_now_and_then_a_small_thing_is_still_full(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    breaker, server = Breaker("redis", 5, clock=clock), FullServer()
    for number in range(100):
        server.full = number % 2 == 0
        with suppress(TierFullError):
            breaker.write(server)
        clock.now += 1
    assert len(lines(caplog)) == 1


def test_a_probe_that_finds_no_room_has_found_the_tier(clock: Clock) -> None:
    breaker, server = Breaker("redis", 5, clock=clock), FullServer()
    server.down = True
    failing(breaker, server)
    clock.now += 5
    server.down, server.full = False, True
    assert failing(breaker, server) == "out of memory"
    assert not breaker.is_open


def test_a_tier_that_has_no_room_for_what_it_missed_is_not_trusted(clock: Clock) -> None:
    """Redis that cannot be told of an invalidation would serve what it had before."""

    def catch_up() -> None:
        raise TierFullError("redis", "out of memory")

    breaker, server = Breaker("redis", 5, before_close=catch_up, clock=clock), Server()
    breaker.trip("could not be told")
    for _ in range(3):
        clock.now += 5
        failing(breaker, server)
        assert breaker.is_open
    assert server.calls == 0
