"""A batch of hits.

A thousand results in Redis, 46 KB each, mapped over in a flow against a Prefect server in a process of its own: with
`cached_map`, and with Prefect's `.map` over a task that Prefect caches itself, by prefect-redis and in local files. The
clock stops after the last `.result()`. Then the whole `batch-transcription` flow over a thousand recordings, everything
cached and all outputs there already, against the same three stages written with Prefect's own caching.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import uuid4

from prefect import flow

from benchmarks.counting import files_opened, redis_commands, sql_statements
from benchmarks.environment import cache_in_environment, console_to_nowhere
from benchmarks.measuring import Bar, interleaved, milliseconds, ratio
from benchmarks.payloads import transcript
from benchmarks.peers.pipeline import PeerPipeline
from benchmarks.peers.tasks import cached_by_prefect, file_storage, plant, redis_storage
from benchmarks.recordings import batch_flow, planted_recordings
from cache_blocks import TRANSCRIPT, TieredCache, TieredCachePolicy, cached_map, cached_task

if TYPE_CHECKING:
    from benchmarks.measuring import Bench, Timing

R = TypeVar("R")

ORDER: Final = 3

_ITEMS: Final = 1_000
_LEAST_ITEMS: Final = 20
_ROUNDS: Final = 3  # each takes most of a minute, of which ours takes one second
_DIFFERENT: Final = 20
_STAGES: Final = 3

# Contestants.
_OURS: Final = "ours, Redis"
_PREFECT_REDIS: Final = "Prefect, prefect-redis"
_PREFECT_FILES: Final = "Prefect, local files"


def measure(bench: Bench) -> list[Bar]:
    """Measure mapping over hits, then the whole flow."""
    bench.note(f"batches against {bench.prefect_url}")
    with console_to_nowhere():
        return [*_measure_map(bench), *_measure_flow(bench)]


def _measure_map(bench: Bench) -> list[Bar]:
    with cache_in_environment(bench, f"batch-{uuid4().hex[:8]}") as cache:
        contestants = _maps(bench, cache)
        commands: dict[str, int] = {}

        def compare() -> None:
            assert contestants[_OURS]() == contestants[_PREFECT_FILES](), "they give back different things"
            with redis_commands(bench.redis_url) as counted:
                contestants[_OURS]()
            commands.update(counted)

        _in_a_flow_run(compare)
        bench.note("mapping")
        timings = interleaved(contestants, bench.rounds(_ROUNDS), warmup=0, before=bench.settle, within=_in_a_flow_run)
    return _map_bars(bench, timings, commands)


def _in_a_flow_run(turn: Callable[[], R]) -> R:
    """Let a turn have a flow run of its own, which keeps what its task runs have returned until it ends."""

    @flow(name="benchmark-map")
    def run() -> R:
        return turn()

    return run()


def _map_bars(bench: Bench, timings: Mapping[str, Timing], commands: Mapping[str, int]) -> list[Bar]:
    items = bench.rounds(_ITEMS, _LEAST_ITEMS)
    sizes = {"items": items, "rounds": len(timings[_OURS].samples)}
    redis, files = (ratio(timings[theirs], timings[_OURS]) for theirs in (_PREFECT_REDIS, _PREFECT_FILES))
    return [
        Bar(
            name=f"mapping over {items:,} hits: times as fast as `.map` with prefect-redis",
            figure=redis.median,
            limit=20,
            better="higher",
            detail={**redis.spread, **sizes, "milliseconds": milliseconds(timings)},
        ),
        Bar(
            name=f"mapping over {items:,} hits: times as fast as `.map` with local files",
            figure=files.median,
            limit=10,
            better="higher",
            detail={**files.spread, **sizes},
        ),
        Bar(
            name=f"Redis commands for mapping over {items:,} hits",
            figure=sum(commands.values()),
            limit=5,
            better="lower",
            unit="commands",
            detail={**sizes, "commands": dict(commands)},
        ),
    ]


def _maps(bench: Bench, cache: TieredCache) -> dict[str, Callable[[], list[Any]]]:
    """Store the results for each contestant; return what maps over them and waits for every result."""
    bench.note("storing the results")
    recordings = [f"{number:06}" for number in range(bench.rounds(_ITEMS, _LEAST_ITEMS))]
    different = [transcript(46_000, seed=number) for number in range(_DIFFERENT)]
    results = [({"recording": one}, value) for one, value in zip(recordings, cycle(different), strict=False)]
    ours = cached_task(_transcribe, kind=TRANSCRIPT)
    policy = ours.cache_policy
    assert isinstance(policy, TieredCachePolicy)
    for arguments, value in results:
        cache.put_call(policy.call_of(ours, arguments), value, compute_seconds=10.0)
    maps: dict[str, Callable[[], list[Any]]] = {
        _OURS: lambda: _results(cached_map(ours, recordings)),
    }
    storages = {
        _PREFECT_REDIS: redis_storage(bench.redis_url),
        _PREFECT_FILES: file_storage(bench.folder / f"map-{uuid4().hex[:8]}"),
    }
    for name, storage in storages.items():
        plant(storage, results)
        maps[name] = _mapped(cached_by_prefect(_transcribe, storage), recordings)
    return maps


def _mapped(task: Any, recordings: Sequence[str]) -> Callable[[], list[Any]]:
    return lambda: _results(task.map(recordings))


def _results(futures: Sequence[Any]) -> list[Any]:
    return [future.result() for future in futures]


def _transcribe(recording: str) -> dict[str, Any]:
    raise AssertionError(f"{recording} was computed")


def _measure_flow(bench: Bench) -> list[Bar]:
    items = bench.rounds(_ITEMS, _LEAST_ITEMS)
    folder = bench.folder / f"flow-{uuid4().hex[:8]}"
    bench.note(f"computing {items:,} recordings once for each pipeline")
    source = planted_recordings(folder / "recordings", items)
    with cache_in_environment(bench, f"flow-{uuid4().hex[:8]}") as cache:
        pipelines = {
            _OURS: batch_flow(source, folder / "ours"),
            _PREFECT_FILES: PeerPipeline(source, folder / "files", file_storage(folder / "results")),
        }
        for pipeline in pipelines.values():
            pipeline.compute()
            bench.settle()
        pipelines[_OURS].again()  # what was written a moment ago is looked at once more
        with (
            redis_commands(bench.redis_url) as commands,
            sql_statements() as statements,
            files_opened(cache.settings.home / "objects", source) as opened,
        ):
            pipelines[_OURS].again()
        bench.note("running the flows")
        again = {name: pipeline.again for name, pipeline in pipelines.items()}
        timings = interleaved(again, bench.rounds(_ROUNDS), warmup=0, before=bench.settle)
    lookups = {"redis": commands["mget"], "sql": sum("FROM cache_blocks_entry" in one for one in statements)}
    blobs, recordings = opened.values()
    return [
        _flow_bar(items, timings),
        Bar(
            name="bulk lookups a stage of the flow, in the tier that is asked most often",
            figure=max(lookups.values()) / _STAGES,
            limit=6,
            better="lower",
            unit="lookups",
            detail={"lookups": lookups, "redis_commands": dict(commands), "sql_statements": len(statements)},
        ),
        Bar(
            name=f"cached audio files opened by the flow over {items:,} recordings",
            figure=blobs,
            limit=0,
            better="lower",
            unit="files",
            detail={"recordings_opened": recordings},
        ),
    ]


def _flow_bar(items: int, timings: Mapping[str, Timing]) -> Bar:
    faster = ratio(timings[_PREFECT_FILES], timings[_OURS])
    return Bar(
        name=f"the flow over {items:,} cached recordings: times as fast as with Prefect's own caching",
        figure=faster.median,
        limit=15,
        better="higher",
        detail={
            **faster.spread,
            "items": items,
            "rounds": len(timings[_OURS].samples),
            "milliseconds": milliseconds(timings),
            "note": "Prefect keeps its results in local files, where it is faster than with prefect-redis.",
        },
    )
