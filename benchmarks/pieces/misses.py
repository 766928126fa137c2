"""Misses in a batch, and very many items.

`cached_map` over hits and misses in turns, whose futures have to come back in order; over two stages, the second of
which must not wait for the whole of the first; and over 100,000 hits in a process of its own, whose memory must stay
within bounds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import uuid4

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from benchmarks.environment import cache_in_environment, console_to_nowhere
from benchmarks.many_items import many_item, recordings
from benchmarks.measuring import Bar
from benchmarks.payloads import transcript
from cache_blocks import SEARCH_RESULTS, TieredCache, TieredCachePolicy, cached_map, cached_task

if TYPE_CHECKING:
    from benchmarks.measuring import Bench

ORDER: Final = 4

_MANY: Final = 100_000
_MIXED: Final = 200
_STAGED: Final = 20
_PAGE: Final = 1_000
_PATIENCE_SECONDS: Final = 30.0  # how long a barrier between the stages would last
_ROOT: Final = Path(__file__).parents[2]


def measure(bench: Bench) -> list[Bar]:
    """Measure order, streaming and memory."""
    bench.note(f"flows against {bench.prefect_url}")
    bench.settle()  # a server that is behind refuses flow runs
    with cache_in_environment(bench, f"misses-{uuid4().hex[:8]}") as cache, console_to_nowhere():
        return [*_measure_order(bench), _measure_stages(), _measure_memory(bench, cache)]


def _measure_order(bench: Bench) -> list[Bar]:
    items = bench.rounds(_MIXED, least=10)
    computed: list[str] = []

    @cached_task(kind=SEARCH_RESULTS)
    def spell(recording: str) -> dict[str, str]:
        computed.append(recording)
        return {"recording": recording}

    @flow(name="benchmark-order")
    def mixed() -> list[dict[str, str]]:
        cached_map(spell, recordings(items)[::2]).result()
        computed.clear()
        return [future.result() for future in cached_map(spell, recordings(items))]

    results = mixed()
    wrong = sum(result["recording"] != expected for result, expected in zip(results, recordings(items), strict=True))
    misses = items // 2
    return [
        Bar(f"results out of order among {items:,} hits and misses in turns", wrong, 0, "lower", "results"),
        Bar(f"computations for {misses:,} misses among them", len(computed), misses, "lower", "computations"),
    ]


def _measure_stages() -> Bar:
    """Hold one item of the first stage back until all others have been through the second."""
    others_done = threading.Semaphore(0)
    first_stage_ended = threading.Event()
    early: list[str] = []

    @cached_task(kind=SEARCH_RESULTS)
    def first(recording: str) -> dict[str, str]:
        if recording == "000000":
            for _ in range(_STAGED - 1):
                others_done.acquire(timeout=_PATIENCE_SECONDS / _STAGED)
            first_stage_ended.set()
        return {"recording": recording}

    @cached_task(kind=SEARCH_RESULTS)
    def second(result: dict[str, str]) -> str:
        if not first_stage_ended.is_set():
            early.append(result["recording"])
        others_done.release()
        return result["recording"]

    @flow(name="benchmark-stages", task_runner=cast("Any", ThreadPoolTaskRunner[Any](max_workers=4)))
    def staged() -> list[str]:
        return cached_map(second, cached_map(first, recordings(_STAGED))).result()

    assert staged() == recordings(_STAGED)
    name = f"runs of a second stage begun before the last of the first had ended, of {_STAGED}"
    note = "One item of the first stage waits for all others of the second, which a barrier between them would forbid."
    return Bar(name, len(early), _STAGED - 1, "higher", "runs", {"note": note})


def _measure_memory(bench: Bench, cache: TieredCache) -> Bar:
    count = bench.rounds(_MANY, least=100)
    bench.note(f"storing {count:,} results")
    payload = transcript(2_000, seed=1)
    policy = many_item.cache_policy
    assert isinstance(policy, TieredCachePolicy)
    keys = {policy.call_of(many_item, {"recording": each}).key: each for each in recordings(count)}
    left = iter(keys.items())
    while page := dict(islice(left, _PAGE)):
        values = {key: payload | {"recording": recording} for key, recording in page.items()}
        cache.put_many(values, kind=SEARCH_RESULTS, compute_seconds=10.0)
    bench.note(f"mapping over {count:,} hits in a process of its own")
    seen = _map_over_many(bench, count)
    assert seen["right"] == count, f"{seen['right']} of {count} results were right"
    return Bar(
        name=f"memory of a process that maps over {count:,} hits of 2 KB and looks at each",
        figure=seen["peak_mb"],
        limit=300,
        better="lower",
        unit="MB",
        detail={"items": count, "note": f"Of this, {seen['before_mb']:.0f} MB are Prefect and the cache as imported."},
    )


def _map_over_many(bench: Bench, count: int) -> dict[str, float]:
    quiet = {"PREFECT_API_URL": bench.prefect_url, "PREFECT_LOGGING_LEVEL": "WARNING"}
    command = [sys.executable, "-m", "benchmarks.many_items", str(count)]
    done = subprocess.run(command, cwd=_ROOT, env=os.environ | quiet, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
