"""One contract for the right to compute a key, wherever leases are kept.

Leases are real and short here; a test that needs one to end waits for that, not for a time.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import pytest

from cache_blocks.flights import Flight
from cache_blocks.lease_keeper import LeaseKeeper
from cache_blocks.leases import LeaseBook, LeaseState, LeaseView, RedisLeases, SqlLeases
from cache_blocks.tiers.breaker import Breaker
from cache_blocks.tiers.redis import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

KEY = "transcript:1f2e"
FREE = LeaseView(LeaseState.FREE)
REDIS: Mapping[str, Callable[[pytest.FixtureRequest], str]] = {
    "redis": lambda request: cast("str", request.getfixturevalue("redis_url")),
    "redis of sentinels": lambda request: request.getfixturevalue("shared_redis_sentinels").url,
    "redis cluster": lambda request: request.getfixturevalue("shared_redis_cluster").url,
}
"""Addresses by how the servers are arranged."""


@pytest.fixture(params=["redis", "sqlite", "postgres", "pgbouncer"])
def make_book(request: pytest.FixtureRequest) -> Generator[Callable[[float], LeaseBook]]:
    """Makes books over one backend and namespace, as two workers would."""
    namespace = f"leases-{uuid4().hex}"
    if str(request.param) in REDIS:
        with connect(REDIS[str(request.param)](request), timeout_seconds=10) as servers:
            yield lambda seconds: RedisLeases(servers, namespace, seconds)
    else:
        database: Any = request.getfixturevalue(str(request.param))
        yield lambda seconds: SqlLeases(database, namespace, seconds)


@pytest.fixture
def book(make_book: Callable[[float], LeaseBook]) -> LeaseBook:
    return make_book(60)


def until(condition: Callable[[], object]) -> None:
    """Wait for what another clock brings about; fail when it does not."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def test_a_free_lease_is_taken_once(book: LeaseBook) -> None:
    assert book.view(KEY) == FREE
    assert book.acquire(KEY, "mine") == LeaseView(LeaseState.MINE, "mine")
    assert book.acquire(KEY, "yours") == LeaseView(LeaseState.HELD, "mine")
    assert book.view(KEY) == LeaseView(LeaseState.HELD, "mine")


def test_keys_have_leases_of_their_own(book: LeaseBook) -> None:
    book.acquire(KEY, "mine")
    assert book.acquire("transcript:other", "yours").state is LeaseState.MINE


def test_of_many_that_ask_at_once_one_gets_it(book: LeaseBook) -> None:
    start = threading.Barrier(8)

    def ask(number: int) -> LeaseView:
        start.wait()
        return book.acquire(KEY, f"worker-{number}")

    with ThreadPoolExecutor(8) as pool:
        views = list(pool.map(ask, range(8)))
    (winner,) = [view for view in views if view.state is LeaseState.MINE]
    assert {view.token for view in views} == {winner.token}


def test_a_released_lease_is_free(book: LeaseBook) -> None:
    book.acquire(KEY, "mine")
    book.release(KEY, "mine")
    assert book.view(KEY) == FREE
    assert book.acquire(KEY, "yours").state is LeaseState.MINE


def test_a_failure_leaves_a_mark_and_frees(book: LeaseBook) -> None:
    book.acquire(KEY, "mine")
    book.release(KEY, "mine", failed=True)
    assert book.view(KEY) == LeaseView(LeaseState.FAILED, "mine")
    assert book.acquire(KEY, "yours") == LeaseView(LeaseState.MINE, "yours")
    assert book.view(KEY) == LeaseView(LeaseState.HELD, "yours")


def test_the_mark_of_a_failure_ends(book: LeaseBook) -> None:
    book.acquire(KEY, "mine")
    book.release(KEY, "mine", failed=True)
    until(lambda: book.view(KEY) == FREE)


def test_a_stranger_can_neither_renew_nor_release(book: LeaseBook) -> None:
    book.acquire(KEY, "mine")
    assert not book.renew(KEY, "yours")
    book.release(KEY, "yours")
    book.release(KEY, "yours", failed=True)
    assert book.view(KEY) == LeaseView(LeaseState.HELD, "mine")
    assert book.renew(KEY, "mine")


def test_a_lease_that_is_not_renewed_ends(make_book: Callable[[float], LeaseBook]) -> None:
    short = make_book(0.2)
    short.acquire(KEY, "died")
    until(lambda: short.acquire(KEY, "next").state is LeaseState.MINE)
    assert not short.renew(KEY, "died"), "it is another's by now"
    short.release(KEY, "died", failed=True)
    assert short.view(KEY).state is not LeaseState.FAILED


def test_an_ended_lease_cannot_be_renewed(make_book: Callable[[float], LeaseBook]) -> None:
    short = make_book(0.1)
    short.acquire(KEY, "mine")
    until(lambda: short.view(KEY) == FREE)
    assert not short.renew(KEY, "mine")


def test_a_renewal_extends_by_a_whole_length(make_book: Callable[[float], LeaseBook]) -> None:
    short, long = make_book(0.3), make_book(60)
    short.acquire(KEY, "mine")
    short.acquire("transcript:witness", "mine")
    assert long.renew(KEY, "mine")
    until(lambda: short.view("transcript:witness") == FREE)
    assert short.view(KEY) == LeaseView(LeaseState.HELD, "mine")


def test_namespaces_do_not_block_each_other(redis_url: str) -> None:
    client = connect(redis_url, timeout_seconds=10)
    RedisLeases(client, "production", 60).acquire(KEY, "mine")
    assert RedisLeases(client, "staging", 60).acquire(KEY, "yours").state is LeaseState.MINE
    client.close()


def test_a_keeper_renews_as_long_as_its_process_computes(make_book: Callable[[float], LeaseBook]) -> None:
    book = make_book(2.0)  # renewed every third of it, by a thread that a busy machine may keep waiting
    keeper = LeaseKeeper(book, Breaker("leases"))
    mine = keeper.acquire(KEY)
    assert mine.state is LeaseState.MINE
    for round_ in range(2):  # leases of the same length, taken meanwhile, end; the renewed one does not
        book.acquire(f"transcript:witness-{round_}", "dead")
        until(lambda name=f"transcript:witness-{round_}": book.view(name) == FREE)
        assert book.view(KEY) == LeaseView(LeaseState.HELD, mine.token)
    keeper.release(KEY, mine.token)
    assert book.view(KEY) == FREE


def test_a_keeper_says_when_a_lease_has_gone_to_another(
    make_book: Callable[[float], LeaseBook], caplog: pytest.LogCaptureFixture
) -> None:
    book = make_book(0.6)
    keeper = LeaseKeeper(book, Breaker("leases"))
    mine = keeper.acquire(KEY)
    book.release(KEY, mine.token)
    book.acquire(KEY, "another's")
    until(lambda: f"lease of {KEY} has gone to another" in caplog.text)
    keeper.release(KEY, mine.token)
    assert book.view(KEY).token == "another's" or book.view(KEY) == FREE


def test_a_keeper_says_that_a_lease_is_gone_when_that_is_all_that_is_known(
    make_book: Callable[[float], LeaseBook], caplog: pytest.LogCaptureFixture
) -> None:
    """Where leases are kept was flushed; nobody else has taken this one."""
    book = make_book(0.6)
    keeper = LeaseKeeper(book, Breaker("leases"))
    mine = keeper.acquire(KEY)
    book.release(KEY, mine.token)
    until(lambda: f"lease of {KEY} is gone before its work was done" in caplog.text)
    assert "has gone to another" not in caplog.text


def test_who_waits_is_told_when_the_lease_ends(make_book: Callable[[float], LeaseBook]) -> None:
    book = make_book(60)
    book.acquire(KEY, "mine")
    asked_again = (book.acquire(KEY, "yours"), book.view(KEY))
    for view in asked_again:
        assert 0 < view.seconds_left <= 60
    assert asked_again[1].seconds_left <= asked_again[0].seconds_left


@pytest.mark.promise("Who waits for a lease asks again when it ends, and not later", tries="100 waits of each length")
@pytest.mark.parametrize("seconds_left", [30.0, 0.3, 0.04, 0.0])
def test_nobody_sleeps_past_the_end_of_the_lease_that_is_waited_for(seconds_left: float) -> None:
    """However long somebody has waited already, and however long leases are."""

    class Held:
        def acquire(self, key: str) -> LeaseView:
            return self.view(key)

        def view(self, _: str) -> LeaseView:
            return LeaseView(LeaseState.HELD, "the one that died", seconds_left)

    def unexpected(*_: object) -> Any:
        pytest.fail("there is nothing to be found yet")

    flight = Flight(KEY, (), look=unexpected, leases=cast("Any", Held()), begin=None, on_unleased=unexpected)
    waits = [flight.step().wait for _ in range(100)]
    assert all(0 < wait <= max(seconds_left, 0.01) for wait in waits)
    assert max(waits) <= 0.25, "the result of one that did not die is not waited for longer"
