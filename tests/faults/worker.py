"""What `test_processes` runs in processes of their own: worker.py compute KEY THREADS | die KEY | fork."""

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cache_blocks import TRANSCRIPT, TieredCache


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
    wait_for("go-on")
    return "the one result"


def main(verb: str, key: str, threads: int = 1) -> None:
    cache = TieredCache.from_settings()
    if verb == "fork":
        forking(cache, key)
        return

    def ask(_: int) -> str:
        start.wait()
        return cache.get_or_compute(key, compute, kind=TRANSCRIPT)

    start = threading.Barrier(threads)
    note("ready")
    wait_for("start")
    with ThreadPoolExecutor(threads) as pool:
        for answer in pool.map(ask, range(threads)):
            note(f"answer: {answer}")
    cache.close()


def forking(cache: TieredCache, key: str) -> None:
    """Leave an event in the buffer, fork, and let both processes end in order."""
    cache.get(key)
    child = os.fork()
    if child == 0:
        cache.get(key)
        sys.exit(0)
    os.waitpid(child, 0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
