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

from cache_blocks.leases import LeaseBook, LeaseKeeper, LeaseState, LeaseView, RedisLeases, SqlLeases
from cache_blocks.tiers.breaker import Breaker
from cache_blocks.tiers.redis import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

KEY = "transcript:1f2e"
FREE = LeaseView(LeaseState.FREE)


@pytest.fixture(params=["redis", "sqlite", "postgres"])
def make_book(request: pytest.FixtureRequest) -> Generator[Callable[[float], LeaseBook]]:
    """Makes books over one backend and namespace, as two workers would."""
    namespace = f"leases-{uuid4().hex}"
    if request.param == "redis":
        client = connect(cast("str", request.getfixturevalue("redis_url")), timeout_seconds=10)
        yield lambda seconds: RedisLeases(client, namespace, seconds)
        client.connection_pool.disconnect()
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
    client.connection_pool.disconnect()


def test_a_keeper_renews_as_long_as_its_process_computes(make_book: Callable[[float], LeaseBook]) -> None:
    book = make_book(0.6)
    keeper = LeaseKeeper(book, Breaker("leases"))
    mine = keeper.acquire(KEY)
    assert mine.state is LeaseState.MINE
    for round_ in range(2):  # leases of the same length, taken meanwhile, end; the renewed one does not
        book.acquire(f"transcript:witness-{round_}", "dead")
        until(lambda name=f"transcript:witness-{round_}": book.view(name) == FREE)
        assert book.view(KEY) == LeaseView(LeaseState.HELD, mine.token)
    keeper.release(KEY, mine.token)
    assert book.view(KEY) == FREE


def test_a_keeper_says_when_a_lease_was_lost(
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
