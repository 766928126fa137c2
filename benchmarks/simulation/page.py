"""`docs/scaling.md`, from `simulation.json` and the model alone."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from benchmarks.rendering import number
from benchmarks.simulation.figures import Figures
from benchmarks.simulation.measured import simulation, wrapped
from benchmarks.simulation.model import Assumptions, Limit, Needs, files_until, limits, needs
from benchmarks.simulation.night import KINDS
from benchmarks.simulation.results import Simulation
from cache_blocks.tiers.redis import GENERATION_TTL_MS
from cache_blocks.wording import bytes_in_words, markdown_table, money_in_words

FILE: Final = Path(__file__).parents[2] / "docs" / "scaling.md"
NIGHTS: Final = (1_000_000, 50_000_000)

_HEAD: Final = """# Toward a million files a night

What a night of a million files needs, what one of fifty million needs, and what breaks first. Both are reckoned from
figures that a simulation has measured, and from assumptions that are named; every table says which is which.

Made by `make simulation`, which writes `benchmarks/simulation.json` and, from that alone, this page."""


def render(done: Simulation) -> str:
    """Return the page."""
    figures, assumed = Figures.of(done), Assumptions()
    nights = [needs(files, figures, assumed) for files in NIGHTS]
    blocks = [
        _HEAD,
        _first_to_break(nights[0], nights[1], assumed),
        "## What a night needs\n",
        _needs_table(nights, assumed),
        _notes(done, figures, nights[0], assumed),
        "## What breaks first\n",
        _limits_table(nights, assumed),
        "## The simulation\n",
        simulation(done, figures),
        "## Figures and assumptions\n",
        _figures_table(figures),
        _assumptions_table(assumed),
    ]
    return "\n\n".join(block.strip("\n") for block in blocks) + "\n"


def write(done: Simulation, path: Path = FILE) -> None:
    """Write the page."""
    path.write_text(render(done), encoding="utf-8")


def _first_to_break(small: Needs, large: Needs, assumed: Assumptions) -> str:
    first = limits(small, assumed)[0]
    over = [limit for limit in limits(large, assumed) if limit.used > 1]
    at = files_until(first, small.files)
    beyond = ", ".join(f"{limit.name} ({limit.used:.1f} times)" for limit in over) or "nothing"
    return wrapped(
        f"**What breaks first is the {first.name}: at about {_round(at)} files a night.** A million files use "
        f"{first.used:.0%} of it, and less of all else. Of one server of each sort fifty million need too much of: "
        f"{beyond}."
    )


def _needs_table(nights: list[Needs], assumed: Assumptions) -> str:
    rows = [
        ("lookups", *(f"{_round(one.lookups)}, {number(one.lookups_per_second)} a second" for one in nights)),
        ("results computed and stored", *(_round(one.computations) for one in nights)),
        ("processors for looking up and storing", *(number(one.worker_processors) for one in nights)),
        ("memory of a process for each of these, without Prefect", *(_gb(one.worker_gb) for one in nights)),
        ("Redis: memory", *(_gb(one.redis_gb) for one in nights)),
        ("Redis: processors", *(number(one.redis_processors) for one in nights)),
        ("PostgreSQL: processors", *(number(one.postgres_processors) for one in nights)),
        ("PostgreSQL: entries", *(f"{_round(one.postgres_entries)}, {_gb(one.postgres_entry_gb)}" for one in nights)),
        (
            f"PostgreSQL: events of {assumed.event_days:.0f} days",
            *(f"{_round(one.postgres_events)}, {_gb(one.postgres_event_gb)}" for one in nights),
        ),
        ("PostgreSQL: log", *(f"{number(one.postgres_log_mb)} MB/s" for one in nights)),
        ("PostgreSQL: one vacuum of the events", *(f"{number(one.vacuum_hours)} h" for one in nights)),
        ("PostgreSQL: connections of these processes", *(f"{one.postgres_connections:,.0f}" for one in nights)),
        ("S3: requests that read", *(_round(one.store_reads) for one in nights)),
        ("S3: requests that write", *(_round(one.store_writes) for one in nights)),
        ("S3: price of the requests", *(money_in_words(one.store_dollars, "USD") for one in nights)),
        (
            "S3: stored, a month",
            *(f"{_gb(one.store_gb)}, {money_in_words(one.store_dollars_per_month, 'USD')}" for one in nights),
        ),
    ]
    columns = ("a night of (reckoned)", *(f"{_round(one.files)} files" for one in nights))
    return markdown_table(columns, rows, numbers=columns[1:])


def _notes(done: Simulation, figures: Figures, small: Needs, assumed: Assumptions) -> str:
    event_share = small.postgres_event_gb / small.postgres_gb
    one_day = small.postgres_event_gb / assumed.event_days
    again = done.processor_ms["again: one from redis"] / done.processor_ms["one from redis"]
    heads = figures.page_requests["audio-preprocessing"][0]
    hours = GENERATION_TTL_MS // 3_600_000
    shortest = min(assumed.days.values())
    notes = (
        wrapped(
            f"- Events take {event_share:.0%} of PostgreSQL, {_gb(one_day)} for each night of a million files. Single "
            "events are for reading reports up close; what a day adds up to outlives them for 400 days, and takes next "
            "to nothing. With `CACHE_BLOCKS_EVENT_DAYS=2` a fifteenth of them is left."
        ),
        wrapped(
            f"- The first lookup of a key in {hours} hours asks SQL for its generation, whatever Redis has, because "
            "Redis keeps copies of generations that long. Where each key is asked for once a night, SQL is asked every "
            "second night: Redis spares it the bytes, and not the question. The tables are about such a night. Asked "
            f"again within {hours} hours, a key takes {again:.0%} of the worker's processor time."
        ),
        wrapped(
            "- Every hit on normalised sound asks S3 whether the sound is still there: "
            f"{number(heads)} requests for a key of a page."
        ),
        wrapped(
            f"- Entries have one end, {shortest:.0f} days after they were computed at the earliest, and a hit does not "
            f"put it off. Where the same recordings come back every night, one in {shortest:.0f} of the sounds and of "
            "the enhancements is computed anew each night: 97 % hits suppose kinds with a longer `ttl`, or recordings "
            "that come back for some days."
        ),
    )
    return "\n".join(notes)


def _limits_table(nights: list[Needs], assumed: Assumptions) -> str:
    in_order = limits(nights[0], assumed)
    large = {limit.name: limit for limit in limits(nights[1], assumed)}
    rows = [
        (
            limit.name,
            f"{number(limit.there)} {limit.unit}",
            f"{limit.used:.1%}",
            _used(large[limit.name]),
            _round(files_until(limit, nights[0].files)),
            limit.way_out,
        )
        for limit in in_order
    ]
    columns = ("what", "one has (assumed)", "used at 1 million", "at 50 million", "full at, files", "way out")
    return markdown_table(columns, rows, numbers=columns[1:5])


def _used(limit: Limit) -> str:
    return f"{limit.used:.1%}" if limit.used <= 1 else f"**{limit.used:.1f} times**"


def _figures_table(figures: Figures) -> str:
    rows = [(f"worker, ms for a key of a page, `{kind}`", f"{figures.page_ms[kind]:.3f}", "measured") for kind in KINDS]
    rows += [(f"worker, ms that a miss adds, `{kind}`", f"{figures.miss_ms[kind]:.3f}", "measured") for kind in KINDS]
    rows += [
        (f"Redis, for an entry, `{kind}`", bytes_in_words(round(figures.redis_bytes[kind])), "measured")
        for kind in KINDS
    ]
    rows += [
        (f"PostgreSQL, for an entry, `{kind}`", bytes_in_words(round(figures.entry_bytes[kind])), "measured")
        for kind in KINDS
    ]
    rows += [
        ("Redis, ms for a key", f"{figures.redis_ms:.4f}", "measured"),
        ("PostgreSQL, ms for a key", f"{figures.postgres_ms:.3f}", "measured"),
        ("Redis, for the copy of a generation", bytes_in_words(round(figures.generation_bytes)), "measured"),
        ("PostgreSQL, for an event", bytes_in_words(round(figures.event_bytes)), "measured"),
        ("object store, for a transcript", bytes_in_words(round(figures.object_bytes)), "measured"),
        ("connections to PostgreSQL for a process", number(figures.connections), "measured"),
        ("lookups a second and processor, of workers and servers together", _per_processor(figures), "measured"),
    ]
    return markdown_table(("figure", "value", "is"), rows, numbers=("value",))


def _per_processor(figures: Figures) -> str:
    return f"{figures.keys_per_second / figures.processors:,.0f}"


def _assumptions_table(assumed: Assumptions) -> str:
    rows = [
        ("length of the night", f"{assumed.hours:.0f} h"),
        ("hits", f"{assumed.hit_share:.0%}"),
        ("lookups of a file", "3: `normalise_audio`, `transcribe`, `enhance`; no search, no preferences, no chunks"),
        ("lifetimes", ", ".join(f"`{kind}` {days:.0f} days" for kind, days in assumed.days.items())),
        (
            "recordings",
            f"{assumed.sound_seconds:.0f} s, {bytes_in_words(round(assumed.sound_bytes))} of sound a second",
        ),
        (
            "price list: S3 Standard, us-east-1",
            _prices(assumed),
        ),
        ("processors are busy", f"{assumed.busy_share:.0%} of the night: work is never spread evenly"),
        ("what servers can do", "the second column of the table of limits"),
    ]
    return markdown_table(("assumption", "value"), [(*row,) for row in rows])


def _prices(assumed: Assumptions) -> str:
    return (
        f"USD {assumed.dollars_per_1000_writes} for 1,000 PUT or LIST, {assumed.dollars_per_1000_reads} for others, "
        f"{assumed.dollars_per_gb_month} for a GB and month; traffic within the region is free"
    )


def _gb(amount: float) -> str:
    return bytes_in_words(round(amount * 1e9))


def _round(count: float) -> str:
    """Return a large number in words, such as ``3.1 million``."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:.3g} {word}"
    return f"{count:,.0f}"
