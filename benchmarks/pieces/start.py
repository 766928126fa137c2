"""Starting: the command line's answer to ``--version``, and what decorating tasks touches.

The time is that of whole processes, beside an interpreter that does nothing. What decorating touches is what Python's
audit events say while a module of 100 tasks is executed, after the libraries are imported. Prefect reads the module's
source when it makes a task, once a module; the same module with plain `prefect.task` shows what of it is Prefect's.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import orjson

from benchmarks.measuring import Bar, Bench, interleaved, milliseconds

ORDER: Final = 9

_ROOT: Final = Path(__file__).parents[2]
_TASKS: Final = 100
_WATCH: Final = """
import sys
from time import perf_counter

import orjson
from prefect import task

from cache_blocks import TRANSCRIPT, cached_task

FILES = ("open", "os.listdir", "os.scandir")
CONNECTIONS = ("socket.connect", "socket.getaddrinfo", "sqlite3.connect")
files, connections = [], []


def watch(event, arguments):
    if event in FILES:
        files.append(str(arguments[0]))
    elif event in CONNECTIONS:
        connections.append(event)


sys.addaudithook(watch)
began = perf_counter()
"""
_TASK: Final = """
@{decorator}
def stage_{number}(text: str) -> str:
    return text + "{number}"
"""
_SAY: Final = """
milliseconds = (perf_counter() - began) * 1000
said = {"files": [*files], "connections": [*connections], "milliseconds": milliseconds}
sys.stdout.buffer.write(orjson.dumps(said))
"""


def measure(bench: Bench) -> list[Bar]:
    """Return the time of ``--version``, and what decorating touches."""
    bench.note("starting cache-blocks --version and an empty interpreter in turns")
    program = Path(sys.executable).with_name("cache-blocks")
    contestants = {
        "cache-blocks --version": partial(_run, str(program), "--version"),
        "python -c pass": partial(_run, sys.executable, "-c", "pass"),
    }
    timings = interleaved(contestants, bench.rounds(40))
    ours, empty = timings.values()
    over = [(a - b) * 1000 for a, b in zip(ours.samples, empty.samples, strict=True)]
    detail = {"milliseconds": milliseconds(timings), "rounds": len(over)}
    return [
        Bar("cache-blocks --version, over an empty interpreter", statistics.median(over), 200, "lower", "ms", detail),
        *_decorating(bench),
    ]


def _decorating(bench: Bench) -> list[Bar]:
    bench.note(f"decorating {_TASKS} tasks")
    ours, prefect = (
        decorated(bench.folder / "decorated.py", each) for each in ("cached_task(kind=TRANSCRIPT)", "task")
    )
    detail = {
        "files": {"ours": len(ours.files), "Prefect": len(prefect.files)},
        "milliseconds": {"ours": ours.milliseconds, "Prefect": prefect.milliseconds},
        "note": "Prefect reads the source of the module that the tasks are in, once.",
    }
    more = len(ours.files) - len(prefect.files)
    return [
        Bar(f"files read for decorating {_TASKS} tasks, beyond Prefect's own", more, 0, "lower", "files", detail),
        Bar(f"connections opened for decorating {_TASKS} tasks", len(ours.connections), 0, "lower", "connections"),
    ]


@dataclass(frozen=True)
class Decorated:
    """What decorating touched: paths of files and folders, kinds of connections; and how long it took."""

    files: list[str]
    connections: list[str]
    milliseconds: float


def decorated(module: Path, decorator: str) -> Decorated:
    """Write a module of tasks, execute it in a process of its own, and return what that touched.

    Args:
        module: File to write it to.
        decorator: How the tasks are made, in words of the module: ``task``, or a call of ``cached_task``.
    """
    tasks = (_TASK.format(decorator=decorator, number=number) for number in range(_TASKS))
    module.write_text("".join([_WATCH, *tasks, _SAY]))
    return Decorated(**orjson.loads(_run(sys.executable, str(module))))


def _run(*command: str) -> bytes:
    return subprocess.run(command, cwd=_ROOT, check=True, capture_output=True).stdout
