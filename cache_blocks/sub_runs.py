"""Sub-runs: flow runs that another one has started, here or elsewhere, whose figures its report adds to its own.

An event belongs to one run, so that nothing is counted twice, however deep runs are nested. The events of sub-runs may
be millions; SQL adds them up, and what each of them was about is in the report of its own run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cache_blocks import events as actions
from cache_blocks.entry import Outcome
from cache_blocks.events import CacheEvent
from cache_blocks.metrics import CacheMetrics
from cache_blocks.reasons import kind_of
from cache_blocks.wording import NONE, counted, escaped, link, markdown_table, seconds_in_words

_ROWS: Final = 40
_CAUSES: Final = 20
_NAMES: Final = 5
_NAME_LETTERS: Final = 80


@dataclass(frozen=True, slots=True)
class Summed:
    """Events that have all in common but key, subject and task run.

    Attributes:
        event: One that has their figures added up; its reason is their cause.
        number: How many they are.
    """

    event: CacheEvent
    number: int


@dataclass(frozen=True, slots=True)
class SubRun:
    """A flow run that another one has started.

    Attributes:
        flow_run_id: The run.
        name: What people call it.
        trouble: What became of it if it has not completed, such as ``crashed``.
        sums: Its events.
    """

    flow_run_id: str
    name: str
    trouble: str
    sums: Sequence[Summed]

    @property
    def metrics(self) -> CacheMetrics:
        """What its events add up to."""
        return metrics_of((), self.sums)


def sums_of(sub_runs: Iterable[SubRun]) -> list[Summed]:
    """Return the events of all sub-runs."""
    return [summed for sub_run in sub_runs for summed in sub_run.sums]


def metrics_of(events: Iterable[CacheEvent], sums: Iterable[Summed]) -> CacheMetrics:
    """Return what events add up to, of which some have been added up already."""
    metrics = CacheMetrics.from_events(events)
    for summed in sums:
        metrics.add(summed.event, summed.number)
    return metrics


def number_of(action: str, events: Iterable[CacheEvent], sums: Iterable[Summed]) -> int:
    """Return how many events are of one action."""
    summed = sum(one.number for one in sums if one.event.action == action)
    return sum(event.action == action for event in events) + summed


def sub_run_warnings(sub_runs: Sequence[SubRun], ui_url: str = "") -> Iterator[str]:
    """Yield a line of markdown on sub-runs that have not completed, and one on those whose reports have warnings."""
    if ended := [f"{_link(each, ui_url)} {each.trouble}" for each in sub_runs if each.trouble]:
        yield f"{counted(len(ended), 'sub-run')} did not complete: {_some(ended)}"
    if warned := [_link(each, ui_url) for each in sub_runs if _warns(each.metrics)]:
        yield f"{counted(len(warned), 'sub-run')} with warnings in the report: {_some(warned)}"


def sub_runs_section(sub_runs: Sequence[SubRun], ui_url: str = "") -> Iterator[str]:
    """Yield the markdown of a section: each sub-run with its figures and a link, and why their lookups missed."""
    if not sub_runs:
        return
    yield "## Sub-runs"
    yield f"All figures of this report are those of this run and of its {counted(len(sub_runs), 'sub-run')} together."
    shown = sorted(sub_runs, key=lambda each: not each.trouble)[:_ROWS]
    columns = ("sub-run", "hits", "saved", "computed", "ended")
    yield markdown_table(columns, [_cells(each, ui_url) for each in shown], numbers=columns[1:4])
    if more := len(sub_runs) - len(shown):
        yield f"And {more:,} more."
    yield from _causes(sub_runs)


def _cells(sub_run: SubRun, ui_url: str) -> tuple[str, ...]:
    whole = sub_run.metrics.whole
    return (
        _link(sub_run, ui_url),
        f"{whole.hits:,} of {whole.total:,}" if whole.total else NONE,
        seconds_in_words(whole.seconds_saved) if whole.hits else NONE,
        f"{whole.computed:,} · {seconds_in_words(whole.compute_seconds)}" if whole.computed else NONE,
        sub_run.trouble or "completed",
    )


def _causes(sub_runs: Sequence[SubRun]) -> Iterator[str]:
    causes: Counter[tuple[str, str]] = Counter()
    for summed in sums_of(sub_runs):
        if summed.event.action == actions.LOOKUP and summed.event.outcome != Outcome.HIT:
            causes[kind_of(summed.event), summed.event.reason] += summed.number
    if not causes:
        return
    yield "Their misses; each one is in the report of its run:"
    ranked = sorted(causes.items(), key=lambda cause: (-cause[1], cause[0]))
    yield "\n".join(
        f"- **{escaped(kind, _NAME_LETTERS)}**: {number:,} {escaped(cause or 'no reason given', 200)}"
        for (kind, cause), number in ranked[:_CAUSES]
    )


def _warns(metrics: CacheMetrics) -> bool:
    return bool(metrics.lost_writes or metrics.outages or metrics.unstored or metrics.unleased)


def _some(what: Sequence[str]) -> str:
    more = f" and {len(what) - _NAMES:,} more" if len(what) > _NAMES else ""
    return f"{', '.join(what[:_NAMES])}{more}"


def _link(sub_run: SubRun, ui_url: str) -> str:
    return link(escaped(sub_run.name, _NAME_LETTERS), f"{ui_url}/runs/flow-run/{sub_run.flow_run_id}")
