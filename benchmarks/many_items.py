"""A process that maps over very many hits and says what memory it took: ``python -m benchmarks.many_items COUNT``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from prefect import flow

from cache_blocks import SEARCH_RESULTS, cached_map, cached_task


@cached_task(kind=SEARCH_RESULTS)
def many_item(recording: str) -> dict[str, Any]:
    """Stand for a task whose results are all there."""
    raise AssertionError(f"{recording} was computed")


def recordings(count: int) -> list[str]:
    """Return what is mapped over."""
    return [f"{number:06}" for number in range(count)]


@flow(name="benchmark-many-items")
def many_items(count: int) -> int:
    """Look at the result of each, in order; return how many were the right ones."""
    futures = cached_map(many_item, recordings(count))
    return sum(future.result()["recording"] == f"{number:06}" for number, future in enumerate(futures))


def peak_megabytes() -> float:
    """Return the largest amount of memory that this process has taken so far, in MB of a million bytes.

    Linux counts it anew for the program that a process becomes; `getrusage` also knows that of the process before.
    """
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def main() -> None:
    """Print what was seen as JSON."""
    before = peak_megabytes()
    right = many_items(int(sys.argv[1]))
    print(json.dumps({"before_mb": before, "peak_mb": peak_megabytes(), "right": right}))


if __name__ == "__main__":
    main()
