"""`simulation.json`: what a simulated night gave, when and where."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict

from benchmarks.results import Machine
from benchmarks.simulation.night import Shape

FILE: Final = Path(__file__).parents[1] / "simulation.json"


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Latency(_Kept):
    """How long an operation took: how often it was done, and milliseconds by share of the operations."""

    count: int
    p50: float
    p95: float
    p99: float
    p999: float
    max: float

    @classmethod
    def of(cls, seconds: ArrayLike) -> Latency:
        """Return that of single times in seconds."""
        times = np.asarray(seconds, dtype=np.float64) * 1000
        p50, p95, p99, p999 = (rounded(float(each)) for each in np.percentile(times, (50, 95, 99, 99.9)))
        return cls(count=times.size, p50=p50, p95=p95, p99=p99, p999=p999, max=rounded(float(times.max())))


class Phase(_Kept):
    """One phase: planting, asking, or asking for some once more.

    Attributes:
        keys: Keys that it was about.
        seconds: How long it took.
        processor_seconds: Processor time of ``workers`` (together), ``redis``, ``postgres`` and ``s3``.
        wal_bytes: What PostgreSQL wrote to its log.
        requests: Requests to the object store by operation, and bytes.
    """

    keys: int
    seconds: float
    processor_seconds: dict[str, float]
    wal_bytes: int
    requests: dict[str, int]


class Table(_Kept):
    """A table in PostgreSQL after the night: rows, bytes of its rows with what is stored aside, and of its indexes."""

    rows: int
    bytes: int
    indexes: dict[str, int]
    vacuum_seconds: float
    dead_rows: int

    @property
    def total_bytes(self) -> int:
        """Rows and indexes."""
        return self.bytes + sum(self.indexes.values())


class Sizes(_Kept):
    """What is stored where after the night.

    Attributes:
        redis: Bytes that Redis uses for a key, in the mean of a sample, by what it is.
        redis_bytes: Bytes that Redis uses in all.
        redis_keys: Keys in Redis.
        tables: PostgreSQL's tables by name.
        objects: Objects in the store: ``entries`` and ``blobs``.
        object_bytes: Their bytes.
        column_bytes: Bytes of an entry's columns in PostgreSQL, in the mean, by kind.
        payload_bytes: Bytes of an entry's payload as stored, in the mean of what SQL has, by kind.
    """

    redis: dict[str, float]
    redis_bytes: int
    redis_keys: int
    tables: dict[str, Table]
    objects: dict[str, int]
    object_bytes: dict[str, int]
    column_bytes: dict[str, float]
    payload_bytes: dict[str, float]


class Simulation(_Kept):
    """What a simulated night gave.

    Attributes:
        date: Day of the run.
        machine: Where it ran.
        versions: Of the package, of what it is built on and of the servers.
        busy: How many processes wanted a processor, in the mean of the five minutes before: 0 on a quiet machine.
        note: What else has to be known of the circumstances.
        shape: What was asked for.
        phases: ``plant``, ``ask`` and ``again``.
        found: Keys by the tier that answered, and ``miss``.
        found_again: The same of those that were asked for once more.
        latency: By operation.
        processor_ms: Milliseconds of a worker's processor time for a key, by operation.
        requests: Requests to the object store, and bytes, for a key, by operation.
        memory: The most bytes at once, of each server, of all ``workers`` and of the largest ``worker``.
        connections: The most connections to PostgreSQL at once.
        waits: What its busy backends waited for, in per cent of those seen.
        deadlocks: Deadlocks that PostgreSQL has seen.
        sizes: What is stored where.
        events: Events recorded, by action and outcome.
        problems: What should not have happened, and how often.
    """

    date: dt.date
    machine: Machine
    versions: dict[str, str]
    busy: float
    note: str = ""
    shape: Shape
    phases: dict[str, Phase]
    found: dict[str, int]
    found_again: dict[str, int]
    latency: dict[str, Latency]
    processor_ms: dict[str, float]
    requests: dict[str, dict[str, float]]
    memory: dict[str, int]
    connections: int
    waits: dict[str, float]
    deadlocks: int
    sizes: Sizes
    events: dict[str, int]
    problems: dict[str, int]

    @classmethod
    def load(cls, path: Path = FILE) -> Simulation:
        """Return what was measured last."""
        return cls.model_validate_json(path.read_bytes())

    def save(self, path: Path = FILE) -> None:
        """Write the file whole, which `load` reads."""
        partial = path.with_suffix(".partial")
        partial.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        partial.replace(path)


def rounded(value: float) -> float:
    """Return a figure with no more digits than mean something."""
    return float(f"{value:.4g}")
