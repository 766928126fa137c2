"""The report of a run: what its events say, in a table and in markdown that one reads in ten seconds.

Pure functions without an orchestrator. The markdown keeps to what Prefect's UI shows: headings, tables, lists, links,
and images that hold their data in their address.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from cache_blocks import events as actions
from cache_blocks.charts import Bar, Panel, Series, columns_chart, data_uri, share_chart
from cache_blocks.drawing import DARK_INK, OPPOSITE_INK, Paint
from cache_blocks.entry import Outcome
from cache_blocks.events import CacheEvent
from cache_blocks.metrics import CacheMetrics, KindMetrics, traffic_in_words
from cache_blocks.reasons import NO_KIND, reason_section, warnings_of
from cache_blocks.runs import Run
from cache_blocks.sub_runs import SubRun, Summed, metrics_of, number_of, sub_run_warnings, sub_runs_section, sums_of
from cache_blocks.wording import (
    NONE,
    bytes_in_words,
    counted,
    escaped,
    link,
    markdown_table,
    moment_in_words,
    money_in_words,
    seconds_in_words,
    share_in_words,
)

# After Okabe and Ito's colours, which colour-blind people tell apart (https://jfly.uni-koeln.de/color/), lighter or
# darker until they stand out from the card of each theme; grey for misses.
_SERIES: Final = {
    "memory": Series("memory", Paint("memory", "#2f8fd0", "#7cc4f2"), DARK_INK),
    "redis": Series("redis", Paint("redis", "#0a5ea8", "#4f97e3"), OPPOSITE_INK),
    "sql": Series("sql", Paint("sql", "#007f5f", "#35b98f"), OPPOSITE_INK),
    "object_store": Series("object store", Paint("object-store", "#b86e00", "#f0a63a"), DARK_INK),
}
_MISSES: Final = Series("misses", Paint("misses", "#8791a0", "#6b7280"), Paint("miss-ink", "#0c1116", "#ffffff"))
_HIT_RATE: Final = Paint("hit-rate", "#0a63a8", "#5aa9ec")
_SAVED: Final = Paint("saved", "#a03c78", "#d98bbb")
# Prefect's UI cuts wide tables off, so what matters most comes first, and only where there is any.
_COLUMNS: Final = (
    "kind",
    "hits",
    "saved",
    *(series.name for series in _SERIES.values()),
    "computed",
    "bypassed",
    "read",
)

# Bounds that keep a report readable, and small whatever the run.
_TABLE_ROWS: Final = 40
_CHART_ROWS: Final = 12


def hits_table(metrics: CacheMetrics, currency: str = "") -> list[dict[str, Any]]:
    """Return one row a kind, sorted by name, and after more than one a row ``all``.

    Columns: ``kind``; ``lookups`` and ``hits``; ``hit rate``; hits by tier (``memory``, ``redis``, ``sql``,
    ``object store``); ``bypassed`` calls; ``computed`` results; ``read``, the bytes that hits brought, as stored;
    ``saved``, the time of computing that hits spared; with a currency ``cost saved``, its price. Counts are numbers,
    the others words for a person.
    """
    rows = [_row(name or NO_KIND, figures, currency) for name, figures in sorted(metrics.by_kind.items())]
    return [*rows, _row("all", metrics.whole, currency)] if len(rows) > 1 else rows


def render_report(
    events: Sequence[CacheEvent],
    *,
    title: str,
    note: str = "",
    hits: Sequence[Summed] = (),
    before: Sequence[Run] = (),
    sub_runs: Sequence[SubRun] = (),
    warnings: Sequence[str] = (),
    sections: Sequence[str] = (),
    currency: str = "",
    ui_url: str = "",
) -> str:
    """Return the markdown report of a run: headline, warnings, charts, misses with their reasons, a table.

    Args:
        events: What happened, in any order.
        title: What ran.
        note: What became of it, as a sentence.
        hits: Hits that are not among the events, but added up.
        before: Earlier runs of the same flow, oldest first.
        sub_runs: Runs that it has started; all figures are of it and of them together.
        warnings: What somebody may want to see to besides what the events say; plain text.
        sections: Further blocks of markdown, shown below the charts.
        currency: Of the money saved; empty where no prices are set, and no money is shown.
        ui_url: Address of Prefect's UI, for links; without one they lead to the UI that shows the report.
    """
    sums = [*hits, *sums_of(sub_runs)]
    metrics = metrics_of(events, sums)
    invalidations = number_of(actions.INVALIDATED, events, sums)
    warned = [
        *sub_run_warnings(sub_runs, ui_url),
        *warnings_of(events, ui_url),
        *(escaped(warning, 300) for warning in warnings),
    ]
    lookups = [event for event in events if event.action == actions.LOOKUP]
    misses = [event for event in lookups if event.outcome not in (Outcome.HIT, Outcome.BYPASSED)]
    bypassed = [event for event in lookups if event.outcome == Outcome.BYPASSED]
    blocks = [
        f"# {_headline(metrics.whole, currency)}",
        _counts(title, metrics, invalidations, warned, currency),
        f"**{note}**" if note else "",
        _comparison(metrics.whole, before[-1], currency, ui_url) if before and metrics.total else "",
    ]
    if warned:
        blocks += ["## Warnings", "\n".join(f"- {warning}" for warning in warned)]
    blocks += [*_tiers_chart(metrics, currency), *_runs_chart(metrics.whole, before), *sections]
    blocks += sub_runs_section(sub_runs, ui_url)
    blocks += [*reason_section("Misses", misses, ui_url), *reason_section("Bypassed", bypassed, ui_url)]
    blocks += _kinds(metrics, currency)
    blocks += [f"Object store: {used}."] if (used := traffic_in_words(metrics)) else []
    return "\n\n".join(block for block in blocks if block) + "\n"


def _row(kind: str, figures: KindMetrics, currency: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "lookups": figures.total,
        "hits": figures.hits,
        "hit rate": share_in_words(figures.hits, figures.total),
        **{series.name: figures.by_tier[tier] for tier, series in _SERIES.items()},
        "bypassed": figures.bypassed,
        "computed": figures.computed,
        "read": bytes_in_words(figures.stored_bytes),
        "saved": seconds_in_words(figures.seconds_saved),
        **({"cost saved": money_in_words(figures.money_saved, currency)} if currency else {}),
    }


def _headline(whole: KindMetrics, currency: str) -> str:
    if not whole.total:
        return "No lookups"
    hit = f"{share_in_words(whole.hits, whole.total)} hit"
    if not whole.hits:
        return f"{hit}, nothing saved"
    if whole.seconds_saved < 0:
        return f"{hit}, but looking up took {seconds_in_words(-whole.seconds_saved)} longer than computing had"
    money = f" and {money_in_words(whole.money_saved, currency)}" if currency else ""
    return f"{hit}, {seconds_in_words(whole.seconds_saved)}{money} saved"


def _counts(title: str, metrics: CacheMetrics, invalidations: int, warnings: Sequence[str], currency: str) -> str:
    whole = metrics.whole
    spent = f" for {money_in_words(whole.money_spent, currency)}" if currency else ""
    parts = [
        (whole.total, f"{whole.hits:,} of {counted(whole.total, 'lookup')} hit"),
        (whole.misses, counted(whole.misses, "miss", "misses")),
        (metrics.shared, f"{metrics.shared:,} of the misses took the result of an equal call"),
        (whole.computed, f"{whole.computed:,} computed in {seconds_in_words(whole.compute_seconds)}{spent}"),
        (whole.bypassed, f"{whole.bypassed:,} bypassed"),
        (invalidations, counted(invalidations, "invalidation")),
        (len(warnings), f"**{counted(len(warnings), 'warning')}**"),
    ]
    return " · ".join([f"**{escaped(title, 120)}**", *(words for count, words in parts if count)])


def _comparison(whole: KindMetrics, last: Run, currency: str, ui_url: str) -> str:
    """Return what has changed since the run before."""
    run = link(f"the run of {moment_in_words(last.at)}", f"{ui_url}/runs/flow-run/{last.flow_run_id}")
    figures = [
        ("hit rate", share_in_words(last.hits, last.lookups), share_in_words(whole.hits, whole.total)),
        ("saved", seconds_in_words(last.seconds_saved), seconds_in_words(whole.seconds_saved)),
        ("cost saved", _money(last.money_saved, currency), _money(whole.money_saved, currency)),
    ]
    changes = [f"{what} {old} → **{new}**" for what, old, new in figures if old != new]
    return f"Against {run}: {' · '.join(changes)}" if changes else f"No change against {run}"


def _money(amount: float, currency: str) -> str:
    return money_in_words(amount, currency) if currency and amount else NONE


def _tiers_chart(metrics: CacheMetrics, currency: str) -> Iterator[str]:
    kinds = _largest([(name or NO_KIND, kind) for name, kind in sorted(metrics.by_kind.items()) if kind.total])
    if not kinds:
        return
    headings = ["hit", "time saved", *(["cost saved"] if currency else [])]
    bars = [
        Bar(name, (*(kind.by_tier[tier] for tier in _SERIES), kind.misses), _notes(kind, currency))
        for name, kind in kinds
    ]
    chart = share_chart("Where lookups were answered", bars, [*_SERIES.values(), _MISSES], headings)
    said = (f"{bar.label} {bar.notes[0]} hit, {' and '.join(bar.notes[1:])} saved" for bar in bars)
    yield _image(f"Where lookups were answered: {'; '.join(said)}", chart)


def _notes(kind: KindMetrics, currency: str) -> tuple[str, ...]:
    money = [_money(kind.money_saved, currency)] if currency else []
    return (share_in_words(kind.hits, kind.total), seconds_in_words(kind.seconds_saved), *money)


def _largest(kinds: list[tuple[str, KindMetrics]]) -> list[tuple[str, KindMetrics]]:
    """The kinds with most lookups in the order given, the others as one."""
    if len(kinds) <= _CHART_ROWS:
        return kinds
    ranked = sorted(kinds, key=lambda pair: -pair[1].total)
    first, rest = ranked[: _CHART_ROWS - 1], ranked[_CHART_ROWS - 1 :]
    others = KindMetrics()
    for _, kind in rest:
        others.merge(kind)
    return [*(pair for pair in kinds if pair in first), (f"{len(rest):,} other kinds", others)]


def _runs_chart(whole: KindMetrics, before: Sequence[Run]) -> Iterator[str]:
    if not before or not whole.total:
        return
    rates = (*(run.hit_rate for run in before), whole.hit_rate)
    saved = (*(run.seconds_saved for run in before), whole.seconds_saved)
    title = f"The last {len(rates)} runs of this flow"
    rate_now, saved_now = share_in_words(whole.hits, whole.total), seconds_in_words(whole.seconds_saved)
    most = f"at most {seconds_in_words(max(saved))}" if max(saved) > 0 else ""
    panels = [
        Panel("hit rate", rates, 1.0, rate_now, "", _HIT_RATE),
        Panel("time saved", saved, 0.0, saved_now, most, _SAVED),
    ]
    chart = columns_chart(title, panels, moment_in_words(before[0].at), "this run")
    said = ", ".join(f"{share_in_words(run.hits, run.lookups)}" for run in before)
    yield _image(f"{title}, hit rates: {said}, {rate_now}", chart)


def _image(said: str, svg: str) -> str:
    return f"![{escaped(said, 400)}]({data_uri(svg)})"


def _kinds(metrics: CacheMetrics, currency: str) -> Iterator[str]:
    """Yield the markdown of a table of kinds: counts, and beside each the time that goes with it."""
    kinds = [(name or NO_KIND, kind) for name, kind in sorted(metrics.by_kind.items())]
    if not kinds:
        return
    hidden = kinds[_TABLE_ROWS:]
    rows = [_cells(name, kind, currency) for name, kind in kinds[:_TABLE_ROWS]]
    if len(kinds) > 1:
        rows.append(_cells("all", metrics.whole, currency))
    used = [place for place, name in enumerate(_COLUMNS) if name == "kind" or any(row[place] != NONE for row in rows)]
    yield "## By kind"
    names = [_COLUMNS[place] for place in used]
    yield markdown_table(names, [[row[place] for place in used] for row in rows], numbers=names[1:])
    if hidden:
        yield f"{counted(len(hidden), 'further kind')} in the last row only."


def _cells(name: str, kind: KindMetrics, currency: str) -> tuple[str, ...]:
    saved = [seconds_in_words(kind.seconds_saved)] if kind.hits else []
    money = [money_in_words(kind.money_saved, currency)] if currency and kind.money_saved else []
    return (
        escaped(name, 60),
        f"{kind.hits:,} of {kind.total:,}" if kind.total else NONE,
        " · ".join(saved + money) or NONE,
        *(_timed(kind.by_tier[tier], kind.seconds_saved_by_tier.get(tier, 0.0)) for tier in _SERIES),
        _timed(kind.computed, kind.compute_seconds),
        f"{kind.bypassed:,}" if kind.bypassed else NONE,
        bytes_in_words(kind.stored_bytes) if kind.stored_bytes else NONE,
    )


def _timed(count: int, seconds: float) -> str:
    return f"{count:,} · {seconds_in_words(seconds)}" if count else NONE
