"""Settings for ours while a piece runs: the way users give them, in the environment."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from prefect.logging.handlers import PrefectConsoleHandler

from cache_blocks import TieredCache
from cache_blocks.prefect.emitting import flush_emitters

if TYPE_CHECKING:
    from benchmarks.measuring import Bench


@contextmanager
def cache_in_environment(bench: Bench, name: str) -> Generator[TieredCache]:
    """Give this process a new cache over the bench's Redis, SQLite and a folder, apart from other pieces' by ``name``.

    It is what `TieredCache.from_settings` returns meanwhile, also in child processes.
    """
    ours = {"HOME": str(bench.folder / name), "REDIS_URL": bench.redis_url, "NAMESPACE": name}
    with environment({f"CACHE_BLOCKS_{key}": value for key, value in ours.items()}):
        cache = TieredCache.from_settings()
        try:
            yield cache
        finally:
            cache.close()
            flush_emitters()  # while the piece's Prefect server can still take what its hits have to tell


@contextmanager
def environment(variables: dict[str, str]) -> Generator[None]:
    """Set environment variables, and put back what was there."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def without_log_lines() -> Generator[None]:
    """Leave out what tasks and flows say about each call, for contestants of which only one would say something."""
    loggers = [logging.getLogger(name) for name in ("prefect", "prefect.cache_blocks", "prefect.task_runs")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextmanager
def console_to_nowhere() -> Generator[None]:
    """Let Prefect write what it writes to the console to nowhere: at its usual cost, without thousands of lines."""
    emit = PrefectConsoleHandler.emit
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:

        def emit_to_nowhere(handler: PrefectConsoleHandler, record: logging.LogRecord) -> None:
            handler.console.file = nowhere
            emit(handler, record)
            handler.console.file = handler.stream

        with patch.object(PrefectConsoleHandler, "emit", emit_to_nowhere):
            yield
