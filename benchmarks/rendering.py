"""`docs/performance.md` and its plots, from `results.json` alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.results import Figure, Measured, Results
from cache_blocks.charts import Bar as Row
from cache_blocks.charts import amount_chart
from cache_blocks.drawing import Paint
from cache_blocks.wording import NONE, escaped, markdown_table

DOCS: Final = Path(__file__).parent.parent / "docs"

_OURS: Final = Paint("ours", "#0a63a8", "#5aa9ec")
_HEAD: Final = """# Performance

What the cache costs, measured against the packages that one would use instead: in one process, in turns, with the same
data and the same servers. A figure marked `x` is a ratio, the median of the rounds' ratios with its quartiles, so that
a busy machine slows both sides down; a bar is what the figure has to reach. Absolute times depend on the machine and
are shown for orientation.

Made by `make bench`, which writes `benchmarks/results.json` and, from that alone, this page. Each section says when
and where it was measured.
"""
_BAR_NAME: Final = 120


def render(results: Results) -> dict[str, str]:
    """Return the files by their path under docs/: the page and the plots that it shows."""
    files = {"images/performance.svg": _overview_plot(results)}
    sections = [_HEAD, _overview(results)]
    for name, measured in results.in_order():
        plots = dict(_plots(name, measured))
        sections.append(_section(measured, plots))
        files |= plots
    return {"performance.md": "\n".join(sections), **files}


def write(results: Results, docs: Path = DOCS) -> None:
    """Write the page and its plots, and remove plots that it no longer shows."""
    (docs / "images").mkdir(parents=True, exist_ok=True)
    for old in (docs / "images").glob("performance*.svg"):
        old.unlink()
    for path, text in render(results).items():
        (docs / path).write_text(text, encoding="utf-8")


def spread(figure: Figure) -> str:
    """Return the quartiles of a figure in words; a dash if it has none."""
    low, high = figure.detail.get("low"), figure.detail.get("high")
    if low is None or high is None:
        return NONE
    return f"{number(low)} to {number(high)}"


def amount(value: float, unit: str) -> str:
    """Return a number with its unit."""
    return f"{number(value)} {unit}"


def bar_in_words(figure: Figure) -> str:
    """Return what the figure has to reach."""
    return f"{'≤' if figure.better == 'lower' else '≥'} {amount(figure.limit, figure.unit)}"


def number(value: float) -> str:
    """Return a number with about three digits."""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _overview(results: Results) -> str:
    bars = [figure for _, measured in results.in_order() for figure in measured.bars]
    missed = [figure for figure in bars if not figure.met]
    lines = [f"**{len(bars) - len(missed)} of {len(bars)} bars are reached.**"]
    if missed:
        lines.append("Not reached:\n")
        lines += [
            f"- {escaped(each.name, _BAR_NAME)}: {amount(each.figure, each.unit)}, bar {bar_in_words(each)}"
            for each in missed
        ]
    lines.append("\n![How much of each bar is used up](images/performance.svg)\n")
    return "\n".join(lines)


def _section(measured: Measured, plots: dict[str, str]) -> str:
    title, _, about = measured.about.partition("\n\n")
    columns = ("what", "figure", "quartiles", "bar", "reached")
    rows = [
        (
            escaped(figure.name, _BAR_NAME),
            amount(figure.figure, figure.unit),
            spread(figure),
            bar_in_words(figure),
            "yes" if figure.met else "**no**",
        )
        for figure in measured.bars
    ]
    notes = [f"- {figure.name}: {note}" for figure in measured.bars if (note := figure.detail.get("note"))]
    blocks = [
        f"## {measured.order}. {title.rstrip('.')}",
        about.strip(),
        markdown_table(columns, rows, numbers=("figure", "quartiles", "bar")),
        "\n".join(notes),
        *(f"![Median times]({path})" for path in plots),
        f"Measured on {measured.date.isoformat()}: {measured.machine}; {_versions(measured)}.",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _versions(measured: Measured) -> str:
    return ", ".join(f"{name} {version}" for name, version in measured.versions.items())


def _plots(name: str, measured: Measured) -> Iterator[tuple[str, str]]:
    """Give a plot for each bar that knows how long its contestants took."""
    for position, figure in enumerate(measured.bars):
        times: dict[str, Any] = figure.detail.get("milliseconds", {})
        if len(times) > 1:
            rows = [Row(who, (taken,), (f"{number(taken)} ms",)) for who, taken in times.items()]
            yield f"images/performance-{name}-{position}.svg", amount_chart(figure.name, rows, _OURS) + "\n"


def _overview_plot(results: Results) -> str:
    rows = [
        Row(f"{measured.order} {figure.name}", (min(_used(figure), 2.0),), (f"{_used(figure):.0%}",))
        for _, measured in results.in_order()
        for figure in measured.bars
    ]
    return amount_chart("How much of each bar is used up: 100 % just reaches it", rows, _OURS) + "\n"


def _used(figure: Figure) -> float:
    """Return the figure as a share of its bar, the less the better whichever way the bar points."""
    ours, bar = (figure.figure, figure.limit) if figure.better == "lower" else (figure.limit, figure.figure)
    if bar == 0:
        return 0.0 if ours == 0 else 9.99
    return max(ours / bar, 0.0)
