"""One hit as a task run.

A task that returns a transcript of 2 KB, called in a flow against a Prefect server in a process of its own: without a
cache, out of our cache in Redis, and out of Redis by prefect-redis, in turns. What counts is the time that a hit adds
to the same task run with `NO_CACHE`. Logging is as Prefect sets it up, to the console and to the server; our line on
each lookup is part of what is measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import Task

from benchmarks.environment import cache_in_environment, console_to_nowhere
from benchmarks.measuring import Bar, interleaved, milliseconds, spread_of
from benchmarks.payloads import transcript
from benchmarks.peers.tasks import cached_by_prefect, redis_storage
from cache_blocks import TRANSCRIPT, cached_task

if TYPE_CHECKING:
    from benchmarks.measuring import Bench, Timing

ORDER: Final = 2

_RUNS: Final = 500
_CHUNKS: Final = 10

# Contestants.
_NONE: Final = "NO_CACHE"
_NONE_AGAIN: Final = "NO_CACHE again"
_OURS: Final = "ours, Redis"
_PREFECT: Final = "Prefect, prefect-redis"


def measure(bench: Bench) -> list[Bar]:
    """Run the same task in four ways, in turns, within one flow run."""
    bench.note(f"task runs against {bench.prefect_url}")
    with cache_in_environment(bench, f"task-run-{uuid4().hex[:8]}"), console_to_nowhere():
        tasks, calls = _tasks(bench)

        @flow(name="benchmark-task-runs")
        def runs() -> dict[str, Timing]:
            # Prefect's keys are the same for all tasks with equal arguments, so these must be nobody else's.
            arguments = {"recording": uuid4().hex, "model": "large-v3", "language": "en"}
            contestants = {name: _called(one, arguments) for name, one in tasks.items()}
            return interleaved(contestants, bench.rounds(_RUNS, least=_CHUNKS), warmup=5)

        timings: dict[str, Timing] = runs()
    assert [calls.get(_OURS), calls.get(_PREFECT)] == [1, 1], f"what should have been hits was computed: {calls}"
    return [_bar(timings)]


def _tasks(bench: Bench) -> tuple[dict[str, Task[..., Any]], dict[str, int]]:
    """Return one function as four tasks, and how often each of them was computed."""
    payload = transcript(2_000, seed=1)
    calls: dict[str, int] = {}

    def counted(name: str) -> Callable[..., Any]:
        def transcribe(recording: str, model: str, language: str) -> dict[str, Any]:
            del recording, model, language
            calls[name] = calls.get(name, 0) + 1
            return payload

        return transcribe

    none, none_again = (task(cache_policy=NO_CACHE)(counted(name)) for name in (_NONE, _NONE_AGAIN))
    ours = cached_task(counted(_OURS), kind=TRANSCRIPT)
    theirs = cached_by_prefect(counted(_PREFECT), redis_storage(bench.redis_url))
    return {_NONE: none, _NONE_AGAIN: none_again, _OURS: ours, _PREFECT: theirs}, calls


def _called(one: Task[..., Any], arguments: Mapping[str, str]) -> Callable[[], object]:
    return lambda: one(**arguments)


def _bar(timings: Mapping[str, Timing]) -> Bar:
    none, again, ours, theirs = (timings[name].samples for name in (_NONE, _NONE_AGAIN, _OURS, _PREFECT))
    size = len(none) // _CHUNKS
    pieces = [slice(start, start + size) for start in range(0, size * _CHUNKS, size)]
    parts = [_added(ours[each], none[each]) / _added(theirs[each], none[each]) for each in pieces]
    added = {"ours": _added(ours, none), "prefect_redis": _added(theirs, none), "nothing": _added(again, none)}
    in_ms = {name: value * 1000 for name, value in added.items()}
    note = (
        f"In the median over {len(none)} runs each, a hit adds {in_ms['ours']:.2f} ms with ours and "
        f"{in_ms['prefect_redis']:.2f} ms with prefect-redis; a second task without a cache differs from the first by "
        f"{in_ms['nothing']:+.2f} ms. The quartiles are those of {_CHUNKS} parts of the run."
    )
    return Bar(
        name="what a hit adds to a task run, as a share of what one with prefect-redis adds",
        figure=added["ours"] / added["prefect_redis"],
        limit=0.25,
        better="lower",
        detail={
            **spread_of(parts).spread,
            "runs": len(none),
            "added_ms": in_ms,
            "milliseconds": milliseconds(timings),
            "note": note,
        },
    )


def _added(samples: Sequence[float], without: Sequence[float]) -> float:
    """Return the median of what each round added."""
    return statistics.median(a - b for a, b in zip(samples, without, strict=True))
