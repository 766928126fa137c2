"""What servers and processes take while a simulation runs: processor time, memory, connections, waits."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import psutil
import sqlalchemy as sa

if TYPE_CHECKING:
    from benchmarks.simulation.servers import Servers

_LOOK_SECONDS: Final = 1.0
_WAITS: Final = sa.text(
    "SELECT coalesce(wait_event_type || ' ' || wait_event, 'runs') AS what, count(*) AS backends FROM pg_stat_activity "
    "WHERE backend_type = 'client backend' AND state = 'active' AND pid <> pg_backend_pid() GROUP BY 1"
)
_CONNECTIONS: Final = sa.text(
    "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
)


@dataclass
class Seen:
    """What was seen, looking once a second.

    Attributes:
        peak_bytes: The most memory that each took at once, shared memory counted once; ``workers`` is all processes'
            and ``worker`` that of the largest one.
        connections: The most connections to PostgreSQL at once.
        waits: What PostgreSQL's busy backends waited for, as often as they were seen to; ``runs`` for nothing.
        looks: How often was looked.
    """

    peak_bytes: dict[str, int] = field(default_factory=dict[str, int])
    connections: int = 0
    waits: Counter[str] = field(default_factory=Counter[str])
    looks: int = 0

    def most(self, name: str, count: int) -> None:
        """Keep the larger amount."""
        self.peak_bytes[name] = max(self.peak_bytes.get(name, 0), count)


class Watch:
    """Looks at servers and processes from time to time.

    Args:
        servers: The servers.
        workers: The processes that ask them.
    """

    def __init__(self, servers: Servers, workers: Sequence[psutil.Process]) -> None:
        self._servers = servers
        self._workers = workers
        self.seen = Seen()

    @contextmanager
    def watching(self) -> Generator[None]:
        """Look once a second while a block of code runs."""
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=[over], name="watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def processor_seconds(self) -> dict[str, float]:
        """Return the processor time that each server has taken since it began."""
        return {name: sum(_processor(process)) for name, process in self._servers.processes.items()}

    def _watch(self, over: threading.Event) -> None:
        with self._servers.engine.connect() as connection:
            while True:
                self._look(connection)
                if over.wait(_LOOK_SECONDS):
                    return

    def _look(self, connection: sa.Connection) -> None:
        self.seen.looks += 1
        for name, process in self._servers.processes.items():
            self.seen.most(name, sum(_memory([process, *process.children()])))
        of_workers = list(_memory(self._workers))
        self.seen.most("worker", max(of_workers, default=0))
        self.seen.most("workers", sum(of_workers))
        self.seen.connections = max(self.seen.connections, int(connection.execute(_CONNECTIONS).scalar_one()))
        self.seen.waits.update({str(row[0]): int(row[1]) for row in connection.execute(_WAITS)})


def grown(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """Return by how much each figure has grown."""
    return {name: after[name] - before.get(name, 0.0) for name in after}


def _processor(process: psutil.Process) -> Iterator[float]:
    """Yield the processor seconds of a process, of its children, and of those that have ended."""
    times = process.cpu_times()
    yield times.user + times.system + times.children_user + times.children_system
    for child in process.children():
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue  # it is among those that have ended
        yield times.user + times.system


def _memory(processes: Sequence[psutil.Process]) -> Iterator[int]:
    """Yield the memory of each process; of what it shares, its part."""
    for process in processes:
        try:
            yield int(process.memory_full_info().pss)
        except psutil.NoSuchProcess:
            continue
