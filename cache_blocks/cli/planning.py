"""Commands that say why and what: ``explain`` and ``plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cache_blocks.cli.output import Json, complain, emit, moment, say, table, this_cache
from cache_blocks.wording import bytes_in_words, counted, seconds_in_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cache_blocks.events import CacheEvent

PLANNER = "flows.planning:plan_{name}"
"""Where the planner of a flow is, relative to the working directory."""


def plan(
    flow: Annotated[
        str, typer.Argument(metavar="FLOW", help="A flow's name, such as batch-transcription, or MODULE:FUNCTION.")
    ],
    *,
    source: Annotated[str | None, typer.Option(help="Where its work is; the parameter of this name.")] = None,
    param: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Another parameter; JSON, or text as it is.")
    ] = None,
    json: Json = False,
) -> None:
    """Tell what a run of a flow would do and cost, without computing anything and without a Prefect server.

    The flow's own planner is called, found in the working directory: flows.planning:plan_NAME. JSON: source,
    recordings, unreadable; stages (task, kind, items; hits by tier; misses by reason; unknown, until; bytes_to_move,
    seconds_saved; compute, seconds and money, each least and most; seconds and money as median and p90 with the number
    of samples, null without history).
    """
    from cache_blocks.cli.loading import load_function

    name = flow if ":" in flow else PLANNER.format(name=flow.replace("-", "_"))
    planner = load_function(name)
    assert planner is not None  # noqa: S101 - only an optional function may be None
    parameters = dict(_parameter(text) for text in param or []) | ({"source": source} if source is not None else {})
    found = planner(**parameters)
    data: dict[str, Any] = found.model_dump(mode="json")
    if json:
        emit(data)
        return
    say(found.sentence())
    for one in data["unreadable"]:
        say(f"  {one['name']} would fail: {one['reason']}")
    _print_stages(data["stages"])


def explain(
    key: Annotated[str | None, typer.Argument(metavar="KEY", help="Key of an entry, as ls shows it.")] = None,
    *,
    run: Annotated[str | None, typer.Option(metavar="ID", help="Flow run whose misses are explained.")] = None,
    json: Json = False,
) -> None:
    """Tell why calls missed: those of a flow run, or all lookups of one key.

    JSON: a list of lookups with at, task, subject, kind, key, outcome, tier, reason, flow_run_id.
    """
    if (key is None) == (run is None):
        raise typer.BadParameter("give a KEY or --run ID")
    log = this_cache().parts.events
    events = log.of_key(key) if key else log.of_run(run or "", hits=False)
    told = [event for event in events if event.action == "lookup"]
    hits = 0 if key else _hits_of(run or "")
    if not told and not hits:
        _complain_of_nothing(key, run)
        raise typer.Exit(1)
    if json:
        emit([_as_dict(event) for event in told])
        return
    missed = sum(event.outcome != "hit" for event in told)
    say(f"{counted(len(told) + hits, 'lookup')}, {missed:,} missed")
    rows = [[moment(e.at), e.origin.task, e.origin.subject, e.outcome, e.reason or f"from {e.tier}"] for e in told]
    if rows:
        table(["time", "task", "about", "outcome", "why"], rows)


def _hits_of(run: str) -> int:
    """Return how many hits a run had, none of which has anything to explain."""
    from cache_blocks.runs import Runs

    cache = this_cache()
    return sum(summed.number for summed in Runs(cache.parts.database, cache.settings.namespace).hits_of(run))


def _complain_of_nothing(key: str | None, run: str | None) -> None:
    if key is not None:
        from cache_blocks.maintenance import closest

        near = closest(this_cache(), key)
        complain(f"no lookup of {key!r} is on record{f'; did you mean {near[0]}?' if near else ''}")
    else:
        complain(f"no lookup of flow run {run!r} is on record; `prefect flow-run ls` shows the ids of runs")


def _as_dict(event: CacheEvent) -> dict[str, Any]:
    return {
        "at": event.at,
        "task": event.origin.task,
        "subject": event.origin.subject,
        "kind": event.kind,
        "key": event.key,
        "outcome": str(event.outcome),
        "tier": event.tier,
        "reason": event.reason,
        "flow_run_id": event.origin.flow_run_id,
    }


def _parameter(text: str) -> tuple[str, Any]:
    import orjson

    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE")
    try:
        return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        return name, value


def _print_stages(stages: list[Mapping[str, Any]]) -> None:
    rows = [
        [
            stage["task"],
            f"{stage['items']:,}",
            ", ".join(f"{count:,} {tier}" for tier, count in stage["hits"].items()) or "–",  # noqa: RUF001
            f"{sum(stage['misses'].values()):,}",
            f"{stage['unknown']:,} until {stage['until']}" if stage["unknown"] else "",
            bytes_in_words(stage["bytes_to_move"]),
            _range(stage["seconds"]),
        ]
        for stage in stages
    ]
    table(["stage", "items", "hits", "misses", "unknown", "to move", "expected"], rows, numbers=["items", "misses"])
    for stage in stages:
        for reason, count in stage["misses"].items():
            say(f"  {stage['task']}: {count:,} {reason}")


def _range(bounds: Mapping[str, Any] | None) -> str:
    if bounds is None:
        return "no history"
    least, most = bounds["least"]["median"], bounds["most"]["p90"]
    return f"{seconds_in_words(least)} to {seconds_in_words(most)}" if most > least else seconds_in_words(least)
