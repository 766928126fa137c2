"""Run the benchmarks: ``python -m benchmarks [PIECE…]``, or ``make bench``."""

from __future__ import annotations

import datetime as dt
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import rendering
from benchmarks.measuring import Bench
from benchmarks.results import Figure, Machine, Measured, Results, versions

if TYPE_CHECKING:
    from benchmarks.pieces import Piece

_LEAST_WIDTH = 130
_progress = Console(stderr=True, highlight=False)


def main(
    chosen: Annotated[list[str] | None, typer.Argument(metavar="[PIECE]…", help="Pieces; all by default.")] = None,
    *,
    scale: Annotated[
        float, typer.Option(min=0.0001, help="Factor on all rounds and sizes. Only at 1 are the figures kept.")
    ] = 1.0,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    show: Annotated[bool, typer.Option("--list", help="List the pieces.")] = False,
) -> None:
    """Measure ours against its peers; write benchmarks/results.json and docs/performance.md.

    Exit code 1: a piece could not be measured. Bars that are not reached are shown as such.
    """
    with ExitStack() as stack:
        _apart_from_this_machine(stack)
        pieces = _select(chosen or [])
        if show:
            for piece in pieces:
                print(f"{piece.order}  {piece.name:14} {piece.title}")
            return
        measured, failed = _measure(pieces, scale)
    new = Results(pieces=measured)
    if json:
        print(new.model_dump_json(indent=2))
    else:
        Console(width=max(Console().width, _LEAST_WIDTH)).print(_table(new))
    if failed:
        _progress.print(f"could not be measured: {', '.join(failed)}")
        sys.exit(1)


def _select(chosen: Sequence[str]) -> list[Piece]:
    from benchmarks.pieces import names, pieces

    known = names()
    if unknown := set(chosen) - set(known):
        raise typer.BadParameter(f"there is no piece {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return pieces(chosen or known)


def _measure(pieces: Sequence[Piece], scale: float) -> tuple[dict[str, Measured], list[str]]:
    """Run the pieces one after another; one that fails says why and does not stop the others."""
    measured: dict[str, Measured] = {}
    failed: list[str] = []
    with Bench(scale, tell=lambda text: _progress.print(f"  {text}")) as bench:
        for piece in pieces:
            _progress.print(f"{piece.order} {piece.name}: {piece.title}")
            began = time.monotonic()
            try:
                bars = [Figure.of(bar) for bar in piece.measure(bench)]
            except Exception:  # noqa: BLE001 - whatever it is, the other pieces can still be measured
                traceback.print_exc()
                failed.append(piece.name)
                continue
            measured[piece.name] = Measured(
                order=piece.order,
                about=piece.about,
                date=dt.datetime.now(dt.UTC).date(),
                seconds=round(time.monotonic() - began, 1),
                machine=Machine.here(),
                versions=versions(),
                bars=bars,
            )
            if scale == 1.0:
                _keep(piece.name, measured[piece.name])
    return measured, failed


def _keep(name: str, measured: Measured) -> None:
    """Write the figures of a piece as soon as it has been measured, beside what others gave earlier."""
    results = Results.load()
    results.pieces[name] = measured
    results.save()
    rendering.write(results)


def _table(results: Results) -> Table:
    table = Table("bar", "what", title="Ours against its peers")
    for heading in ("figure", "quartiles", "bar"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("reached")
    for _, measured in results.in_order():
        for figure in measured.bars:
            table.add_row(
                str(measured.order),
                figure.name,
                rendering.amount(figure.figure, figure.unit),
                rendering.spread(figure),
                rendering.bar_in_words(figure),
                "yes" if figure.met else "[bold red]no",
            )
        table.add_section()
    return table


def _apart_from_this_machine(stack: ExitStack) -> None:
    """Take no setting and no server of whoever starts us; Prefect reads these when it is imported."""
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "CACHE_BLOCKS_"))]:
        del os.environ[name]
    home = stack.enter_context(tempfile.TemporaryDirectory(prefix="cache-blocks-", ignore_cleanup_errors=True))
    os.environ["PREFECT_HOME"] = home
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    os.environ["PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW"] = "ignore"


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
