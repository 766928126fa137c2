"""Bar charts as SVG, for places that show images and nothing else, such as a Prefect artifact.

Each chart brings a light card of its own, so that it reads the same in a light and in a dark theme: an image cannot
know which of the two the page around it has chosen.
"""

from __future__ import annotations

import base64
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cache_blocks.wording import printable

_WIDTH: Final = 700  # what the narrower of Prefect's two UIs shows unscaled
_PADDING: Final = 20
_GAP: Final = 14
_PITCH: Final = 34
_BAR: Final = 24
_NOTE_WIDTH: Final = 120.0
_LABEL_COLUMNS: Final = 28
_LEAST_WIDTH: Final = 4.0

_CARD: Final = "#fbfcfd"
_BORDER: Final = "#d3d9e0"
_TRACK: Final = "#edf0f3"
_INK: Final = "#1b2430"
_SOFT_INK: Final = "#525f6f"
_NARROW: Final = frozenset("fijlrtI .,:;|'-!")
_BROAD: Final = frozenset("mwMW%")
_FONTS: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"


@dataclass(frozen=True, slots=True)
class Series:
    """One part of a stacked bar.

    Attributes:
        name: What the legend says.
        colour: Fill.
        ink: Colour of a number on the fill.
    """

    name: str
    colour: str
    ink: str = _INK


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of a chart.

    Attributes:
        label: What it is about, left of the bar.
        values: One number for each series.
        note: What it says, right of the bar.
    """

    label: str
    values: tuple[float, ...]
    note: str


def share_chart(title: str, bars: Sequence[Bar], series: Sequence[Series]) -> str:
    """Return an SVG of bars of equal length that show the shares of their parts.

    Args:
        title: Heading.
        bars: Rows; their values are whole numbers, not negative.
        series: What the values stand for. Those that are zero in every bar are left out of the legend.
    """
    used = [position for position in range(len(series)) if any(bar.values[position] for bar in bars)]
    chart = _Chart(title, bars, legend=[series[position] for position in used])
    for row, bar in enumerate(bars):
        chart.track(row)
        widths = _widths([bar.values[position] for position in used], chart.span)
        x = chart.left
        for position, width in zip(used, widths, strict=True):
            if width:
                chart.segment(row, x, width, series[position], f"{bar.values[position]:,.0f}")
            x += width
    return chart.svg()


def amount_chart(title: str, bars: Sequence[Bar], series: Series) -> str:
    """Return an SVG of bars on one scale, with one value each; a negative one is hollow and grows to the left.

    Args:
        title: Heading.
        bars: Rows.
        series: How the bars look; it has no legend.
    """
    chart = _Chart(title, bars, legend=[])
    low = min([0.0, *(bar.values[0] for bar in bars)])
    high = max([0.0, *(bar.values[0] for bar in bars)])
    extent = (high - low) or 1.0
    zero = chart.left + chart.span * (-low / extent)
    for row, bar in enumerate(bars):
        chart.track(row)
        width = chart.span * (abs(bar.values[0]) / extent)
        if bar.values[0]:
            width = min(max(width, _LEAST_WIDTH), chart.span)
            negative = bar.values[0] < 0
            start = max(chart.left, zero - width) if negative else min(zero, chart.left + chart.span - width)
            chart.segment(row, start, width, series, "", hollow=negative)
    return chart.svg()


def data_uri(svg: str) -> str:
    """Return ``svg`` as a URI that holds the whole image."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


class _Chart:
    """A card with a title, a legend, and a row a bar. Lengths are in pixels."""

    def __init__(self, title: str, bars: Sequence[Bar], legend: Sequence[Series]) -> None:
        labels = [_fitted(bar.label, _LABEL_COLUMNS) for bar in bars]
        notes = [printable(bar.note, 40) for bar in bars]
        self._top = 84 if legend else 54
        self._height = self._top + _PITCH * len(bars) + 8
        self.left = _PADDING + max(map(_text_width, labels), default=0.0) + _GAP
        right = _WIDTH - _PADDING - max([_NOTE_WIDTH, *map(_text_width, notes)]) - _GAP
        self.span = right - self.left
        size = {"width": str(_WIDTH), "height": str(self._height), "viewBox": f"0 0 {_WIDTH} {self._height}"}
        self._svg = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", **size})
        self._svg.set("font-family", _FONTS)
        ET.SubElement(self._svg, "title").text = printable(title, 80)
        self._rect(0.5, 0.5, _WIDTH - 1, self._height - 1, _CARD, radius=10).set("stroke", _BORDER)
        self._text(_PADDING, 33, printable(title, 80), size=17, weight="600")
        self._draw_legend(legend)
        for row, (label, note) in enumerate(zip(labels, notes, strict=True)):
            self._text(self.left - _GAP, self._middle(row) + 5, label, anchor="end")
            self._text(right + _GAP, self._middle(row) + 5, note)

    def track(self, row: int) -> None:
        """Draw the full length that a bar could have."""
        self._rect(self.left, self._middle(row) - _BAR / 2, self.span, _BAR, _TRACK, radius=4)

    def segment(self, row: int, x: float, width: float, series: Series, number: str, *, hollow: bool = False) -> None:
        """Draw one part of a bar, with its number if that fits."""
        gap = 0.75 if width > _LEAST_WIDTH else 0.5
        y = self._middle(row) - _BAR / 2
        rect = self._rect(x + gap, y, width - 2 * gap, _BAR, _CARD if hollow else series.colour, radius=3)
        if hollow:
            rect.set("stroke", series.colour)
            rect.set("stroke-width", "2")
        if number and _text_width(number) + 10 <= width:
            self._text(
                x + width / 2,
                y + _BAR / 2 + 4.5,
                number,
                size=13,
                ink=series.ink,
                anchor="middle",
                weight="600",
            )

    def svg(self) -> str:
        """Return the chart as text."""
        return ET.tostring(self._svg, encoding="unicode")

    def _draw_legend(self, legend: Sequence[Series]) -> None:
        x = float(_PADDING)
        for series in legend:
            self._rect(x, 53, 14, 14, series.colour, radius=3)
            self._text(x + 20, 65, series.name, ink=_SOFT_INK)
            x += 20 + _text_width(series.name) + 20

    def _middle(self, row: int) -> float:
        return self._top + _PITCH * row + _BAR / 2

    def _rect(self, x: float, y: float, width: float, height: float, fill: str, *, radius: int) -> ET.Element:
        lengths = {"x": x, "y": y, "width": width, "height": height, "rx": radius}
        attributes = {name: _pixels(length) for name, length in lengths.items()}
        return ET.SubElement(self._svg, "rect", attributes | {"fill": fill})

    def _text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int = 14,
        ink: str = _INK,
        anchor: str = "start",
        weight: str = "400",
    ) -> None:
        attributes = {"x": _pixels(x), "y": _pixels(y), "font-size": str(size), "font-weight": weight}
        ET.SubElement(self._svg, "text", attributes | {"fill": ink, "text-anchor": anchor}).text = text


def _widths(values: Sequence[float], span: float) -> list[float]:
    """Share ``span`` out in proportion; what is not zero stays visible, at the cost of the widest."""
    total = sum(values)
    if not total:
        return [0.0] * len(values)
    widths = [max(value / total * span, _LEAST_WIDTH) if value else 0.0 for value in values]
    widths[widths.index(max(widths))] -= sum(widths) - span
    return widths


def _columns(text: str) -> int:
    """Columns that a text takes where a wide letter, such as a Chinese one, takes two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _fitted(text: str, columns: int) -> str:
    for limit in range(columns, 0, -1):
        if _columns(fitted := printable(text, limit)) <= columns:
            return fitted
    return "…"


def _text_width(text: str) -> float:
    """Estimate for letters 14 pixels high, on the safe side for any of the fonts named above."""
    return sum(5.0 if letter in _NARROW else 12.5 if letter in _BROAD else 8.6 * _columns(letter) for letter in text)


def _pixels(length: float) -> str:
    return f"{length:.1f}".removesuffix(".0")
