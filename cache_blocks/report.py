"""The report of a run: what its events say, in a table and in markdown that one reads in ten seconds.

Pure functions without an orchestrator. The markdown keeps to what Prefect's UI shows: headings, tables, lists, and
images that hold their data in their address.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from cache_blocks import events as actions
from cache_blocks.charts import Bar, Series, amount_chart, data_uri, share_chart
from cache_blocks.entry import Outcome
from cache_blocks.events import CacheEvent
from cache_blocks.metrics import CacheMetrics, KindMetrics
from cache_blocks.reasons import NO_KIND, reason_section, warnings_of
from cache_blocks.wording import (
    NONE,
    bytes_in_words,
    counted,
    escaped,
    markdown_table,
    seconds_in_words,
    share_in_words,
)

# Okabe and Ito's colours, which colour-blind people tell apart (https://jfly.uni-koeln.de/color/); grey for misses.
_SERIES: Final = {
    "memory": Series("memory", "#56b4e9"),
    "redis": Series("redis", "#0072b2", ink="#ffffff"),
    "sql": Series("sql", "#009e73"),
    "object_store": Series("object store", "#e69f00"),
}
_MISSES: Final = Series("misses", "#c3cad3")
_SAVED: Final = Series("saved", "#cc79a7")
# Prefect's UI cuts wide tables off, so what matters most comes first, and the rest only where there is any.
_COLUMNS: Final = ("kind", "lookups", "hits", "hit rate", "saved", "read")
_OPTIONAL_COLUMNS: Final = (*(series.name for series in _SERIES.values()), "bypassed")

# Bounds that keep a report readable, and small whatever the run.
_TABLE_ROWS: Final = 40
_CHART_ROWS: Final = 12


def hits_table(metrics: CacheMetrics) -> list[dict[str, Any]]:
    """Return one row a kind, sorted by name, and after more than one a row ``all``.

    Columns: ``kind``; ``lookups`` and ``hits``; ``hit rate``; hits by tier (``memory``, ``redis``, ``sql``,
    ``object store``); ``bypassed`` calls; ``read``, the bytes that hits brought, as stored; ``saved``, the time of
    computing that hits spared. Counts are numbers, the others words for a person.
    """
    rows = [_row(name or NO_KIND, figures) for name, figures in sorted(metrics.by_kind.items())]
    return [*rows, _row("all", _sum(metrics.by_kind.values()))] if len(rows) > 1 else rows


def render_report(events: Sequence[CacheEvent], *, title: str) -> str:
    """Return the markdown report of a run: headline, charts, a table, warnings, misses with their reasons.

    Args:
        events: What happened, in any order.
        title: What ran.
    """
    metrics = CacheMetrics.from_events(events)
    warnings = warnings_of(events)
    lookups = [event for event in events if event.action == actions.LOOKUP]
    misses = [event for event in lookups if event.outcome not in (Outcome.HIT, Outcome.BYPASSED)]
    bypassed = [event for event in lookups if event.outcome == Outcome.BYPASSED]
    blocks = [
        f"# Cache report: {escaped(title, 120)}",
        f"**{_headline(metrics)}**",
        _counts(metrics, events, warnings),
    ]
    blocks += [*_charts(metrics), *_kinds(metrics)]
    if warnings:
        blocks += ["## Warnings", "\n".join(f"- {warning}" for warning in warnings)]
    blocks += [*reason_section("Misses", misses), *reason_section("Bypassed", bypassed)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _row(kind: str, figures: KindMetrics) -> dict[str, Any]:
    return {
        "kind": kind,
        "lookups": figures.total,
        "hits": figures.hits,
        "hit rate": share_in_words(figures.hits, figures.total),
        **{series.name: figures.by_tier[tier] for tier, series in _SERIES.items()},
        "bypassed": figures.bypassed,
        "read": bytes_in_words(figures.stored_bytes),
        "saved": seconds_in_words(figures.seconds_saved),
    }


def _sum(kinds: Iterable[KindMetrics]) -> KindMetrics:
    total = KindMetrics()
    for kind in kinds:
        total.hits += kind.hits
        total.misses += kind.misses
        total.bypassed += kind.bypassed
        total.by_tier.update(kind.by_tier)
        total.stored_bytes += kind.stored_bytes
        total.seconds_saved += kind.seconds_saved
    return total


def _headline(metrics: CacheMetrics) -> str:
    if not metrics.total:
        return "No lookups."
    hit = f"{share_in_words(metrics.hits, metrics.total)} of {counted(metrics.total, 'lookup')} hit"
    if metrics.seconds_saved < 0:
        return f"{hit}, but looking up took {seconds_in_words(-metrics.seconds_saved)} longer than computing had."
    return f"{hit}, {seconds_in_words(metrics.seconds_saved)} of computing saved."


def _counts(metrics: CacheMetrics, events: Sequence[CacheEvent], warnings: Sequence[str]) -> str:
    bypassed = sum(kind.bypassed for kind in metrics.by_kind.values())
    invalidated = sum(event.action == actions.INVALIDATED for event in events)
    parts = [
        (metrics.hits, counted(metrics.hits, "hit")),
        (metrics.misses, counted(metrics.misses, "miss", "misses")),
        (metrics.shared, f"{metrics.shared:,} of the misses took the result of an equal call"),
        (bypassed, f"{bypassed:,} bypassed"),
        (invalidated, counted(invalidated, "invalidation")),
        (len(warnings), f"**{counted(len(warnings), 'warning')}**"),
    ]
    return " · ".join(words for count, words in parts if count)


def _charts(metrics: CacheMetrics) -> Iterator[str]:
    kinds = _largest([(name or NO_KIND, kind) for name, kind in sorted(metrics.by_kind.items()) if kind.total])
    if not kinds:
        return
    answered = [
        Bar(name, (*(kind.by_tier[tier] for tier in _SERIES), kind.misses), _note(kind)) for name, kind in kinds
    ]
    chart = share_chart("Where lookups were answered", answered, [*_SERIES.values(), _MISSES])
    yield _image("Where lookups were answered", answered, chart)
    saved = [Bar(name, (kind.seconds_saved,), seconds_in_words(kind.seconds_saved)) for name, kind in kinds]
    if any(bar.values[0] for bar in saved):
        yield _image("Computing time saved", saved, amount_chart("Computing time saved", saved, _SAVED))


def _largest(kinds: list[tuple[str, KindMetrics]]) -> list[tuple[str, KindMetrics]]:
    """The kinds with most lookups in the order given, the others as one."""
    if len(kinds) <= _CHART_ROWS:
        return kinds
    ranked = sorted(kinds, key=lambda pair: -pair[1].total)
    first, rest = ranked[: _CHART_ROWS - 1], ranked[_CHART_ROWS - 1 :]
    return [*(pair for pair in kinds if pair in first), (f"{len(rest):,} other kinds", _sum(kind for _, kind in rest))]


def _note(kind: KindMetrics) -> str:
    return f"{share_in_words(kind.hits, kind.total)} of {kind.total:,} hit"


def _image(what: str, bars: Sequence[Bar], svg: str) -> str:
    said = ", ".join(f"{bar.label} {bar.note}" for bar in bars)
    return f"![{what}: {escaped(said, 400)}]({data_uri(svg)})"


def _kinds(metrics: CacheMetrics) -> Iterator[str]:
    rows = hits_table(metrics)
    if not rows:
        return
    columns = [*_COLUMNS, *(name for name in _OPTIONAL_COLUMNS if any(row[name] for row in rows))]
    hidden = len(rows) - 1 - _TABLE_ROWS
    if hidden > 0:
        rows = [*rows[:_TABLE_ROWS], rows[-1]]
    yield "## By kind"
    yield markdown_table(columns, [[_cell(name, row[name]) for name in columns] for row in rows], numbers=columns[1:])
    if hidden > 0:
        yield f"{counted(hidden, 'further kind')} in the last row only."


def _cell(column: str, value: int | str) -> str:
    if isinstance(value, str):
        return escaped(value, 60)
    return f"{value:,}" if value or column in _COLUMNS else NONE
