"""``make demo`` and ``make ui``: the batch over samples/, twice, in two processes, and what the cache saved."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".demo"
OUTPUT = Path(".demo/output")
REPORT = Path(".demo/cache-report.md")
STAGES = 3
_LOOKUP = "cache-blocks lookup: "
console = Console(highlight=False)


def run_batch(report: Path) -> None:
    """Run the batch in this process and leave a summary for the one that shows it."""
    from cache_blocks import CacheMetrics, TieredCache
    from cache_blocks.report import render_report
    from flows.batch_transcription import batch_transcription
    from tasks.engines.faster_whisper import models_loaded

    TieredCache.from_settings().listen(_say_lookups)
    state = batch_transcription("samples", str(OUTPUT), return_state=True)
    flow_run_id = str(state.state_details.flow_run_id)
    events = TieredCache.from_settings().parts.events.of_run(flow_run_id)
    metrics = CacheMetrics.from_events(events)
    (ROOT / REPORT).write_text(render_report(events, title="make demo"))
    summary = state.result()
    content: dict[str, Any] = {
        "flow_run_id": flow_run_id,
        "models_loaded": models_loaded(),
        "batch": json.loads(summary.model_dump_json()),
        "kinds": {
            name: {"hits": kind.hits, "misses": kind.misses, "tiers": dict(kind.by_tier), "saved": kind.seconds_saved}
            for name, kind in sorted(metrics.by_kind.items())
        },
        "seconds_saved": metrics.seconds_saved,
        "lookup_seconds": sum(kind.lookup_seconds for kind in metrics.by_kind.values()),
    }
    report.write_text(json.dumps(content))


def show_batch(title: str, environment: dict[str, str]) -> dict[str, Any]:
    """Run the batch in a process of its own, show that it is alive, then what came out of it."""
    report, log = HOME / "summary.json", HOME / "prefect.log"
    report.unlink(missing_ok=True)
    console.rule(f"[bold]{title}")
    command = [sys.executable, "-m", "flows.demo", "--run", str(report)]
    offset = log.stat().st_size if log.exists() else 0
    with log.open("ab") as sink, _progress() as advance:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=sink, stderr=subprocess.STDOUT)
        while process.poll() is None:
            advance(_lookups(log, offset))
            time.sleep(0.1)
        advance(_lookups(log, offset))
    if process.returncode != 0 or not report.exists():
        console.print(log.read_text(errors="replace")[-4000:], markup=False)
        sys.exit(f"The batch failed with code {process.returncode}; all that it said is in {log}.")
    content: dict[str, Any] = json.loads(report.read_text())
    _show_run(content)
    return content


def _say_lookups(events: Sequence[Any]) -> None:
    """Say for the process that shows the progress what has been looked up, such as ``hit transcript a.mp3``."""
    for event in events:
        if event.action == "lookup":
            print(f"{_LOOKUP}{event.outcome} {event.kind} {event.origin.subject}", flush=True)  # noqa: T201 - a pipe


def _lookups(log: Path, offset: int) -> list[str]:
    """Return what the batch has said of its lookups so far."""
    with log.open("rb") as stream:
        stream.seek(offset)
        lines = stream.read().decode(errors="replace").splitlines()
    return [line.removeprefix(_LOOKUP) for line in lines if line.startswith(_LOOKUP)]


@contextmanager
def _progress() -> Generator[Any]:
    """Show the lookups as they happen; a first start spends a while on Prefect's own database."""
    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    files = len([path for path in (ROOT / "samples").iterdir() if path.suffix not in {".md", ".tsv"}])
    with Progress(*columns, TextColumn("{task.description}"), console=console, transient=True) as progress:
        bar = progress.add_task("starting Prefect", total=files * STAGES)

        def advance(lookups: list[str]) -> None:
            if lookups:
                progress.update(bar, completed=len(lookups), description=lookups[-1][:70])

        yield advance


def _show_run(content: dict[str, Any]) -> None:
    batch: dict[str, Any] = content["batch"]
    texts = Table("file", "text", box=None, padding=(0, 2, 0, 0))
    for result in batch["results"]:
        texts.add_row(result["name"], result["text"] or f"[red]{result['reason']}")
    console.print(texts)
    console.print()
    kinds = Table("kind", "hits", "misses", "from", "seconds saved", box=None, padding=(0, 2, 0, 0))
    for name, kind in content["kinds"].items():
        tiers = ", ".join(f"{tier} {count}" for tier, count in sorted(kind["tiers"].items()))
        kinds.add_row(name, str(kind["hits"]), str(kind["misses"]), tiers or "-", f"{kind['saved']:.1f}")
    console.print(kinds)
    loaded = "loaded" if content["models_loaded"] else "not needed"
    console.print(
        f"\n{len(batch['results'])} files in {batch['seconds']:.1f} s, {content['seconds_saved']:.1f} s saved; "
        f"{batch['written']} output files written; speech model {loaded}"
    )


def _environment(api_url: str | None) -> dict[str, str]:
    """Return an environment of the demo's own: its cache and Prefect's files lie under the checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CACHE_BLOCKS_", "PREFECT_"))}
    ours = {
        "CACHE_BLOCKS_HOME": str(HOME / "cache"),
        "PREFECT_HOME": str(HOME / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_COLORS": "false",
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "500",
    }
    return kept | ours | ({"PREFECT_API_URL": api_url} if api_url else {})


def main() -> None:
    """Run the demo; ``--ui`` runs it against a Prefect server and leaves that running."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ui", action="store_true", help="start a Prefect server and keep it running")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run_batch(arguments.run)
        return
    HOME.mkdir(exist_ok=True)
    for leftover in (HOME / "cache", ROOT / OUTPUT):
        shutil.rmtree(leftover, ignore_errors=True)  # an earlier demo's; the first run is to compute
    if arguments.ui:
        from flows.demo_server import prefect_server

        with prefect_server(_environment(None), HOME) as api_url:
            _twice(_environment(api_url))
            console.print(f"\nThe runs and their reports: {api_url.removesuffix('/api')}/runs")
            console.print("Press Ctrl-C to stop the server.")
            with suppress(KeyboardInterrupt):
                while True:
                    time.sleep(3600)
        return
    _twice(_environment(None))
    console.print("\nThe same in the Prefect UI: make ui")


def _twice(environment: dict[str, str]) -> None:
    first = show_batch("First run: everything is computed", environment)
    second = show_batch("Second run, in a new process: everything is there", environment)
    first_seconds, second_seconds = first["batch"]["seconds"], second["batch"]["seconds"]
    lookups, computing = second["lookup_seconds"], second["seconds_saved"] + second["lookup_seconds"]
    console.rule()
    console.print(f"{first_seconds:.1f} s, then {second_seconds:.1f} s:", end=" ")
    console.print(f"{lookups:.2f} s of lookups in place of {computing:.1f} s of computing.")
    console.print(f"  outputs  {OUTPUT}: txt, srt, vtt and json per file, and index.json")
    console.print(f"  report   {REPORT}; in the Prefect UI it is the run's artifact cache-report")
    console.print("  cache    CACHE_BLOCKS_HOME=.demo/cache .venv/bin/cache-blocks stats")


if __name__ == "__main__":
    main()
