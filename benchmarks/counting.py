"""What a piece of work asks for: Redis commands, SQL statements, files, decodings."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast
from unittest.mock import patch

import orjson
from redis import Redis
from sqlalchemy import Engine, event

if TYPE_CHECKING:
    from pathlib import Path


@contextmanager
def redis_commands(redis_url: str) -> Generator[Counter[str]]:
    """Give a counter that in the end holds how often Redis executed each command, as Redis itself counts."""
    counted: Counter[str] = Counter()
    with Redis.from_url(redis_url) as client:
        client.config_resetstat()
        yield counted
        answer = cast("dict[str, dict[str, int]]", client.info("commandstats"))
    calls = {name.removeprefix("cmdstat_"): figures["calls"] for name, figures in answer.items()}
    counted.update({name: times for name, times in calls.items() if not name.startswith(_ASKING)})


# What asking for the figures itself adds, or connecting.
_ASKING: Final = ("config", "info", "client", "hello", "auth", "select")


@contextmanager
def sql_statements() -> Generator[list[str]]:
    """Give a list that takes every SQL statement of this process, whichever database it goes to."""
    statements: list[str] = []

    def note(*given: Any) -> None:
        statements.append(given[2])

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@contextmanager
def files_opened(*folders: Path) -> Generator[dict[Path, int]]:
    """Give a dictionary that takes how often this process opens files under each of the folders."""
    opened = dict.fromkeys(folders, 0)
    _watchers.append(opened)
    if not _hooked:  # an audit hook stays for good
        _hooked.append(True)
        sys.addaudithook(_audit)
    try:
        yield opened
    finally:
        _watchers.remove(opened)


def payloads_decoded(work: Callable[[], object], size: int) -> int:
    """Return how often ``work`` parses JSON of ``size`` bytes or more."""
    loads = orjson.loads
    decoded: list[int] = []

    def counting(data: bytes) -> Any:
        decoded.append(len(data))
        return loads(data)

    with patch.object(orjson, "loads", counting):
        work()
    return sum(length >= size for length in decoded)


_watchers: list[dict[Path, int]] = []
_hooked: list[bool] = []


def _audit(name: str, arguments: tuple[Any, ...]) -> None:
    if name != "open" or not _watchers or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    path = os.fsdecode(cast("str", arguments[0]))
    for opened in _watchers:
        for folder in opened:
            opened[folder] += path.startswith(f"{folder}{os.sep}")
