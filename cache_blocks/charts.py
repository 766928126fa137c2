"""Bar charts as SVG, for places that show images and nothing else, such as a Prefect artifact."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from cache_blocks.drawing import CARD, SOFT_INK, TRACK, WIDTH, Card, Paint, fitted, text_width
from cache_blocks.wording import printable

_PADDING: Final = 20
_GAP: Final = 14
_NOTE_GAP: Final = 20
_PITCH: Final = 34
_BAR: Final = 24
_LABEL_COLUMNS: Final = 28
_NOTE_LETTERS: Final = 40
_LEAST_WIDTH: Final = 4.0


@dataclass(frozen=True, slots=True)
class Series:
    """One part of a stacked bar.

    Attributes:
        name: What the legend says.
        colour: Fill.
        ink: Colour of a number on the fill.
    """

    name: str
    colour: Paint
    ink: Paint


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of a chart.

    Attributes:
        label: What it is about, left of the bar.
        values: One number for each series.
        notes: What it says right of the bar, one for each heading.
    """

    label: str
    values: tuple[float, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One row of columns in a chart over time.

    Attributes:
        title: What the columns show.
        values: One for each column, oldest first; a negative one is hollow.
        top: What a full column stands for; 0 means the largest value.
        last: What the last column says, in words.
        scale: What a full column stands for, in words.
        colour: Fill.
    """

    title: str
    values: tuple[float, ...]
    top: float
    last: str
    scale: str
    colour: Paint


def share_chart(title: str, bars: Sequence[Bar], series: Sequence[Series], headings: Sequence[str]) -> str:
    """Return an SVG of bars of equal length that show the shares of their parts.

    Args:
        title: Heading.
        bars: Rows; their values are whole numbers, not negative.
        series: What the values stand for. Those that are zero in every bar are left out of the legend.
        headings: What each of the notes is.
    """
    used = [position for position in range(len(series)) if any(bar.values[position] for bar in bars)]
    rows = _Rows(title, bars, headings, top=84)
    _legend(rows.card, [series[position] for position in used])
    for bar, y in rows:
        x = rows.left
        for position, width in zip(used, _widths([bar.values[position] for position in used], rows.span), strict=True):
            if width:
                _segment(rows.card, x, y, width, series[position], f"{bar.values[position]:,.0f}")
            x += width
    return rows.card.svg()


def amount_chart(title: str, bars: Sequence[Bar], colour: Paint) -> str:
    """Return an SVG of bars on one scale, with one value each; a negative one is hollow and grows to the left.

    Args:
        title: Heading.
        bars: Rows.
        colour: Fill.
    """
    rows = _Rows(title, bars, [""], top=54)
    low = min([0.0, *(bar.values[0] for bar in bars)])
    high = max([0.0, *(bar.values[0] for bar in bars)])
    extent = (high - low) or 1.0
    zero = rows.left + rows.span * (-low / extent)
    for bar, y in rows:
        width = rows.span * (abs(bar.values[0]) / extent)
        if bar.values[0]:
            width = min(max(width, _LEAST_WIDTH), rows.span)
            negative = bar.values[0] < 0
            start = max(rows.left, zero - width) if negative else min(zero, rows.left + rows.span - width)
            _bar(rows.card, start, y, width, colour, hollow=negative)
    return rows.card.svg()


_SLOT: Final = 82.5
_COLUMN: Final = 60
_PANELS: Final = 56
_PANEL_PITCH: Final = 98


def columns_chart(title: str, panels: Sequence[Panel], first: str, last: str) -> str:
    """Return an SVG of columns over time, the panels below one another; the last column is the one that matters.

    Args:
        title: Heading.
        panels: Rows of columns, of equal number.
        first: What stands under the first column.
        last: What stands under the last one.
    """
    card = Card(title, _PANELS + _PANEL_PITCH * len(panels) + 18)
    number = len(panels[0].values)
    pitch = min((WIDTH - 2 * _PADDING) / number, _SLOT)
    end = _PADDING + number * pitch
    for row, panel in enumerate(panels):
        y = _PANELS + _PANEL_PITCH * row
        card.text(_PADDING, y + 5, panel.title, paint=SOFT_INK)
        card.text(_PADDING + text_width(panel.title) + _GAP, y + 5, panel.last, weight="600")
        card.text(end, y + 5, panel.scale, paint=SOFT_INK, size=13, anchor="end")
        top = panel.top or max([0.0, *map(abs, panel.values)]) or 1.0
        for place, value in enumerate(panel.values):
            x = _PADDING + place * pitch
            card.rect(x + 1.5, y + 16, pitch - 3, _COLUMN, TRACK, radius=3)
            if value:
                height = min(max(abs(value) / top * _COLUMN, _LEAST_WIDTH), _COLUMN)
                column = card.rect(
                    x + 1.5, y + 16 + _COLUMN - height, pitch - 3, height, CARD if value < 0 else panel.colour, radius=3
                )
                if value < 0:
                    card.outline(column, panel.colour)
                elif place < number - 1:
                    column.set("opacity", "0.55")
    under = _PANELS + _PANEL_PITCH * len(panels) + 1
    card.text(_PADDING, under, first, paint=SOFT_INK, size=13)
    beside = _PADDING + text_width(first) + _GAP
    apart = beside + text_width(last) <= end
    card.text(end if apart else beside, under, last, size=13, anchor="end" if apart else "start")
    return card.svg()


def data_uri(svg: str) -> str:
    """Return ``svg`` as a URI that holds the whole image."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


class _Rows:
    """A card with a row a bar: label, track, notes. Iterating gives each bar and the height of its row."""

    def __init__(self, title: str, bars: Sequence[Bar], headings: Sequence[str], top: int) -> None:
        self._bars, self._top = bars, top
        self.card = Card(title, top + _PITCH * len(bars) + 8)
        labels = [fitted(bar.label, _LABEL_COLUMNS) for bar in bars]
        columns = [
            (heading, *(printable(bar.notes[place], _NOTE_LETTERS) for bar in bars))
            for place, heading in enumerate(headings)
        ]
        widths = [max(map(text_width, column)) + _NOTE_GAP for column in columns]
        self.left = _PADDING + max(map(text_width, labels), default=0.0) + _GAP
        self.span = WIDTH - _PADDING - sum(widths) - self.left
        edges = accumulate(widths, initial=self.left + self.span)
        next(edges)
        for edge, column in zip(edges, columns, strict=True):
            self.card.text(edge, top - 19, column[0], paint=SOFT_INK, anchor="end")
            for (_, y), note in zip(self, column[1:], strict=True):
                self.card.text(edge, y + 17, note, anchor="end")
        for (_, y), label in zip(self, labels, strict=True):
            self.card.text(self.left - _GAP, y + 17, label, anchor="end")
            self.card.rect(self.left, y, self.span, _BAR, TRACK, radius=4)

    def __iter__(self) -> Iterator[tuple[Bar, float]]:
        return ((bar, float(self._top + _PITCH * row)) for row, bar in enumerate(self._bars))


def _legend(card: Card, series: Iterable[Series]) -> None:
    """Say what the colours mean, under the title."""
    x = float(_PADDING)
    for each in series:
        card.rect(x, 53, 14, 14, each.colour, radius=3)
        card.text(x + 20, 65, each.name, paint=SOFT_INK)
        x += 20 + text_width(each.name) + 16


def _segment(card: Card, x: float, y: float, width: float, series: Series, number: str) -> None:
    """Draw one part of a bar, with its number if that fits."""
    _bar(card, x, y, width, series.colour)
    if text_width(number) + 10 <= width:
        middle, line = x + width / 2, y + _BAR / 2 + 4.5
        card.text(middle, line, number, size=13, paint=series.ink, anchor="middle", weight="600")


def _bar(card: Card, x: float, y: float, width: float, colour: Paint, *, hollow: bool = False) -> None:
    gap = 0.75 if width > _LEAST_WIDTH else 0.5
    rect = card.rect(x + gap, y, width - 2 * gap, _BAR, CARD if hollow else colour, radius=3)
    if hollow:
        card.outline(rect, colour)


def _widths(values: Sequence[float], span: float) -> list[float]:
    """Share ``span`` out in proportion; what is not zero stays visible, at the cost of the widest."""
    total = sum(values)
    if not total:
        return [0.0] * len(values)
    widths = [max(value / total * span, _LEAST_WIDTH) if value else 0.0 for value in values]
    widths[widths.index(max(widths))] -= sum(widths) - span
    return widths
