"""What a lookup costs and what an entry takes, as a simulation has measured it: all that the model knows of reality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from benchmarks.simulation.night import KINDS
from benchmarks.simulation.results import Simulation

_WRITING: Final = ("PutObject", "CopyObject", "ListObjectsV2", "CreateMultipartUpload", "UploadPart")
"""What S3's price lists charge as they do for writing; the rest is charged as reading, deleting is free."""


@dataclass(frozen=True)
class Figures:
    """Measured: what a lookup costs and what an entry takes.

    Attributes:
        page_ms: Milliseconds of a worker's processor time for a key of a page, by kind, in the simulated mix.
        miss_ms: The same for what a miss adds, by kind: looking again, a lease, storing.
        redis_ms: Milliseconds of Redis' processor time for a key.
        postgres_ms: The same of PostgreSQL.
        page_requests: Requests to the object store for a key of a page, by kind, ``(reading, writing)``.
        miss_requests: The same for what a miss adds.
        redis_bytes: Bytes in Redis for an entry, by kind.
        generation_bytes: Bytes in Redis for the copy of a generation.
        entry_bytes: Bytes in PostgreSQL for an entry with its indexes and tags, by kind.
        event_bytes: Bytes in PostgreSQL for an event with its indexes.
        wal_bytes: Bytes of PostgreSQL's log for a key.
        object_bytes: Bytes in the object store for the replica of a transcript.
        vacuum_us: Microseconds that vacuuming takes for an event.
        connections: Connections to PostgreSQL for a process that looks up.
        worker_bytes: Memory of a process that looks up, without Prefect.
        keys_per_second: Keys that were looked up a second, by all processes on all processors of the machine.
        processors: How many those were.
    """

    page_ms: Mapping[str, float]
    miss_ms: Mapping[str, float]
    redis_ms: float
    postgres_ms: float
    page_requests: Mapping[str, tuple[float, float]]
    miss_requests: Mapping[str, tuple[float, float]]
    redis_bytes: Mapping[str, float]
    generation_bytes: float
    entry_bytes: Mapping[str, float]
    event_bytes: float
    wal_bytes: float
    object_bytes: float
    vacuum_us: float
    connections: float
    worker_bytes: float
    keys_per_second: float
    processors: int

    @classmethod
    def of(cls, done: Simulation) -> Figures:
        """Return the figures of a simulation."""
        asked, tables = done.phases["ask"], done.sizes.tables
        entry, event = tables["cache_blocks_entry"], tables["cache_blocks_event"]
        aside = sum(tables[f"cache_blocks_{name}"].total_bytes for name in ("tag", "blob"))
        columns = sum(
            done.sizes.column_bytes[kind] * share for kind, share in zip(KINDS, done.shape.kinds, strict=True)
        )
        rest = sum(entry.indexes.values()) + aside  # which takes the same whatever the entry
        filled = entry.bytes / entry.rows / columns  # rows have headers, and pages are not full
        return cls(
            page_ms={kind: done.processor_ms[f"page of {kind}"] for kind in KINDS},
            miss_ms={kind: done.processor_ms[f"miss of {kind}"] + done.processor_ms[f"store {kind}"] for kind in KINDS},
            redis_ms=1000 * asked.processor_seconds["redis"] / asked.keys,
            postgres_ms=1000 * asked.processor_seconds["postgres"] / asked.keys,
            page_requests={kind: _requests(done, f"page of {kind}") for kind in KINDS},
            miss_requests={kind: _requests(done, f"miss of {kind}", f"store {kind}") for kind in KINDS},
            redis_bytes={kind: done.sizes.redis[f"entry {kind}"] for kind in KINDS},
            generation_bytes=done.sizes.redis["generation key"],
            entry_bytes={kind: done.sizes.column_bytes[kind] * filled + rest / entry.rows for kind in KINDS},
            event_bytes=event.total_bytes / event.rows,
            wal_bytes=asked.wal_bytes / asked.keys,
            object_bytes=done.sizes.object_bytes["entries"] / done.sizes.objects["entries"],
            vacuum_us=1e6 * event.vacuum_seconds / event.rows,
            connections=done.connections / done.shape.processes,
            worker_bytes=done.memory["worker"],
            keys_per_second=asked.keys / asked.seconds,
            processors=done.machine.cpus,
        )


def _requests(done: Simulation, *operations: str) -> tuple[float, float]:
    """Return the reading and the writing requests of operations, for each key."""
    reading, writing = 0.0, 0.0
    for operation in operations:
        for request, count in done.requests[operation].items():
            if request in _WRITING:
                writing += count
            elif not request.startswith(("bytes", "Delete")):
                reading += count
    return reading, writing
