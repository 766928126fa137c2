"""The part of docs/scaling.md that says what the simulation gave."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import fill
from typing import Final

from benchmarks.rendering import number
from benchmarks.simulation.figures import Figures
from benchmarks.simulation.night import KINDS, PLACES
from benchmarks.simulation.results import Latency, Simulation
from cache_blocks.wording import NONE, bytes_in_words, markdown_table


def wrapped(text: str) -> str:
    """Return a paragraph, or an item of a list, in lines."""
    indent = "  " if text.startswith("- ") else ""
    return fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def simulation(done: Simulation, figures: Figures) -> str:
    """Return what was asked for, and what came out."""
    shape = done.shape
    asked_seconds = [number(done.phases[phase].seconds) for phase in ("plant", "ask")]
    found = "Answered: " + ", ".join(f"{count:,} by {tier}" for tier, count in done.found.items() if tier != "miss")
    found += f", and {done.found['miss']:,} by nobody"
    places = ", ".join(f"{share:.1%} {_PLACES[place]}" for place, share in zip(PLACES, shape.places, strict=True))
    kinds = ", ".join(f"{share:.1%} `{kind}`" for kind, share in zip(KINDS, shape.kinds, strict=True))
    sizes = ", ".join(
        f"{share:.0%} of {bytes_in_words(size)}" for size, share in zip(shape.sizes, shape.size_shares, strict=True)
    )
    versions = ", ".join(f"{name} {version}" for name, version in done.versions.items())
    trouble = ", ".join(f"{what}: {count}" for what, count in done.problems.items()) or "none"
    asked_for = wrapped(
        f"{shape.keys:,} keys, each asked for once by one of {shape.processes} processes: {places}. The keys are "
        f"{kinds}; transcripts {sizes} of JSON, enhancements as long as their texts. {1 - shape.single:.0%} are asked "
        f"for in pages of {shape.page}, as `cached_map` does, the rest one by one, as task runs do. What is missed is "
        "computed, in no time, under a lease, and stored. What the object store alone has stands for rows that a "
        "database has lost. PostgreSQL does not wait for its disk (`fsync` is off), and all servers share the machine "
        f"with the processes that ask. In the end {shape.again:.0%} of the keys are asked for again."
    )
    came_out = wrapped(
        f"**{figures.keys_per_second:,.0f} keys a second; errors, wrong values, answers from elsewhere: {trouble}.** "
        f"{found}. Each key was asked for once, and every event is in PostgreSQL and in its tallies: one for a hit, "
        "two for a miss and its computation, so that a file has three events, and six when it is new."
    )
    circumstances = wrapped(
        f"Measured on {done.date.isoformat()}: {done.machine}; {versions}. Before it, {number(done.busy)} processes "
        f"wanted a processor. {f'{done.note}. ' if done.note else ''}Planting took {asked_seconds[0]} s, asking "
        f"{asked_seconds[1]} s."
    )
    return f"""{asked_for}

{came_out}

{_latency_table(done)}

{_processor_table(done)}

{_memory_table(done)}

{_sizes_table(done)}

{wrapped(f"PostgreSQL's busy backends were seen to wait for: {_waits(done)}. Deadlocks: {done.deadlocks}.")}

{circumstances}"""


_PLACES: Final = {
    "redis": "in Redis, SQL having them too",
    "sql": "in SQL only, Redis having evicted them",
    "object_store": "in the object store only",
    "nowhere": "nowhere",
}


def _waits(done: Simulation) -> str:
    return ", ".join(f"{what} {share:.0f} %" for what, share in list(done.waits.items())[:5])


def _latency_table(done: Simulation) -> str:
    rows = [
        (
            name,
            f"{one.count:,}",
            number(one.p50),
            *(number(each) if one.count >= least else NONE for each, least in _tail(one)),
            number(one.max),
        )
        for name, one in done.latency.items()
    ]
    columns = ("operation (measured, in ms)", "times", "p50", "p95", "p99", "p99.9", "longest")
    return markdown_table(columns, rows, numbers=columns[1:])


def _tail(one: Latency) -> Iterator[tuple[float, int]]:
    """Yield the high percentiles, each with how many times it takes for one to be beyond it."""
    yield from ((one.p95, 20), (one.p99, 100), (one.p999, 1_000))


def _processor_table(done: Simulation) -> str:
    rows = [
        (
            phase,
            f"{one.keys:,}",
            f"{one.seconds:,.0f}",
            *(f"{1000 * one.processor_seconds[who] / one.keys:.3f}" for who in ("workers", "redis", "postgres", "s3")),
            bytes_in_words(round(one.wal_bytes / one.keys)),
        )
        for phase, one in done.phases.items()
    ]
    columns = ("phase (measured)", "keys", "s", "workers", "Redis", "PostgreSQL", "S3 server", "PostgreSQL's log")
    table = markdown_table(columns, rows, numbers=columns[1:])
    return f"Milliseconds of processor time, and bytes, for a key:\n\n{table}"


def _memory_table(done: Simulation) -> str:
    rows = [(name, bytes_in_words(taken)) for name, taken in sorted(done.memory.items())]
    return markdown_table(("memory, the most at once (measured)", "bytes"), rows, numbers=("bytes",))


def _sizes_table(done: Simulation) -> str:
    tables = [(name, one) for name, one in done.sizes.tables.items() if one.rows * 1_000 > done.shape.keys]
    rows = [(f"Redis, {sort}", "", bytes_in_words(round(taken)), "") for sort, taken in done.sizes.redis.items()]
    for name, one in tables:
        rows.append(
            (f"`{name}`", f"{one.rows:,}", bytes_in_words(round(one.bytes / one.rows)), f"{one.vacuum_seconds:.1f} s")
        )
        rows += [(f"`{index}`", "", bytes_in_words(round(size / one.rows)), "") for index, size in one.indexes.items()]
    rows += [
        (f"object store, {sort}", f"{count:,}", bytes_in_words(round(done.sizes.object_bytes[sort] / count)), "")
        for sort, count in done.sizes.objects.items()
    ]
    columns = ("stored (measured)", "rows", "bytes each", "vacuum")
    return markdown_table(columns, rows, numbers=columns[1:])
