"""What a night of so many files needs, and what breaks first: figures of a simulation and assumptions in, needs out.

Nothing here asks a server or a clock. Every figure is either one of `Figures`, which were measured, or one of
`Assumptions`, which were not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from benchmarks.simulation.figures import Figures
from benchmarks.simulation.night import KINDS

STAGES: Final = len(KINDS)
"""Lookups of a file in the pipeline: its sound, its transcript, its enhancement. A miss is one more, and a result."""
_HOUR: Final = 3_600
_PIECE: Final = 1_000


@dataclass(frozen=True)
class Assumptions:
    """Not measured: the night, and what servers can do.

    Attributes:
        hours: How long the night is.
        hit_share: Share of the lookups that hit. The simulation's, whose mix decides what a lookup costs.
        days: How many days entries are kept, by kind: their lifetimes.
        event_days: How long single events are kept, the default of ``CACHE_BLOCKS_EVENT_DAYS``.
        sound_seconds: Length of a recording.
        sound_bytes: Bytes of a second of normalised sound: 16 kHz, one channel, 16 bits.
        dollars_per_1000_writes: S3 Standard, us-east-1, as listed for PUT, COPY, POST and LIST.
        dollars_per_1000_reads: The same, as listed for GET and all other requests.
        dollars_per_gb_month: The same, as listed for the first 50 TB.
        redis_gb: Memory of the largest Redis that one would like to run in one piece.
        redis_processors: What one Redis can use: its commands run on one.
        postgres_processors: Those that one PostgreSQL may keep busy all night.
        postgres_gb: The size up to which one PostgreSQL is still backed up and restored in hours.
        postgres_log_mb: Megabytes a second that it may write to its log, and send to a replica.
        postgres_connections: Connections to one PostgreSQL, without a pooler before it.
        fences: Computations a second that can be numbered: each changes the one row of the sequence, durably.
        store_reads: Requests a second that S3 promises for one prefix, reading.
        store_writes: The same, writing.
        busy_share: Share of a night's processor time that is used: work is never spread evenly.
    """

    hours: float = 8.0
    hit_share: float = 0.97
    days: Mapping[str, float] = field(default_factory=lambda: dict(zip(KINDS, (30.0, 7.0, 7.0), strict=True)))
    event_days: float = 30.0
    sound_seconds: float = 60.0
    sound_bytes: float = 32_000.0
    dollars_per_1000_writes: float = 0.005
    dollars_per_1000_reads: float = 0.0004
    dollars_per_gb_month: float = 0.023
    redis_gb: float = 64.0
    redis_processors: float = 1.0
    postgres_processors: float = 16.0
    postgres_gb: float = 2_000.0
    postgres_log_mb: float = 100.0
    postgres_connections: float = 500.0
    fences: float = 1_000.0
    store_reads: float = 5_500.0
    store_writes: float = 3_500.0
    busy_share: float = 0.7


@dataclass(frozen=True)
class Needs:
    """What a night of so many files needs; processors are those of the machine that measured, all night long."""

    files: int
    lookups: float
    lookups_per_second: float
    computations: float
    events: float
    worker_processors: float
    worker_gb: float
    redis_processors: float
    redis_entries: float
    redis_gb: float
    postgres_processors: float
    postgres_entries: float
    postgres_entry_gb: float
    postgres_events: float
    postgres_event_gb: float
    postgres_log_mb: float
    postgres_connections: float
    vacuum_hours: float
    store_reads: float
    store_writes: float
    store_dollars: float
    store_gb: float
    store_dollars_per_month: float

    @property
    def postgres_gb(self) -> float:
        """Entries and events."""
        return self.postgres_entry_gb + self.postgres_event_gb


@dataclass(frozen=True)
class Limit:
    """Something that a night fills: how much of it is used, 1 being all, and the way out when that is too much."""

    name: str
    needed: float
    there: float
    unit: str
    way_out: str

    @property
    def used(self) -> float:
        """The share that is used."""
        return self.needed / self.there


def needs(files: int, figures: Figures, assumed: Assumptions) -> Needs:
    """Return what a night of so many files needs.

    Every night asks for as many files; those that are new take the places of as many that do not come back, whose
    entries stay until they expire.
    """
    missed = 1 - assumed.hit_share
    lookups, computations = files * STAGES, files * STAGES * missed
    seconds = assumed.hours * _HOUR
    kept = {kind: files * (1 + missed * assumed.days[kind]) for kind in KINDS}
    events = lookups + computations  # a lookup each, and what was computed
    worker = _per_file(figures.page_ms, figures.miss_ms, missed) * files / 1000 / seconds / assumed.busy_share
    reads, writes = (
        files * _per_file(_part(figures.page_requests, way), _part(figures.miss_requests, way), missed)
        for way in (0, 1)
    )
    sound = kept["audio-preprocessing"] * assumed.sound_seconds * assumed.sound_bytes
    stored = (sound + kept["transcript"] * figures.object_bytes) / 1e9
    copies = files * (STAGES + 1) * figures.generation_bytes  # of each key and of the recording's tag
    return Needs(
        files=files,
        lookups=lookups,
        lookups_per_second=lookups / seconds,
        computations=computations,
        events=events,
        worker_processors=worker,
        worker_gb=max(worker, 1) * figures.worker_bytes / 1e9,
        redis_processors=lookups * figures.redis_ms / 1000 / seconds,
        redis_entries=sum(kept.values()),
        redis_gb=(sum(kept[kind] * figures.redis_bytes[kind] for kind in KINDS) + copies) / 1e9,
        postgres_processors=lookups * figures.postgres_ms / 1000 / seconds,
        postgres_entries=sum(kept.values()),
        postgres_entry_gb=sum(kept[kind] * figures.entry_bytes[kind] for kind in KINDS) / 1e9,
        postgres_events=events * assumed.event_days,
        postgres_event_gb=events * assumed.event_days * figures.event_bytes / 1e9,
        postgres_log_mb=lookups * figures.wal_bytes / 1e6 / seconds,
        postgres_connections=max(worker, 1) * figures.connections,
        vacuum_hours=events * assumed.event_days * figures.vacuum_us / 1e6 / _HOUR,
        store_reads=reads,
        store_writes=writes,
        store_dollars=reads / _PIECE * assumed.dollars_per_1000_reads
        + writes / _PIECE * assumed.dollars_per_1000_writes,
        store_gb=stored,
        store_dollars_per_month=stored * assumed.dollars_per_gb_month,
    )


def limits(needed: Needs, assumed: Assumptions) -> list[Limit]:
    """Return what a night fills, what is fullest first."""
    seconds = assumed.hours * _HOUR
    pooler = "pgbouncer in transaction mode"
    shards = "a Redis Cluster, or several Redis"
    found = [
        Limit(
            "memory of one Redis", needed.redis_gb, assumed.redis_gb, "GB", f"{shards}; or let it evict, SQL has all"
        ),
        Limit("processor of one Redis", needed.redis_processors, assumed.redis_processors, "processors", shards),
        Limit(
            "processors of PostgreSQL",
            needed.postgres_processors,
            assumed.postgres_processors,
            "processors",
            "a PostgreSQL for each namespace, recordings being divided among namespaces",
        ),
        Limit("size of PostgreSQL", needed.postgres_gb, assumed.postgres_gb, "GB", "fewer `CACHE_BLOCKS_EVENT_DAYS`"),
        Limit(
            "log of PostgreSQL",
            needed.postgres_log_mb,
            assumed.postgres_log_mb,
            "MB/s",
            "a disk of its own for the log, then namespaces with a PostgreSQL each",
        ),
        Limit("connections", needed.postgres_connections, assumed.postgres_connections, "connections", pooler),
        Limit(
            "the sequence that numbers computations",
            needed.computations / seconds,
            assumed.fences,
            "a second",
            "namespaces, each of which has a sequence of its own",
        ),
        Limit(
            "S3, reading", needed.store_reads / seconds, assumed.store_reads, "a second", "S3 divides prefixes itself"
        ),
        Limit(
            "S3, writing", needed.store_writes / seconds, assumed.store_writes, "a second", "S3 divides prefixes itself"
        ),
    ]
    return sorted(found, key=lambda limit: -limit.used)


def files_until(limit: Limit, files: int) -> float:
    """Return at how many files a limit is reached, since all grow as the files do."""
    return files / limit.used if limit.used else float("inf")


def _per_file(hits: Mapping[str, float], misses: Mapping[str, float], missed: float) -> float:
    """Return what a file costs: each stage is looked up, and of some the result is missed."""
    return sum(hits[kind] + missed * misses[kind] for kind in KINDS)


def _part(requests: Mapping[str, tuple[float, float]], way: int) -> dict[str, float]:
    return {kind: requests[kind][way] for kind in KINDS}
