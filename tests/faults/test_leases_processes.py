"""One computation a key, whatever happens to who computes it, and whatever happens to the place of leases.

Equal calls inside one task and inside a transaction are in tests/prefect/test_cached_task_sharing.py.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import pytest
import sqlalchemy as sa

from cache_blocks import TRANSCRIPT, TieredCache
from cache_blocks.events import Origin
from cache_blocks.leases import LeaseBook, LeaseState
from cache_blocks.prefect.attempt import Attempt
from cache_blocks.schema import LeaseRow, table
from tests.faults.conftest import MakeCache, until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from tests.faults.conftest import Notes, Spawn
    from tests.servers.fixtures import StartRedis
    from tests.servers.redis import RedisServer

KEY = "transcript:1"
SHORT = {"CACHE_BLOCKS_LEASE_SECONDS": "1"}
WITHOUT_POSTGRES = pytest.mark.parametrize("environment", ["sqlite", "redis"], indirect=True)


def book_of(cache: TieredCache, seconds: float) -> LeaseBook:
    """The place of leases, for leases of this length."""
    book = cast("Any", cache.parts.leases)._book
    book.seconds = seconds
    return book


def let_pass(cache: TieredCache, seconds: float) -> None:
    """Wait until a lease of this length, taken now and not renewed, has ended."""
    witness = f"transcript:{uuid4().hex}"
    book = book_of(cache, seconds)
    assert book.acquire(witness, "witness").state is LeaseState.MINE
    until(lambda: book.view(witness).state is LeaseState.FREE)


def exit_codes(workers: list[subprocess.Popen[bytes]]) -> set[int]:
    return {worker.wait(90) for worker in workers}


# Real processes


@pytest.mark.promise("Equal calls compute once", tries="64 calls over 4 processes")
def test_sixty_four_equal_calls_in_four_processes_compute_once(spawn: Spawn, notes: Notes) -> None:
    workers = [spawn("compute", KEY, "16") for _ in range(4)]
    until(lambda: notes.count()["ready"] == 4)
    notes.tell("start")
    until(lambda: notes.count()["waiting"] == 63)
    notes.tell("go-on")
    assert exit_codes(workers) == {0}
    assert notes.count()["computing"] == 1
    assert notes.count()["answer: the one result"] == 64
    assert notes.count()["unleased: 0"] == 4


@WITHOUT_POSTGRES
@pytest.mark.promise("When the holder of a lease is killed, one other takes over within the lease", tries="4 waiters")
def test_when_the_holder_is_killed_one_other_takes_over_within_the_lease(
    spawn: Spawn, notes: Notes, make_cache: MakeCache
) -> None:
    cache = make_cache(redis_timeout_seconds=30)
    notes.tell("start")
    holder = spawn("compute", KEY, **SHORT)
    until(lambda: notes.count()["computing"] == 1)
    others = [spawn("compute", KEY, "2", CACHE_BLOCKS_LEASE_SECONDS="60") for _ in range(2)]
    until(lambda: notes.count()["waiting"] == 4)
    holder.send_signal(signal.SIGKILL)
    let_pass(cache, 1 + 3)  # the lease, and patience with a busy machine; the others' own leases are far longer
    assert notes.count()["computing"] == 2
    notes.tell("go-on")
    assert exit_codes(others) == {0}
    assert notes.count()["computing"] == 2
    assert notes.count()["answer: the one result"] == 4


@WITHOUT_POSTGRES
@pytest.mark.promise(
    "Who waits for a killed holder has the second's result within the lease plus 1 s",
    tries="4 waiters, the best of 5 rounds",
)
def test_the_seconds_result_is_there_right_after_the_killed_holders_lease_has_ended(
    spawn: Spawn, notes: Notes, make_cache: MakeCache
) -> None:
    """By the waiters' own clock, from when the lease ends by the word of where it is kept; one calm moment will do."""
    cache = make_cache(redis_timeout_seconds=30)
    notes.tell("start")
    late = [result_after_lease(f"{KEY}-0", cache, spawn, notes)]
    while late[-1] > 1 and len(late) < 5:
        late.append(result_after_lease(f"{KEY}-{len(late)}", cache, spawn, notes))
    logging.getLogger("tests").warning("seconds after the lease's end: %s", [round(one, 3) for one in late])
    assert late[-1] <= 1, late


def result_after_lease(key: str, cache: TieredCache, spawn: Spawn, notes: Notes) -> float:
    """Kill the holder of a lease that four threads wait for; return how long after its end, in s, all had a result."""
    before = notes.count()["computing"]
    computed: list[str] = []

    def ask() -> tuple[str, float]:
        answer = cache.get_or_compute(key, lambda: computed.append(key) or "the one result", kind=TRANSCRIPT)
        return answer, time.monotonic()

    holder = spawn("compute", key, **SHORT)
    until(lambda: notes.count()["computing"] == before + 1)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask) for _ in range(4)]
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        left = book_of(cache, 30).view(key).seconds_left
        end = time.monotonic() + left
        answers = [one.result() for one in asked]
    assert {answer for answer, _ in answers} == {"the one result"}
    assert computed == [key]
    return max(at for _, at in answers) - end


@WITHOUT_POSTGRES
@pytest.mark.promise("Work that outlasts its lease is computed once", tries="5 lease lengths")
def test_work_of_five_lease_lengths_is_computed_once(spawn: Spawn, notes: Notes, make_cache: MakeCache) -> None:
    cache = make_cache()
    notes.tell("start")
    workers = [spawn("compute", KEY, **SHORT) for _ in range(2)]
    until(lambda: notes.count()["waiting"] == 1)
    for _ in range(5):
        let_pass(cache, 1)
    notes.tell("go-on")
    assert exit_codes(workers) == {0}
    assert notes.count()["computing"] == 1
    assert notes.count()["answer: the one result"] == 2


@pytest.mark.promise("The late write of a holder that was frozen does not win", tries="every tier")
def test_a_holder_that_wakes_after_another_has_computed_does_not_win(
    spawn: Spawn, notes: Notes, make_cache: MakeCache
) -> None:
    cache = make_cache()
    notes.tell("start")
    frozen = spawn("compute", KEY, WORKER_RESULT="late", **SHORT)
    until(lambda: notes.count()["computing"] == 1)
    frozen.send_signal(signal.SIGSTOP)
    other = spawn("compute", KEY, WORKER_RESULT="in time")
    until(lambda: notes.count()["computing"] == 2)
    notes.tell("go-on")
    assert other.wait(90) == 0
    assert notes.count()["computed"] == 1
    frozen.send_signal(signal.SIGCONT)
    assert frozen.wait(90) == 0
    assert notes.count()["computed"] == 2, "it has gone on, and has stored what it could"
    for tier in cache.parts.chain.tiers[cache.settings.hot_tier_is_local :]:
        entry = tier.read([KEY]).entries[KEY]
        assert cache.reader.value_of(entry, str) == "in time", tier.name
    assert cache.get(KEY) == "in time"


@WITHOUT_POSTGRES
@pytest.mark.promise("When the holder of a lease fails, who waits goes on together", tries="8 waiters")
def test_when_the_holder_fails_eight_waiters_go_on_together(spawn: Spawn, notes: Notes) -> None:
    notes.tell("start")
    holder = spawn("compute", KEY, WORKER_RESULT="failure")
    until(lambda: notes.count()["computing"] == 1)
    others = [spawn("compute", KEY, "4", WORKER_GO_ON="all-together") for _ in range(2)]
    until(lambda: notes.count()["waiting"] == 8)
    notes.tell("go-on")
    assert holder.wait(90) == 0
    until(lambda: notes.count()["computing"] == 1 + 8)  # nobody has finished, so nobody has waited for another
    notes.tell("all-together")
    assert exit_codes(others) == {0}
    assert notes.count()["answer: failure"] == 1
    assert notes.count()["answer: the one result"] == 8


# In one process


@pytest.fixture(params=["sql", "redis"])
def leased(request: pytest.FixtureRequest, make_cache: MakeCache) -> TieredCache:
    """A cache whose leases are in SQL, or in Redis."""
    if request.param == "sql":
        return make_cache(database_timeout_seconds=30)
    return make_cache(redis_url=request.getfixturevalue("redis_url"), redis_timeout_seconds=30)


def leases_held(cache: TieredCache) -> list[str]:
    """Leases of this cache that somebody holds; marks of failures are none."""
    if cache.settings.hot_tier_is_local:
        leases = table(LeaseRow)
        with cache.parts.database.read() as connection:
            return list(connection.execute(sa.select(leases.c.key).where(leases.c.failed.is_(False))).scalars())
    client = cast("Any", cache.parts.chain.tier("redis")).servers.client
    names = client.keys("cache-blocks:*:lease:*")
    return [name for name in names if not (client.get(name) or b"f").startswith(b"f")]


@pytest.mark.promise("A hit takes no lease", tries="100 hits")
def test_a_hit_takes_no_lease(leased: TieredCache, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    book = cast("Any", leased.parts.leases)._book

    def noted(name: str) -> Any:
        real = getattr(book, name)

        def asking(*given: Any, **options: Any) -> Any:
            asked.append(name)
            return real(*given, **options)

        return asking

    for name in ("acquire", "view", "renew", "release"):
        monkeypatch.setattr(book, name, noted(name))
    assert leased.get_or_compute(KEY, lambda: "text", kind=TRANSCRIPT) == "text"
    assert asked == ["acquire", "release"]
    for _ in range(100):
        assert leased.get_or_compute(KEY, lambda: "other", kind=TRANSCRIPT) == "text"
    assert asked == ["acquire", "release"]


def work(number: int) -> int:
    """One of four equal calls; every ninth key fails."""
    key = number // 4
    if key % 9 == 0:
        raise ValueError(str(key))
    return key


@pytest.mark.promise("No lease is left behind", tries="1,000 calls in threads, a ninth of which fail")
def test_a_thousand_calls_in_threads_leave_no_lease(leased: TieredCache) -> None:
    def call(number: int) -> int | None:
        try:
            return leased.get_or_compute(f"transcript:{number // 4}", lambda: work(number), kind=TRANSCRIPT)
        except ValueError:
            return None

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(call, range(1000)))
    assert answers == [None if number // 4 % 9 == 0 else number // 4 for number in range(1000)]
    assert leases_held(leased) == []
    assert cast("Any", leased.parts.leases)._held == {}
    assert leased.metrics.unleased == 0


@pytest.mark.promise(
    "No lease is left behind", tries="1,000 coroutines, a ninth of which fail, a tenth are cancelled over and over"
)
def test_a_thousand_coroutines_leave_no_lease_also_when_they_are_cancelled(leased: TieredCache) -> None:
    async def call(number: int) -> int | None:
        attempt = Attempt(leased, leased.call(f"transcript:{number // 4}", kind=TRANSCRIPT), Origin(), wrapped=True)

        async def computed() -> int:
            await asyncio.sleep(0)
            return work(number)

        try:
            return await attempt.arun(computed)
        except ValueError:
            return None

    async def cancel(task: asyncio.Task[int | None]) -> None:
        """Cancel as anyio's scopes do: every time that the task waits again, until it has ended."""
        while not task.done():
            task.cancel()
            await asyncio.sleep(0.001)

    async def everybody() -> list[Any]:
        tasks = [asyncio.create_task(call(number)) for number in range(1000)]
        await asyncio.sleep(0.02)
        await asyncio.gather(*(cancel(task) for task in tasks[::10]))
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(everybody())
    for number, answer in enumerate(answers):
        cancelled = number % 10 == 0 and isinstance(answer, asyncio.CancelledError)
        assert cancelled or answer == (None if number // 4 % 9 == 0 else number // 4)
    until(lambda: not cast("Any", leased.parts.leases)._held)
    assert leases_held(leased) == []
    assert leased.metrics.unleased == 0


# The place of leases goes


class Equals:
    """Four equal calls: one computes, three wait for it, and something happens meanwhile."""

    def __init__(self, cache: TieredCache) -> None:
        self.cache = cache
        self.computed = 0
        self.waiting = threading.Semaphore(0)
        self._lock = threading.Lock()
        acquire = cache.parts.leases.acquire

        def acquire_and_say(key: str) -> Any:
            view = acquire(key)
            if view.state is LeaseState.HELD:
                self.waiting.release()
            return view

        cache.parts.leases.acquire = acquire_and_say

    def ask(self, meanwhile: Any) -> list[str]:
        """Return the four answers; ``meanwhile`` happens in the first computation, once all others wait for it."""

        def compute() -> str:
            with self._lock:
                self.computed += 1
                first = self.computed == 1
            if first:
                for _ in range(3):
                    assert self.waiting.acquire(timeout=60)
                meanwhile()
            return "text"

        with ThreadPoolExecutor(4) as pool:
            return [done.result() for done in [pool.submit(self._ask, compute) for _ in range(4)]]

    def _ask(self, compute: Callable[[], str]) -> str:
        return self.cache.get_or_compute(KEY, compute, kind=TRANSCRIPT)


@pytest.fixture
def server(redis_server: StartRedis) -> RedisServer:
    return redis_server()


@pytest.fixture
def equals(server: RedisServer, make_cache: MakeCache) -> Equals:
    return Equals(make_cache(redis_url=server.url, redis_timeout_seconds=10, breaker_seconds=600, lease_seconds=1))


@pytest.mark.promise("No task fails when Redis loses its leases", tries="4 calls")
def test_when_redis_is_flushed_under_a_lease_every_call_is_answered(equals: Equals, server: RedisServer) -> None:
    def flush() -> None:
        with server.client() as client:
            client.flushall()
        until(lambda: equals.computed == 2)  # the lease was free again

    assert equals.ask(flush) == ["text"] * 4
    assert equals.computed == 2, "those who waited have found a new lease to wait for"
    assert equals.cache.metrics.unleased == 0
    assert leases_held(equals.cache) == []


@pytest.mark.promise("No task fails when Redis dies at any step of a lease", tries="4 calls")
def test_when_redis_is_dead_before_anybody_asks_all_compute_and_it_is_counted(
    server: RedisServer, make_cache: MakeCache
) -> None:
    cache = make_cache(redis_url=server.url, breaker_seconds=600)
    server.kill()
    together = threading.Barrier(4, timeout=60)

    def compute() -> str:
        together.wait()
        return "text"

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(cache.get_or_compute, KEY, compute, kind=TRANSCRIPT) for _ in range(4)]
        answers = [one.result() for one in asked]
    assert answers == ["text"] * 4
    assert cache.metrics.unleased == 4


@pytest.mark.promise("No task fails when Redis dies at any step of a lease", tries="4 calls")
def test_when_redis_dies_under_a_lease_those_who_wait_compute_and_are_counted(
    equals: Equals, server: RedisServer
) -> None:
    def die() -> None:
        server.kill()
        until(lambda: metrics.unleased + metrics.shared == 3)  # one that comes late finds what another has computed

    metrics = equals.cache.metrics
    assert equals.ask(die) == ["text"] * 4
    assert equals.computed == 1 + metrics.unleased
    assert metrics.unleased >= 1


@pytest.mark.promise("No task fails when Redis dies at any step of a lease", tries="4 calls")
def test_when_redis_dies_before_a_lease_is_given_back_those_who_wait_find_the_result(
    equals: Equals, server: RedisServer
) -> None:
    release = equals.cache.parts.leases.release

    def die_then_release(*arguments: Any, **options: Any) -> None:
        server.kill()
        release(*arguments, **options)

    equals.cache.parts.leases.release = die_then_release
    assert equals.ask(lambda: None) == ["text"] * 4
    assert equals.computed == 1
    assert equals.cache.metrics.unleased == 0
    assert equals.cache.metrics.shared == 3
