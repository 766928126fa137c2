"""Cards in SVG: rectangles and lines of text, in the colours of a light theme and of a dark one.

A card has its own background, so that it is legible on any page. Browsers apply the dark colours where the page around
the image is dark; what knows no themes shows the light ones.
"""

from __future__ import annotations

import unicodedata
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Final

from cache_blocks.wording import printable

WIDTH: Final = 700  # what the narrower of Prefect's two UIs shows unscaled
_FONTS: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"
_NARROW: Final = frozenset("fijlrtI .,:;|'-!")
_BROAD: Final = frozenset("mwMW%")


@dataclass(frozen=True, slots=True)
class Paint:
    """A colour in both themes.

    Attributes:
        name: Class of what is painted.
        light: Colour in a light theme.
        dark: Colour in a dark theme.
    """

    name: str
    light: str
    dark: str


CARD: Final = Paint("card", "#fbfcfd", "#1b1c20")
BORDER: Final = Paint("border", "#d3d9e0", "#3d4048")
TRACK: Final = Paint("track", "#e9edf1", "#2a2c32")
INK: Final = Paint("ink", "#1b2430", "#eceef2")
SOFT_INK: Final = Paint("soft", "#525f6f", "#a9b1bd")

DARK_INK: Final = Paint("dark-ink", "#0c1116", "#0c1116")
"""On what is light in both themes."""
LIGHT_INK: Final = Paint("light-ink", "#ffffff", "#ffffff")
"""On what is dark in both themes."""
OPPOSITE_INK: Final = Paint("opposite-ink", "#ffffff", "#0c1116")
"""On what is dark in the light theme, and light in the dark one."""


class Card:
    """A card with a title. Lengths are in pixels."""

    def __init__(self, title: str, height: int) -> None:
        size = {"width": str(WIDTH), "height": str(height), "viewBox": f"0 0 {WIDTH} {height}"}
        self._svg = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", **size})
        self._svg.set("font-family", _FONTS)
        ET.SubElement(self._svg, "title").text = printable(title, 80)
        self._style = ET.SubElement(self._svg, "style")
        self._filled: dict[str, Paint] = {}
        self._outlined: dict[str, Paint] = {}
        self.outline(self.rect(0.5, 0.5, WIDTH - 1, height - 1, CARD, radius=10), BORDER, width=1)
        self.text(20, 33, printable(title, 80), size=17, weight="600")

    def rect(self, x: float, y: float, width: float, height: float, paint: Paint, *, radius: int) -> ET.Element:
        """Draw a rectangle."""
        lengths = {"x": x, "y": y, "width": width, "height": height, "rx": radius}
        attributes = {name: _pixels(length) for name, length in lengths.items()}
        return ET.SubElement(self._svg, "rect", attributes | self._painted(paint))

    def outline(self, rect: ET.Element, paint: Paint, *, width: int = 2) -> None:
        """Draw the edge of a rectangle."""
        self._outlined[paint.name] = paint
        rect.set("class", f"{rect.get('class')} {paint.name}-edge")
        rect.set("stroke", paint.light)
        rect.set("stroke-width", str(width))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int = 14,
        paint: Paint = INK,
        anchor: str = "start",
        weight: str = "400",
    ) -> None:
        """Write a line."""
        attributes = {"x": _pixels(x), "y": _pixels(y), "font-size": str(size), "font-weight": weight}
        ET.SubElement(self._svg, "text", attributes | self._painted(paint) | {"text-anchor": anchor}).text = text

    def svg(self) -> str:
        """Return the chart as text."""
        fills = [f".{name}{{fill:{paint.dark}}}" for name, paint in self._filled.items()]
        edges = [f".{name}-edge{{stroke:{paint.dark}}}" for name, paint in self._outlined.items()]
        self._style.text = f"@media (prefers-color-scheme:dark){{{''.join(fills + edges)}}}"
        return ET.tostring(self._svg, encoding="unicode")

    def _painted(self, paint: Paint) -> dict[str, str]:
        self._filled[paint.name] = paint
        return {"fill": paint.light, "class": paint.name}


def _columns(text: str) -> int:
    """Columns that a text takes where a wide letter, such as a Chinese one, takes two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def fitted(text: str, columns: int) -> str:
    """Return ``text`` shortened to so many columns, of which a wide letter takes two."""
    for limit in range(columns, 0, -1):
        if _columns(fitted := printable(text, limit)) <= columns:
            return fitted
    return "…"


def text_width(text: str) -> float:
    """Estimate for letters 14 pixels high, on the safe side for any of the fonts named above."""
    return sum(5.0 if letter in _NARROW else 12.5 if letter in _BROAD else 8.6 * _columns(letter) for letter in text)


def _pixels(length: float) -> str:
    return f"{length:.1f}".removesuffix(".0")
