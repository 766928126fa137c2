"""What tests run in processes of their own: worker.py VERB KEY [THREADS].

``compute`` asks for the key from some threads, ``fork`` does so on both sides of a fork, ``leave`` returns from main
with everything open, ``fill`` goes on while the disk is full.
"""

import os
import resource
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cache_blocks import AI_ENHANCEMENT, TRANSCRIPT, TieredCache
from cache_blocks.leases import LeaseState, LeaseView

RESULT = os.environ.get("WORKER_RESULT", "the one result")


def note(what: str) -> None:
    """Append a line for the test to read; one write is whole, whoever else writes."""
    with Path(os.environ["WORKER_NOTES"]).open("a") as notes:
        notes.write(f"{what}\n")


def wait_for(name: str) -> None:
    """Wait until the test has created a file."""
    while not Path(os.environ["WORKER_NOTES"]).with_name(name).exists():
        time.sleep(0.01)


def compute() -> str:
    note("computing")
    wait_for(os.environ.get("WORKER_GO_ON", "go-on"))
    if RESULT == "failure":
        raise ValueError(RESULT)
    note("computed")
    return RESULT


def main(verb: str, key: str, threads: int = 1) -> None:
    cache = TieredCache.from_settings()
    note_who_waits(cache)
    verbs = {"fork": forking, "leave": leaving, "fill": filling}
    if verb in verbs:
        verbs[verb](cache, key)
        return

    def ask(_: int) -> str:
        start.wait()
        try:
            return cache.get_or_compute(key, compute, kind=TRANSCRIPT)
        except ValueError as error:
            return str(error)

    start = threading.Barrier(threads)
    note("ready")
    wait_for("start")
    with ThreadPoolExecutor(threads) as pool:
        for answer in pool.map(ask, range(threads)):
            note(f"answer: {answer}")
    note(f"unleased: {cache.metrics.unleased}")
    cache.close()


def note_who_waits(cache: TieredCache) -> None:
    """Note each time that somebody finds the lease in another's hands, and begins to wait."""
    keeper = cache.parts.leases
    acquire = keeper.acquire

    def acquire_and_note(key: str) -> LeaseView:
        view = acquire(key)
        if view.state is LeaseState.HELD:
            note("waiting")
        return view

    keeper.acquire = acquire_and_note


def forking(cache: TieredCache, key: str) -> None:
    """Leave an event in the buffer and connections open, fork, and use the cache on both sides."""
    kind, _, name = key.partition(":")
    keys = [f"{kind}:{name}-{number}" for number in range(50)]
    for one in keys:
        cache.put(one, one, kind=TRANSCRIPT)
    cache.get(key)
    child = os.fork()
    cache.get(key)
    for _ in range(4):
        for one in keys:
            assert cache.get(one) == one
        assert cache.get_many(keys) == {one: one for one in keys}
    if child == 0:
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def leaving(cache: TieredCache, key: str) -> None:
    """Return from main with an event in the buffer, connections open, and a lease that is being renewed."""
    computing = threading.Event()

    def never_ends() -> str:
        computing.set()
        threading.Event().wait()
        return ""

    cache.get_or_compute(key, lambda: RESULT, kind=TRANSCRIPT)
    asking = {"key": f"{key}-unfinished", "compute": never_ends, "kind": TRANSCRIPT}
    threading.Thread(target=cache.get_or_compute, kwargs=asking, daemon=True).start()
    computing.wait()
    assert cache.get(key) == RESULT
    if "WORKER_WAITS" in os.environ:
        note("ready")
        wait_for("go-on")
        cache.get(key)
    note(f"threads: {threading.active_count()}")


def filling(cache: TieredCache, _: str) -> None:
    """Compute on while no file can become larger than WORKER_LIMIT bytes; results are larger than what fits SQL."""
    limit = int(os.environ["WORKER_LIMIT"])
    for number in range(30):
        if number == 10:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        large = f"{number}" * 20 + os.urandom(1_500_000).hex()
        assert cache.get_or_compute(f"ai-enhancement:{number}", lambda v=large: v, kind=AI_ENHANCEMENT) == large
        small = f"text {number}"
        assert cache.get_or_compute(f"transcript:{number}", lambda v=small: v, kind=TRANSCRIPT) == small
        note("right")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    note(f"counted: {sum(cache.metrics.lost_writes.values()) + cache.metrics.unstored}")
    note(f"outages: {','.join(sorted(cache.metrics.outages))}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
