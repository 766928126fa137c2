"""How numbers and names are put into words, and words into markdown. Standard library only."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Final

NONE: Final = "–"  # noqa: RUF001 - a dash for what there is not

# What markdown would read as its own: marks, entities, tags, and what it turns into links.
_MARKUP: Final = re.compile(r"[\\`*\[\]<>&#~|@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)
_LARGEST_WHOLE: Final = 999.5
_LARGEST_TENTH: Final = 9.95
_MOST_DECIMALS: Final = 6


def seconds_in_words(seconds: float) -> str:
    """Return a duration in its two largest units, such as ``2 min 3 s``, ``4.2 s`` or ``-30 ms``."""
    sign, amount = ("-" if seconds < 0 else ""), abs(seconds)
    if amount * 1000 < _LARGEST_WHOLE:
        milliseconds = round(amount * 1000)
        return f"{sign}{milliseconds} ms" if milliseconds else "0 s"
    if amount < _LARGEST_TENTH:
        return f"{sign}{amount:.1f} s"
    left = round(amount)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    first = next(place for place, (_, length) in enumerate(units) if left >= length)
    parts: list[str] = []
    for unit, length in units[first : first + 2]:
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count:,} {unit}")
    return sign + " ".join(parts)


def bytes_in_words(count: int) -> str:
    """Return a number of bytes in decimal units, such as ``512 B``, ``1.2 MB`` or ``46 GB``."""
    amount, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if amount < _LARGEST_WHOLE:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.1f} {unit}" if unit != "B" and amount < _LARGEST_TENTH else f"{amount:,.0f} {unit}"


def money_in_words(amount: float, currency: str) -> str:
    """Return an amount of money with its currency, small ones to two digits, such as ``1.20 USD`` or ``0.0034 USD``."""
    decimals = 2
    while decimals < _MOST_DECIMALS and 0 < abs(amount) * 10**decimals < 10:  # noqa: PLR2004 - two digits
        decimals += 1
    return f"{amount:,.{decimals}f} {currency}"


def moment_in_words(at: float) -> str:
    """Return a time in UTC, such as ``2026-11-22 18:05 UTC``."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))


def share_in_words(part: int, whole: int) -> str:
    """Return a share in per cent. ``0 %`` and ``100 %`` mean none and all, never almost; a dash is none of none."""
    if not whole:
        return NONE
    if 0 < part < whole:
        percent = min(max(round(100 * part / whole), 1), 99)
        return f"{percent} %"
    return "100 %" if part else "0 %"


def counted(number: int, singular: str, plural: str = "") -> str:
    """Return a number with its noun, such as ``1 miss`` or ``1,200 misses``."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def printable(text: str, limit: int) -> str:
    r"""Return ``text`` on one line, at most ``limit`` characters, the middle left out.

    What has no glyph becomes "\ufffd": lone surrogates (from undecodable file names), control characters, which XML
    forbids, and marks that turn the direction of writing.
    """
    one_line = " ".join(text.split())
    clean = "".join(letter if letter.isprintable() else "\ufffd" for letter in one_line)
    if len(clean) <= limit:
        return clean
    tail = (limit - 1) // 3
    return f"{clean[: limit - 1 - tail]}…{clean[len(clean) - tail :]}"


def escaped(text: str, limit: int) -> str:
    """Return ``text`` so that markdown shows it as it is, also in a table: `printable`, its marks escaped."""
    return _MARKUP.sub(lambda mark: f"\\{mark.group()}", printable(text, limit)) or NONE


def link(text: str, address: str) -> str:
    """Return a link in markdown.

    Args:
        text: What it says, already markdown.
        address: Where it leads, an address without brackets and spaces.
    """
    return f"[{text}]({address})"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[str] = ()) -> str:
    """Return a table in markdown.

    Args:
        columns: Headings.
        rows: Cells, already markdown.
        numbers: Headings of columns that are aligned right.
    """
    rule = ["---:" if column in numbers else "---" for column in columns]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows))
