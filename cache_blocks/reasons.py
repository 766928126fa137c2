"""Why things went as they did: events grouped by reason, as parts of a markdown report."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cache_blocks import events as actions
from cache_blocks.causes import changed_parts, changes
from cache_blocks.entry import Outcome
from cache_blocks.events import CacheEvent
from cache_blocks.explaining import CHANGED
from cache_blocks.wording import counted, escaped, link

NO_KIND: Final = "(no kind)"
"""Stands for the kind of a call that could not have a key."""

# Bounds that keep a report readable, and small whatever the run.
_ROWS: Final = 20
_BULLETS: Final = 6
_REASONS: Final = 4
_NAMES: Final = 5
_NAME_LETTERS: Final = 60
_REASON_LETTERS: Final = 200
_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True, order=True)
class Subject:
    """What an event was about, such as a file.

    Attributes:
        name: What people call it.
        task_run_id: Task run that looked it up, if it was one.
    """

    name: str
    task_run_id: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Events that have their reason in common.

    Attributes:
        about: Kind or tier.
        reason: Why, in words for a person.
        count: Number of events.
        subjects: What they were about; sorted, each name once.
    """

    about: str
    reason: str
    count: int
    subjects: tuple[Subject, ...]


def kind_of(event: CacheEvent) -> str:
    """Return the kind."""
    return event.kind or NO_KIND


def tier_of(event: CacheEvent) -> str:
    """Return the tier, as people call it."""
    return event.tier.replace("_", " ") or "(no tier)"


def group_by_reason(events: Iterable[CacheEvent], about: Callable[[CacheEvent], str] = kind_of) -> list[Group]:
    """Return groups by what the events are about, outcome and reason, the largest first.

    Misses of which the same parts have changed share a group, whatever their values. Where one thing has many reasons
    with one outcome, the rarer ones share a group, which names one of them.
    """
    sorts: defaultdict[tuple[str, str], defaultdict[str, list[CacheEvent]]]
    sorts = defaultdict(lambda: defaultdict(list[CacheEvent]))
    for event in events:
        sorts[about(event), event.outcome][", ".join(changed_parts(event.reason)) or _reason(event)].append(event)
    groups = [
        Group(name, reason, len(members), _subjects(members))
        for (name, outcome), by_reason in sorts.items()
        for reason, members in _merged(outcome, list(by_reason.values()))
    ]
    return sorted(groups, key=lambda group: (-group.count, group.about, group.reason))


def reason_section(heading: str, events: Sequence[CacheEvent], ui_url: str = "") -> Iterator[str]:
    """Yield the markdown of a section: for each kind its reasons with the number of calls and what they were about.

    A list and not a table, because Prefect's UI wraps the lines of a list and cuts off those of a table. Names link
    to the task runs that looked them up.
    """
    if not events:
        return
    groups = group_by_reason(events)
    shown, rest = sorted(groups[:_ROWS], key=lambda group: group.about), groups[_ROWS:]
    yield f"## {heading}"
    yield "\n".join(
        f"- **{escaped(group.about, _NAME_LETTERS)}**: {group.count:,} {_why(group)}{_names(group, ui_url)}"
        for group in shown
    )
    if rest:
        yield f"And {sum(group.count for group in rest):,} more, for {counted(len(rest), 'other reason')}."


def warnings_of(events: Iterable[CacheEvent], ui_url: str = "") -> list[str]:
    """Return one line of markdown for each thing that somebody may want to see to."""
    of: defaultdict[str, list[CacheEvent]] = defaultdict(list)
    for event in events:
        of[event.action].append(event)

    def lost(group: Group) -> str:
        return f"**{escaped(group.about, _NAME_LETTERS)}** lost {counted(group.count, 'write')}: {_why(group)}"

    def unstored(group: Group) -> str:
        return f"{_results(group)} not stored: {_why(group)}{_names(group, ui_url)}"

    def unleased(group: Group) -> str:
        return (
            f"{_results(group)} computed without a lease, perhaps more than once: {_why(group)}{_names(group, ui_url)}"
        )

    def near_limit(group: Group) -> str:
        return f"{_results(group)} near the largest that is kept: {_why(group)}{_names(group, ui_url)}"

    return [
        *_outages(of[actions.TIER_DOWN], of[actions.TIER_UP]),
        *_bullets(group_by_reason(of[actions.LOST], tier_of), lost),
        *_bullets(group_by_reason(of[actions.UNSTORED]), unstored),
        *_bullets(group_by_reason(of[actions.UNLEASED]), unleased),
        *_bullets(group_by_reason(of[actions.NEAR_LIMIT]), near_limit),
    ]


def _outages(downs: Sequence[CacheEvent], ups: Sequence[CacheEvent]) -> Iterator[str]:
    returns = Counter(map(tier_of, ups))
    groups = group_by_reason(downs, tier_of)
    for tier in sorted({group.about for group in groups})[:_BULLETS]:
        mine = [group for group in groups if group.about == tier]
        times = counted(sum(group.count for group in mine), "time")
        back = f"came back {counted(returns[tier], 'time')}" if returns[tier] else "did not come back"
        yield f"**{escaped(tier, _NAME_LETTERS)}** went down {times} and {back}: {'; '.join(map(_why, mine))}"


def _reason(event: CacheEvent) -> str:
    """The reason, beginning with the outcome where that is more than a plain miss."""
    outcome = event.outcome.replace("_", " ")
    reason = " ".join(event.reason.split())
    if not reason:
        return outcome or "no reason given"
    plain = event.outcome in ("", Outcome.MISS, Outcome.BYPASSED) or reason.startswith(outcome)
    return reason if plain else f"{outcome}: {reason}"


def _merged(outcome: str, groups: Sequence[list[CacheEvent]]) -> Iterator[tuple[str, list[CacheEvent]]]:
    ranked = sorted(((_common(members), members) for members in groups), key=lambda group: (-len(group[1]), group[0]))
    ages_only = outcome == Outcome.EXPIRED and len(ranked) > 1
    kept = 0 if ages_only else len(ranked) if len(ranked) <= _REASONS else _REASONS - 1
    yield from ranked[:kept]
    if rest := ranked[kept:]:
        many = "expired at different times" if ages_only else f"{len(rest):,} other reasons"
        yield f"{many}, such as: {rest[0][0]}", [event for _, members in rest for event in members]


def _common(members: Sequence[CacheEvent]) -> str:
    """The reason of events that have it in common, or of which the same parts have changed."""
    told = Counter(_reason(event) for event in members)
    if len(told) == 1:
        return next(iter(told))
    parts = zip(*(changes(event.reason) for event in members), strict=False)
    return CHANGED + "; ".join(_in_short(Counter(of_part)) for of_part in parts)


def _in_short(of_part: Counter[str]) -> str:
    ranked = sorted(of_part, key=lambda change: (-of_part[change], change))
    return ranked[0] if len(ranked) == 1 else f"{ranked[0]} and {counted(len(ranked) - 1, 'other change')} of it"


def _subjects(members: Iterable[CacheEvent]) -> tuple[Subject, ...]:
    runs: dict[str, str] = {}
    for event in members:
        if name := event.origin.subject or event.origin.task:
            runs[name] = max(runs.get(name, ""), event.origin.task_run_id)
    return tuple(Subject(name, run) for name, run in sorted(runs.items()))


def _why(group: Group) -> str:
    return escaped(group.reason, _REASON_LETTERS)


def _names(group: Group, ui_url: str) -> str:
    if not group.subjects:
        return ""
    shown = ", ".join(_linked(subject, ui_url) for subject in group.subjects[:_NAMES])
    more = len(group.subjects) - _NAMES
    return f" ({shown} and {more:,} more)" if more > 0 else f" ({shown})"


def _linked(subject: Subject, ui_url: str) -> str:
    name = escaped(subject.name, _NAME_LETTERS)
    return link(name, f"{ui_url}/runs/task-run/{subject.task_run_id}") if _ID.fullmatch(subject.task_run_id) else name


def _results(group: Group) -> str:
    return f"{counted(group.count, 'result')} of {escaped(group.about, _NAME_LETTERS)}"


def _bullets(groups: Sequence[Group], sentence: Callable[[Group], str]) -> Iterator[str]:
    yield from map(sentence, groups[:_BULLETS])
    if rest := groups[_BULLETS:]:
        yield f"{sum(group.count for group in rest):,} more of this sort, for {counted(len(rest), 'other reason')}"
