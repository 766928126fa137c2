"""What commands say and ask: tables for people, JSON for programs, progress only where somebody looks."""

from __future__ import annotations

import importlib
import re
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from cache_blocks.cache import TieredCache

Json = Annotated[bool, typer.Option("--json", help="Write JSON for programs.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing; tell what would be done.")]

_CELL_LETTERS: Final = 300
_WIDE: Final = 400
"""Columns where nobody looks, so that what is written into a file or a pipe is not folded."""
_SECONDS: Final = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_BYTES: Final = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4}
_AMOUNT: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def this_cache() -> TieredCache:
    """Return the cache that the environment names."""
    from cache_blocks.cache import TieredCache

    cache = TieredCache.from_settings()
    if cache.settings.private_keys_block:
        importlib.import_module("cache_blocks.prefect")  # which can read it
    return cache


def complain(message: str) -> None:
    """Tell an error in one line."""
    typer.echo(f"cache-blocks: {' '.join(message.split())}", err=True)


def emit(data: Any) -> None:
    """Write JSON."""
    import orjson

    sys.stdout.write(orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode() + "\n")


def console(*, error: bool = False) -> Console:
    """Return what to print on; cells are printed as they are, without markup."""
    from rich.console import Console

    looked_at = (sys.stderr if error else sys.stdout).isatty()
    return Console(stderr=error, markup=False, highlight=False, width=None if looked_at else _WIDE)


def say(*lines: str) -> None:
    """Print lines for people."""
    for line in lines:
        typer.echo(line)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, numbers: Sequence[str] = ()) -> None:
    """Print a table; cells are cleared of control characters, which a file name or a tag may hold.

    Args:
        columns: Headings.
        rows: Cells.
        numbers: Headings of columns that are aligned right.
    """
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    from cache_blocks.wording import printable

    drawn = Table(box=SIMPLE, pad_edge=False)
    for column in columns:
        drawn.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(printable(str(cell), _CELL_LETTERS)) for cell in row))
    console().print(drawn)


@contextmanager
def progress(*, quiet: bool) -> Generator[Callable[[str, int], None]]:
    """Give a function that shows what is being done and how far; it shows nothing unless a person looks.

    Args:
        quiet: Show nothing in any case.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    shown_on = console(error=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f}"), TimeElapsedColumn())
    with Progress(*columns, console=shown_on, transient=True, disable=quiet or not shown_on.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=None)
            bar.advance(tasks[what], done)

        yield advance


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is deleted; anything but yes ends the command with exit code 1."""
    if not yes:
        typer.confirm(question, abort=True, err=True)


def moment(at: float | None) -> str:
    """Return a time of this machine's zone for people."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at)) if at is not None else "–"  # noqa: RUF001


def seconds(text: str) -> float:
    """Return the seconds of ``90s``, ``15min``, ``12h``, ``7d`` or ``2w``."""
    return _amount(text, _SECONDS, "a number with s, min, h, d or w, such as 7d")


def size(text: str) -> int:
    """Return the bytes of ``500kB``, ``10MB`` or ``2GB``; without a unit they are bytes."""
    return int(_amount(text, _BYTES, "a number with B, kB, MB, GB or TB, such as 10MB"))


def _amount(text: str, units: dict[str, int], expected: str) -> float:
    found = _AMOUNT.fullmatch(text)
    if found is None or (unit := found[2].lower()) not in units:
        raise typer.BadParameter(f"{text!r} is not {expected}")
    return float(found[1]) * units[unit]
