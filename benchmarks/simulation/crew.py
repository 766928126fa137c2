"""The processes of a simulation: each does its part of a phase when it is told to, and answers with what came of it."""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final, Self, cast

import psutil

from benchmarks.simulation.asking import Answers, Asker
from benchmarks.simulation.counting_s3 import s3_requests
from benchmarks.simulation.night import Night, Shape, Step
from benchmarks.simulation.planting import plant
from benchmarks.simulation.work import Work
from cache_blocks import CacheSettings, TieredCache

_TELL_SECONDS: Final = 0.5
_STOP_SECONDS: Final = 20.0


class ProcessFailedError(RuntimeError):
    """A process could not do its part; the message says why."""


@dataclass(frozen=True)
class Part:
    """What a process needs to know.

    Attributes:
        process: Its number.
        shape: The night.
        settings: The tiers.
        store_folder: The S3 server's own folder.
        folder: Where computations put files.
        now: When the entries were computed.
    """

    process: int
    shape: Shape
    settings: CacheSettings
    store_folder: Path
    folder: Path
    now: float


@dataclass(frozen=True)
class Done:
    """What a process says of a phase.

    Attributes:
        processor_seconds: Processor time that it took here.
        requests: Requests to the object store.
        answers: What it was answered, if it has asked.
    """

    processor_seconds: float
    requests: Counter[str]
    answers: Answers | None = None


class Crew:
    """Processes that are started once and work side by side; they end with this one, whatever happens.

    Args:
        parts: What each has to know.
    """

    def __init__(self, parts: list[Part]) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._processes: list[Any] = []
        for part in parts:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(part, theirs), daemon=True)
            process.start()
            theirs.close()  # so that a process that dies is noticed
            self._ends.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(0.1)
            process.terminate()
            process.join(_STOP_SECONDS)

    @property
    def processes(self) -> list[psutil.Process]:
        """The processes, to be watched."""
        return [psutil.Process(process.pid) for process in self._processes]

    def do(self, phase: str, tell: Callable[[int], object] = lambda _: None) -> list[Done]:
        """Let all do their part of a phase; return what each says.

        Args:
            phase: ``plant``, ``ask`` or ``again``.
            tell: Takes how many keys were done since it was told last, by any of them.

        Raises:
            ProcessFailedError: One has failed or died.
        """
        for end in self._ends:
            end.send(phase)
        done: dict[int, Done] = {}
        while len(done) < len(self._ends):
            for ready in wait([end for number, end in enumerate(self._ends) if number not in done]):
                number = self._ends.index(cast("Connection", ready))
                match self._told_by(number):
                    case Done() as one:
                        done[number] = one
                    case int(count):
                        tell(count)
                    case other:
                        raise ProcessFailedError(f"process {number} failed in phase {phase!r}:\n{other}")
        return [done[number] for number in sorted(done)]

    def _told_by(self, number: int) -> Any:
        try:
            return self._ends[number].recv()
        except EOFError:
            self._processes[number].join(_STOP_SECONDS)
            return f"it has ended with code {self._processes[number].exitcode}"


class _Worker:
    """What one of the processes does."""

    def __init__(self, part: Part, end: Connection) -> None:
        self._part = part
        self._end = end
        self._cache = TieredCache(part.settings)
        self._told = time.monotonic()
        self._untold = 0

    @cached_property
    def _night(self) -> Night:
        return Night(self._part.shape)

    @cached_property
    def _made(self) -> Work:
        return Work(self._night, self._part.settings.namespace, self._part.now)

    def do(self, phase: str) -> Done:
        """Do this process's part of a phase."""
        process = self._part.process
        began = time.process_time()
        with s3_requests() as requests:
            match phase:
                case "plant":
                    numbers = self._night.of_process(process)
                    plant(self._cache, self._night, self._made, numbers, self._part.store_folder, self._tell)
                    answers = None
                case "ask":
                    answers = self._ask(self._night.steps(process), requests, again=False)
                case "again":
                    answers = self._ask(self._night.steps_again(process), requests, again=True)
                case _:
                    raise ValueError(f"there is no phase {phase!r}")
        self._end.send(self._untold)
        self._untold = 0
        return Done(time.process_time() - began, requests, answers)

    def close(self) -> None:
        self._cache.close()

    def _ask(self, steps: list[Step], sent: Counter[str], *, again: bool) -> Answers:
        asker = Asker(self._cache, self._night, self._made, self._part.folder, sent, again=again)
        return asker.ask(steps, self._tell)

    def _tell(self, count: int) -> None:
        """Say how far this process is, but not with every key."""
        self._untold += count
        if time.monotonic() - self._told > _TELL_SECONDS:
            self._end.send(self._untold)
            self._told, self._untold = time.monotonic(), 0


def _work(part: Part, end: Connection) -> None:
    """Do what the other end says until it goes away. Ctrl-C is for that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = _Worker(part, end)
    try:
        while True:
            end.send(worker.do(end.recv()))
    except (EOFError, BrokenPipeError):
        pass
    except Exception:  # noqa: BLE001 - it is told, and raised there
        end.send(traceback.format_exc())
    finally:
        worker.close()
