"""Many processes that start at once: ``python -m tests.faults.swarm PROCESSES THREADS``, settings in the environment.

Each asks from its threads for keys that all ask for and for one of its own. They are forked from one that has imported
everything, before it has opened anything; what they do, they do as if each had been started by itself. Prints, for
each process, what it got wrong and how often a tier was lost to it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor

from cache_blocks import TRANSCRIPT, TieredCache

SHARED = 4


def work(number: int, threads: int) -> dict[str, object]:
    cache = TieredCache.from_settings()
    keys = [f"transcript:shared-{which}" for which in range(SHARED)] + [f"transcript:own-{number}"]

    def ask(key: str) -> bool:
        return cache.get_or_compute(key, lambda: f"value of {key}", kind=TRANSCRIPT) == f"value of {key}"

    with ThreadPoolExecutor(threads) as pool:
        wrong = [key for key, right in zip(keys * 2, pool.map(ask, keys * 2), strict=True) if not right]
    cache.close()
    metrics = cache.metrics
    return {"wrong": wrong, "outages": dict(metrics.outages), "lost": metrics.lost_writes}


def child(number: int, threads: int, go: int, answers: int) -> None:
    """Wait for the pipe's other end to close, work, and answer with a line, which is whole whoever else writes."""
    os.read(go, 1)
    try:
        answer = work(number, threads)
    except BaseException:  # noqa: BLE001 - whatever it is, it is the answer
        answer = {"error": traceback.format_exc()}
    os.write(answers, json.dumps(answer).encode()[-4000:] + b"\n")
    os._exit(0)


def main(processes: int, threads: int) -> None:
    for name in ("assembly", "database", "postgres", "upgrading"):
        importlib.import_module(f"cache_blocks.{name}")
    go, start = os.pipe()
    children: list[int] = []
    for number in range(processes):
        pid = os.fork()
        if pid == 0:
            os.close(start)
            child(number, threads, go, sys.stdout.fileno())
        children.append(pid)
    os.close(start)
    for pid in children:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
