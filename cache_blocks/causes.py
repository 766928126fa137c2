"""Causes: what the reasons of many misses have in common, without the values, times and names that differ."""

from __future__ import annotations

import re
from typing import Final

from cache_blocks.entry import Outcome
from cache_blocks.explaining import CHANGED
from cache_blocks.plan import INVALIDATED_BY

MAX_LETTERS: Final = 120
_PARTS: Final = 3
_MORE: Final = re.compile(r"and \d+ more")


def cause_of(outcome: str, reason: str) -> str:
    """Return the cause of a miss or of a call that looked away; empty for a hit and what is no lookup.

    Args:
        outcome: Outcome of the lookup.
        reason: Its reason, as the event has it.

    Returns:
        Such as ``never seen``, ``expired``, ``invalidated by tag`` or ``changed: engine.model, audio``.
    """
    if outcome in ("", Outcome.HIT):
        return ""
    if parts := changed_parts(reason):
        more = len(parts) - _PARTS
        return (CHANGED + ", ".join(parts[:_PARTS]) + (f" and {more} more" if more > 0 else ""))[:MAX_LETTERS]
    if outcome == Outcome.INVALIDATED and reason.startswith(INVALIDATED_BY):
        return INVALIDATED_BY + reason.removeprefix(INVALIDATED_BY).partition(":")[0].partition(" ")[0][:MAX_LETTERS]
    if outcome in (Outcome.MISS, Outcome.BYPASSED):  # whose reasons say what they are before they say which
        return reason.partition(":")[0][:MAX_LETTERS] or outcome
    return outcome.replace("_", " ")


def changed_parts(reason: str) -> tuple[str, ...]:
    """Return the names of the parts that have changed since the same work was last cached; empty if that is not why."""
    return tuple(change.partition(": ")[0] for change in changes(reason) if not _MORE.fullmatch(change))


def changes(reason: str) -> list[str]:
    """Return what has changed, each part with its old and new value, such as ``engine.model: tiny.en -> base``."""
    return reason.removeprefix(CHANGED).split("; ") if reason.startswith(CHANGED) else []
