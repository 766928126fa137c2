"""Simulate a night of a million keys: ``python -m benchmarks.simulation``, or ``make simulation``."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.measuring import Bench
from benchmarks.simulation.night import Shape

if TYPE_CHECKING:
    from benchmarks.simulation.results import Simulation

_console = Console(stderr=True, highlight=False)


def main(
    *,
    keys: Annotated[int, typer.Option(min=100, help="Keys to ask for. Only a million are kept.")] = 1_000_000,
    processes: Annotated[int, typer.Option(min=1, help="Processes that ask side by side.")] = 8,
    seed: Annotated[int, typer.Option(help="Another one deals the keys out differently.")] = 6,
    note: Annotated[str, typer.Option(help="What readers have to know of the circumstances, as a sentence.")] = "",
    keep: Annotated[bool, typer.Option(help="Keep the figures, whatever the number of keys.")] = False,
    render: Annotated[bool, typer.Option("--render", help="Only write docs/scaling.md anew.")] = False,
) -> None:
    """Push keys through Redis, PostgreSQL and an S3 server; write benchmarks/simulation.json and docs/scaling.md.

    Exit code 1: something happened that should not.
    """
    from benchmarks.simulation import page
    from benchmarks.simulation.results import Simulation

    for name in [name for name in os.environ if name.startswith("CACHE_BLOCKS_")]:
        del os.environ[name]  # settings of whoever starts us
    if render:
        page.write(Simulation.load())
        return
    shape = Shape(keys=keys, processes=processes, seed=seed)
    done = _simulate(shape, note)
    if keep or shape == Shape():
        done.save()
        page.write(done)
    print(done.model_dump_json(indent=2))
    if done.problems:
        _console.print(f"[bold red]should not have happened: {done.problems}")
        sys.exit(1)


def _simulate(shape: Shape, note: str) -> Simulation:
    from benchmarks.simulation.running import PHASES, simulate

    columns = (TextColumn("{task.description:6}"), BarColumn(), MofNCompleteColumn())
    with ExitStack() as stack:
        bench = stack.enter_context(Bench(tell=_console.print))
        shown = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=_console)
        totals = {"plant": shape.keys, "ask": shape.keys, "again": round(shape.keys * shape.again)}
        bars = {phase: shown.add_task(phase, total=totals[phase], start=False) for phase in PHASES}

        def tell(phase: str, keys: int) -> None:
            task = shown.tasks[bars[phase]]
            if not task.started:
                shown.start_task(bars[phase])
            before = task.percentage // 10
            shown.advance(bars[phase], keys)
            if not _console.is_terminal and task.percentage // 10 > before:
                _console.print(f"{phase}: {task.completed:,.0f} of {task.total:,.0f}")

        stack.enter_context(shown)
        return simulate(bench, shape, tell, note)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
