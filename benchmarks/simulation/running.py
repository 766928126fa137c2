"""A simulated night from beginning to end: start the servers, plant, ask, ask some again, measure, sum up."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from benchmarks.results import Machine, versions
from benchmarks.simulation.asking import Answers
from benchmarks.simulation.crew import Crew, Done, Part
from benchmarks.simulation.night import Shape
from benchmarks.simulation.results import Latency, Phase, Simulation, rounded
from benchmarks.simulation.servers import Servers, servers
from benchmarks.simulation.sizing import sizes
from benchmarks.simulation.watching import Seen, Watch, grown
from cache_blocks import TieredCache

if TYPE_CHECKING:
    from benchmarks.measuring import Bench

PHASES: Final = ("plant", "ask", "again")
_DAY: Final = 86_400
_TALLY: Final = "cache_blocks_event_tally"
_PACKAGES: Final = ("prefect-cache-blocks", "redis", "sqlalchemy", "s3fs", "orjson", "lz4", "pydantic")


@dataclass
class _Run:
    """What has been done so far."""

    phases: dict[str, Phase] = field(default_factory=dict[str, Phase])
    answers: dict[str, list[Answers]] = field(default_factory=dict[str, list[Answers]])


def simulate(bench: Bench, shape: Shape, tell: Callable[[str, int], object], note: str = "") -> Simulation:
    """Simulate a night.

    Args:
        bench: Folder and servers.
        shape: The night.
        tell: Takes a phase, and how many of its keys were done since it was told last.
        note: What has to be known of the circumstances.

    Raises:
        ProcessFailedError: One of the processes has failed or died.
    """
    busy = os.getloadavg()[1]
    with servers(bench) as started:
        _prepare(started)
        with Crew(_parts(bench, started, shape)) as crew:
            watch = Watch(started, crew.processes)
            run = _Run()
            for phase in PHASES:
                _do(phase, crew, watch, started, run, tell)
        return Simulation(
            date=dt.datetime.now(dt.UTC).date(),
            machine=Machine.here(),
            versions=_versions(started),
            busy=rounded(busy),
            note=note,
            shape=shape,
            phases=run.phases,
            found=_sums(one.found for one in run.answers["ask"]),
            found_again=_sums(one.found for one in run.answers["again"]),
            events=_sums(one.events for one in run.answers["ask"]),
            problems=_problems(shape, started, run),
            deadlocks=int(_database(started)["deadlocks"]),
            sizes=sizes(started),
            **_times([one for phase in ("ask", "again") for one in run.answers[phase]]),
            **_seen(watch.seen),
        )


def _prepare(started: Servers) -> None:
    """Let one process make the tables, and Redis and SQL learn that they are new."""
    cache = TieredCache(started.settings)
    cache.lookup("transcript:nothing")
    cache.close()


def _parts(bench: Bench, started: Servers, shape: Shape) -> list[Part]:
    folder = bench.folder / "computed"
    folder.mkdir()
    earlier = time.time() - _DAY
    return [
        Part(process, shape, started.settings, started.store_folder, folder, earlier)
        for process in range(shape.processes)
    ]


def _do(phase: str, crew: Crew, watch: Watch, started: Servers, run: _Run, tell: Callable[[str, int], object]) -> None:
    """Do a phase and keep what it gave."""
    before, wal, began = watch.processor_seconds(), _written(started), time.perf_counter()
    counted = 0

    def count(keys: int) -> None:
        nonlocal counted
        counted += keys
        tell(phase, keys)

    with watch.watching():
        done = crew.do(phase, count)
        seconds = time.perf_counter() - began
    processor = {"workers": sum(one.processor_seconds for one in done), **grown(watch.processor_seconds(), before)}
    run.phases[phase] = Phase(
        keys=counted,
        seconds=rounded(seconds),
        processor_seconds={name: rounded(value) for name, value in processor.items()},
        wal_bytes=_written(started) - wal,
        requests=_sums(one.requests for one in done),
    )
    run.answers[phase] = _answers(done)


def _answers(done: Sequence[Done]) -> list[Answers]:
    return [one.answers for one in done if one.answers is not None]


def _problems(shape: Shape, started: Servers, run: _Run) -> dict[str, int]:
    """Return what should not have happened: as the processes say, and as the sums over them tell."""
    answers = run.answers["ask"]
    found = Counter(_sums(one.problems for phase in ("ask", "again") for one in run.answers[phase]))
    asked = np.sort(np.concatenate([np.asarray(one.numbers, dtype=np.int64) for one in answers]))
    if not np.array_equal(asked, np.arange(shape.keys)):
        found["keys not asked for exactly once"] = int(np.setxor1d(asked, np.arange(shape.keys)).size) or 1
    recorded = _sums(one.events for phase in ("ask", "again") for one in run.answers[phase])
    stored, tallied = _events(started, "cache_blocks_event", "count(*)"), _events(started, _TALLY, "sum(events)")
    for action in ("lookup", "computed"):
        here = sum(count for name, count in recorded.items() if name.partition(" ")[0] == action)
        if lost := here - stored.get(action, 0):
            found[f"{action} events recorded and not stored"] = lost
        if wrong := stored.get(action, 0) - tallied.get(action, 0):
            found[f"{action} events stored and not in the tallies"] = wrong
    database = _database(started)
    for name in ("deadlocks", "conflicts"):
        if count := int(database[name]):
            found[name] = count
    return dict(found)


def _events(started: Servers, table: str, sums: str) -> dict[str, int]:
    """Return how many events there are by action."""
    rows = started.postgres(f"SELECT action, {sums} AS events FROM {table} GROUP BY action")  # noqa: S608 - constants
    return {str(row["action"]): int(row["events"]) for row in rows}


def _times(answers: Sequence[Answers]) -> dict[str, Any]:
    """Return latency and processor time by operation."""
    names = sorted({name for one in answers for name in one.seconds})
    latency = {
        name: Latency.of(np.concatenate([np.asarray(one.seconds[name]) for one in answers if name in one.seconds]))
        for name in names
    }
    requests: dict[Any, int] = _sums(one.requests for one in answers)
    spent, keys = _sums_of_floats(one.processor for one in answers), _sums(one.keys for one in answers)
    return {
        "latency": latency,
        "processor_ms": {name: rounded(1000 * spent[name] / keys[name]) for name in names},
        "requests": {name: _each(requests, name, keys[name]) for name in names},
    }


def _each(requests: Mapping[Any, int], name: str, keys: int) -> dict[str, float]:
    """Return an operation's requests to the object store for each of its keys."""
    return {what: rounded(count / keys) for (of, what), count in requests.items() if of == name and count}


def _seen(seen: Seen) -> dict[str, Any]:
    waits = {name: rounded(100 * count / seen.waits.total()) for name, count in seen.waits.most_common()}
    return {"memory": seen.peak_bytes, "connections": seen.connections, "waits": waits}


def _sums(counters: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return dict(sorted(total.items()))


def _sums_of_floats(counters: Any) -> Mapping[str, float]:
    return cast("Mapping[str, float]", _sums(counters))


def _written(started: Servers) -> int:
    """Return how many bytes PostgreSQL has written to its log so far."""
    return int(started.postgres("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn AS bytes")[0]["bytes"])


def _database(started: Servers) -> dict[str, Any]:
    return started.postgres("SELECT * FROM pg_stat_database WHERE datname = current_database()")[0]


def _versions(started: Servers) -> dict[str, str]:
    ours = {name: version for name, version in versions().items() if name in _PACKAGES}
    with started.redis as client:
        redis = str(client.info("server")["redis_version"])
    postgres = str(started.postgres("SHOW server_version")[0]["server_version"])
    return {**ours, "Redis": redis, "PostgreSQL": postgres}
