"""What encryption costs: hits and puts of transcripts with and without it, and a file of tens of MB.

Hits come from the in-process hot tier, which is where the cost shows most; puts go through all tiers, as in
`writing`. A file is stored in, and fetched from, a local object store, where encryption is an extra pass over the bytes
and an extra copy of them on the disk.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import orjson
from pydantic import SecretStr

from benchmarks.measuring import Bar, Bench, Timing, interleaved, milliseconds, ratio
from benchmarks.payloads import transcript
from cache_blocks import CachedFile, CacheKind, CacheSettings, TieredCache
from cache_blocks.private.ring import new_ring

ORDER: Final = 10

_SIZES: Final = {"2 KB": (2_000, 2.0, 1.5), "46 KB": (46_000, 1.5, 1.5), "717 KB": (717_000, 1.5, 1.5)}
"""Bytes of a transcript, and the limits of a hit and of a put."""
_FILE_MB: Final = 40
_FILE_LIMIT: Final = 3.0
_OPEN: Final = CacheKind("plain", ttl=timedelta(days=1), replica=True, redis_max_bytes=2 * 1024 * 1024)
_PRIVATE: Final = replace(_OPEN, name="sealed", private=True)


def measure(bench: Bench) -> list[Bar]:
    """Return how many times as long a hit, a put and a file take when they are private."""
    settings = CacheSettings(home=bench.folder / f"private-{uuid4().hex[:8]}", private_keys=SecretStr(new_ring()))
    cache = TieredCache(settings)
    bars: list[Bar] = []
    try:
        for name, (size, hit_limit, put_limit) in _SIZES.items():
            bench.note(f"hits and puts of {name}, private and not")
            payload = transcript(size)
            bars.append(_bar(f"A private hit of {name}, against an open one", _hits(bench, cache, payload), hit_limit))
            puts = _puts(bench, cache, payload)
            bars.append(_bar(f"A private put of {name} through all tiers, against an open one", puts, put_limit))
        bench.note(f"a file of {_FILE_MB} MB, private and not")
        bars.extend(_files(bench, cache))
    finally:
        cache.close()
    return bars


def _bar(name: str, timings: dict[str, Timing], limit: float, **detail: Any) -> Bar:
    found = ratio(timings["private"], timings["open"])
    told: dict[str, Any] = found.spread | {"milliseconds": milliseconds(timings)} | detail
    return Bar(name, found.median, limit, "lower", detail=told | {"rounds": len(timings["open"].samples)})


def _hits(bench: Bench, cache: TieredCache, payload: Any) -> dict[str, Timing]:
    keys = {"open": f"{_OPEN}:hit-{uuid4().hex}", "private": f"{_PRIVATE}:hit-{uuid4().hex}"}
    for key, kind in zip(keys.values(), (_OPEN, _PRIVATE), strict=True):
        cache.put(key, payload, kind=kind)
        assert cache.get(key) == payload
    turns = {name: partial(cache.get, key) for name, key in keys.items()}
    many = 20 if len(orjson.dumps(payload)) < 100_000 else 3  # a turn that takes longer than a clock's tick
    return interleaved(turns, bench.rounds(300), warmup=5, times=many)


def _puts(bench: Bench, cache: TieredCache, payload: Any) -> dict[str, Timing]:
    def put(kind: CacheKind) -> None:
        cache.put(f"{kind}:{uuid4().hex}", payload, kind=kind)

    return interleaved({"open": partial(put, _OPEN), "private": partial(put, _PRIVATE)}, bench.rounds(100), warmup=3)


def _files(bench: Bench, cache: TieredCache) -> list[Bar]:
    size = max(1, round(_FILE_MB * min(bench.scale, 1.0))) * 1024 * 1024
    numbers, folder = itertools.count(), bench.folder / f"files-{uuid4().hex[:8]}"
    folder.mkdir()
    stored: dict[str, list[CachedFile]] = {"open": [], "private": []}

    def produced() -> Path:
        path = folder / f"{next(numbers)}.wav"
        with path.open("wb") as file:
            for _ in range(size // (1024 * 1024)):
                file.write(next(numbers).to_bytes(8, "big") * (128 * 1024))
        return path

    rounds = bench.rounds(8)
    waiting = {name: [CachedFile.from_path(produced()) for _ in range(rounds + 1)] for name in stored}

    def put(name: str) -> None:
        file = waiting[name].pop()
        stored[name].append(file.as_private() if name == "private" else file)
        cache.blobs.put(stored[name][-1])

    puts = interleaved({name: partial(put, name) for name in stored}, rounds, warmup=1)
    handles = {name: [CachedFile.from_dict(file.as_dict()) for file in files] for name, files in stored.items()}

    def fetch(name: str) -> None:
        cache.blobs.materialise(handles[name].pop()).release()

    fetches = interleaved({name: partial(fetch, name) for name in stored}, rounds, warmup=1)
    what = f"a file of {_FILE_MB} MB"
    return [
        _bar(f"Storing {what} privately, against openly", puts, _FILE_LIMIT, bytes=size),
        _bar(f"Fetching {what} that is private, against an open one", fetches, _FILE_LIMIT, bytes=size),
    ]
