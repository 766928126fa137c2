"""Before the night: what earlier nights have left in the tiers, written by the tiers themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.simulation.night import NOWHERE, OBJECT_STORE, REDIS, Night, Numbers
from benchmarks.simulation.work import Work
from cache_blocks import TieredCache
from cache_blocks.entry import Entry

_AT_ONCE: Final = 500


def plant(
    cache: TieredCache, night: Night, work: Work, numbers: Numbers, folder: Path, tell: Callable[[int], object]
) -> int:
    """Put the entries of some numbers where the night has them; return how many there are.

    What the object store has alone stands for rows that a database has lost. A replica of what other tiers have is
    left out, since a lookup that they answer never asks for it.

    Args:
        cache: The tiers.
        night: Where each entry goes.
        work: Makes them.
        numbers: Which.
        folder: The S3 server's own, where blobs are put: nobody waits for its answers to know how it answers.
        tell: Takes how many numbers were done since it was told last.
    """
    planted = 0
    for start in range(0, len(numbers), _AT_ONCE):
        some = [int(number) for number in numbers[start : start + _AT_ONCE]]
        entries = {number: work.entry(number) for number in some if night.place(number) != NOWHERE}
        _plant_blobs(cache, work, folder, entries)
        _write(cache, "sql", [one for number, one in entries.items() if night.place(number) != OBJECT_STORE])
        _write(cache, "redis", [one for number, one in entries.items() if night.place(number) == REDIS])
        _write(cache, "object_store", [one for number, one in entries.items() if night.place(number) == OBJECT_STORE])
        planted += len(entries)
        tell(len(some))
    return planted


def _plant_blobs(cache: TieredCache, work: Work, folder: Path, entries: dict[int, Entry]) -> None:
    for number, entry in entries.items():
        for digest in entry.blobs:
            path = folder / cache.parts.store.path(cache.settings.namespace, "blobs", digest[:2], digest)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(work.blob(number))


def _write(cache: TieredCache, tier: str, entries: Sequence[Entry]) -> None:
    stored = cache.parts.chain.tier(tier).write(entries) if entries else set[str]()
    if len(stored) != len(entries):
        msg = f"{tier} has stored {len(stored)} of {len(entries)} entries"
        raise AssertionError(msg)
