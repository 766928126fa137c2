"""The report of a run: its sums, its words, its charts, and names that would break all three."""

from __future__ import annotations

import base64
import json
import random
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from cache_blocks import events as actions
from cache_blocks.charts import Bar, Panel, Series, amount_chart, columns_chart, share_chart
from cache_blocks.drawing import INK, Paint, text_width
from cache_blocks.entry import Outcome
from cache_blocks.events import CacheEvent, Origin
from cache_blocks.kinds import CacheKind
from cache_blocks.metrics import CacheMetrics
from cache_blocks.plan import limit_nearby
from cache_blocks.report import hits_table, render_report
from cache_blocks.runs import Run
from cache_blocks.wording import (
    NONE,
    bytes_in_words,
    escaped,
    money_in_words,
    printable,
    seconds_in_words,
    share_in_words,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from markdown_it.token import Token

SVG = "{http://www.w3.org/2000/svg}"
GREY = Paint("grey", "#8791a0", "#6b7280")
TIERS = ("memory", "redis", "sql", "object_store")
TIER_COLUMNS = ("memory", "redis", "sql", "object store")

# Everything that a file system, a kind or an exception can come up with, undecodable bytes included.
any_text = st.text(st.characters(exclude_categories=()), max_size=90)


def lookup(kind: str, outcome: str, *, subject: str = "", **fields: Any) -> CacheEvent:
    return CacheEvent(actions.LOOKUP, kind, outcome=outcome, origin=Origin(subject=subject), at=1.0, **fields)


@st.composite
def lookups(draw: st.DrawFn) -> CacheEvent:
    outcome = draw(st.sampled_from(list(Outcome)))
    return lookup(
        draw(st.sampled_from(["transcript", "ai-enhancement", "audio-preprocessing", "all", ""])),
        outcome,
        tier=draw(st.sampled_from(TIERS)) if outcome is Outcome.HIT else "",
        stored_bytes=draw(st.integers(0, 10**9)),
        seconds_saved=draw(st.floats(-10, 10**6)),
    )


def hit(kind: str, tier: str, **fields: Any) -> CacheEvent:
    return lookup(kind, Outcome.HIT, tier=tier, **fields)


def miss(kind: str, subject: str, reason: str = "never seen", outcome: str = Outcome.MISS) -> CacheEvent:
    return lookup(kind, outcome, subject=subject, reason=reason)


def happened(action: str, subject: str = "", **fields: Any) -> CacheEvent:
    return CacheEvent(action, origin=Origin(subject=subject), at=1.0, **fields)


def report(events: Sequence[CacheEvent], title: str = "nightly") -> str:
    return render_report(events, title=title)


def parsed(markdown: str) -> list[Token]:
    """Tokens as a renderer sees them: tables as on GitHub, HTML recognised, images of any address."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    parser.validateLink = lambda url: True  # noqa: ARG005 # pyright: ignore[reportAttributeAccessIssue]
    return [inner for token in parser.parse(markdown) for inner in (token, *(token.children or []))]


def charts(markdown: str) -> list[ET.Element]:
    """The images of a report; parsing fails when one is not well-formed."""
    found = re.findall(r"\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", markdown)
    return [ET.fromstring(base64.b64decode(data)) for data in found]  # noqa: S314 - our own


def words(chart: ET.Element) -> list[str]:
    return ["".join(text.itertext()) for text in chart.iter(f"{SVG}text")]


def table(markdown: str) -> list[list[str]]:
    """Cells of the one table of a report, as a reader sees them."""
    tokens = parsed(markdown)
    rows: list[list[str]] = []
    for token, content in pairwise(tokens):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            rows[-1].append("".join(child.content for child in content.children or []))
    return rows


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def colours(chart: ET.Element, theme: str) -> Callable[..., str]:
    """What paints an element in a theme: its own colour, or that of its class where the page is dark."""
    style = next(chart.iter(f"{SVG}style")).text or ""
    dark = dict(re.findall(r"\.([a-z-]+)\{(?:fill|stroke):(#[0-9a-f]{6})\}", style))

    def colour(element: ET.Element, what: str = "fill") -> str:
        if theme == "light":
            return element.attrib[what]
        edge = what == "stroke"
        return next(dark[name] for name in element.attrib["class"].split() if name.endswith("-edge") == edge)

    return colour


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


MIXED = [
    *[hit("transcript", "redis", stored_bytes=2_000, seconds_saved=30.75, money_saved=0.21) for _ in range(4)],
    *[hit("transcript", "sql", stored_bytes=1_000) for _ in range(3)],
    hit("audio-preprocessing", "object_store", stored_bytes=1_500_000, seconds_saved=0.5),
    miss("transcript", "austen-870.mp3"),
    miss("transcript", "austen-880.wav", "expired 3 h ago", Outcome.EXPIRED),
    lookup("transcript", Outcome.BYPASSED, subject="poe.flac", reason="refreshed on request"),
    *[CacheEvent(actions.COMPUTED, "transcript", seconds=15.5, money=0.1, at=1.0) for _ in range(2)],
]
LAST_NIGHT = Run("0f2c0a96-5c79-4b51-a4ae-147508ff027b", "nightly", 1_763_776_800.0, 10, 5, 60.0, 0.42)


# The table


def test_a_row_says_what_its_kind_did_and_the_last_one_what_all_did() -> None:
    rows = hits_table(CacheMetrics.from_events(MIXED), "EUR")
    assert [row["kind"] for row in rows] == ["audio-preprocessing", "transcript", "all"]
    assert rows[1] == {
        "kind": "transcript",
        "lookups": 9,
        "hits": 7,
        "hit rate": "78 %",
        "memory": 0,
        "redis": 4,
        "sql": 3,
        "object store": 0,
        "bypassed": 1,
        "computed": 2,
        "read": "11 kB",
        "saved": "2 min 3 s",
        "cost saved": "0.84 EUR",
    }
    assert rows[2]["lookups"] == 10
    assert rows[2]["read"] == "1.5 MB"


def test_one_kind_needs_no_sum() -> None:
    assert [row["kind"] for row in hits_table(CacheMetrics.from_events([hit("transcript", "sql")]))] == ["transcript"]


@given(st.lists(lookups(), max_size=40))
def test_the_table_adds_up_to_the_metrics(events: list[CacheEvent]) -> None:
    metrics = CacheMetrics.from_events(events)
    rows = hits_table(metrics)
    kinds, all_row = (rows[:-1], rows[-1]) if len(rows) > 1 else (rows, rows[0] if rows else None)
    assert len(kinds) == len(metrics.by_kind)
    assert json.loads(json.dumps(rows)) == rows
    if all_row:
        for column in ("lookups", "hits", "bypassed", *TIER_COLUMNS):
            assert sum(row[column] for row in kinds) == all_row[column]
        assert (all_row["lookups"], all_row["hits"]) == (metrics.total, metrics.hits)
        assert [all_row[column] for column in TIER_COLUMNS] == [metrics.by_tier[tier] for tier in TIERS]
        assert all_row["bypassed"] == sum(event.outcome == Outcome.BYPASSED for event in events)
        assert all_row["read"] == bytes_in_words(sum(kind.stored_bytes for kind in metrics.by_kind.values()))
    for row in rows:
        assert sum(row[column] for column in TIER_COLUMNS) == row["hits"]


# The words


def test_the_headline_says_rate_and_what_was_saved_and_the_line_below_how_much_there_was() -> None:
    lines = render_report(MIXED, title="nightly", currency="EUR").split("\n\n")
    assert lines[0] == "# 80 % hit, 2 min 4 s and 0.84 EUR saved"
    assert lines[1] == ("**nightly** · 8 of 10 lookups hit · 2 misses · 2 computed in 31 s for 0.20 EUR · 1 bypassed")


def test_without_prices_nothing_is_said_of_money() -> None:
    assert report(MIXED).startswith("# 80 % hit, 2 min 4 s saved\n")
    assert not re.search("cost|EUR", report(MIXED))


def test_a_run_is_compared_with_the_one_before() -> None:
    markdown = render_report(
        MIXED, title="nightly", before=[LAST_NIGHT], currency="EUR", ui_url="https://prefect.example"
    )
    assert (
        "Against [the run of 2025-11-22 02:00 UTC](https://prefect.example/runs/flow-run/0f2c0a96-5c79-4b51-a4ae-"
        "147508ff027b): hit rate 50 % → **80 %** · saved 1 min → **2 min 4 s** · cost saved 0.42 EUR → **0.84 EUR**"
    ) in markdown


def test_a_run_that_is_as_good_as_the_one_before_says_just_that() -> None:
    whole = CacheMetrics.from_events(MIXED).whole
    same = replace(LAST_NIGHT, hits=8, seconds_saved=whole.seconds_saved)
    assert "No change against [the run of 2025-11-22 02:00 UTC](/runs/flow-run/" in render_report(
        MIXED, title="nightly", before=[same]
    )


def test_a_run_that_did_not_complete_says_so_at_the_top() -> None:
    assert render_report(MIXED, title="nightly", note="The flow run crashed.").split("\n\n")[2] == (
        "**The flow run crashed.**"
    )


def test_a_run_without_lookups_says_so_and_draws_nothing() -> None:
    assert render_report([], title="nightly", before=[LAST_NIGHT]) == "# No lookups\n\n**nightly**\n"


def test_calls_that_only_looked_away_are_no_lookups_but_are_listed() -> None:
    markdown = report([lookup("", Outcome.BYPASSED, subject="a.mp3", reason="the model cannot be hashed")])
    assert "# No lookups" in markdown
    assert "- **(no kind)**: 1 the model cannot be hashed (a.mp3)" in markdown
    assert table(markdown) == [["kind", "bypassed"], ["(no kind)", "1"]]
    assert not charts(markdown)


def test_lookups_that_cost_more_than_they_saved_are_admitted() -> None:
    markdown = report([hit("search-results", "sql", seconds_saved=-0.25)])
    assert "# 100 % hit, but looking up took 250 ms longer than computing had" in markdown
    assert "-250 ms" in words(charts(markdown)[0])


def test_the_table_says_by_tier_what_was_saved() -> None:
    columns, _, transcript, whole = table(report(MIXED))
    assert columns == ["kind", "hits", "saved", "redis", "sql", "object store", "computed", "bypassed", "read"]
    assert transcript == [
        "transcript",
        "7 of 9",
        "2 min 3 s",
        "4 · 2 min 3 s",
        "3 · 0 s",
        NONE,
        "2 · 31 s",
        "1",
        "11 kB",
    ]
    assert whole[:3] == ["all", "8 of 10", "2 min 4 s"]


def test_misses_are_grouped_by_kind_and_reason_the_most_frequent_first() -> None:
    events = [
        miss("transcript", "b.mp3"),
        miss("transcript", "a.mp3"),
        miss("transcript", "a.mp3"),
        miss("ai-enhancement", "a.mp3", "the digest does not fit", Outcome.CORRUPT),
        miss("transcript", "c.mp3", "redis: timed out", Outcome.TIER_DOWN),
    ]
    section = report(events).partition("## Misses\n\n")[2].partition("\n\n")[0]
    assert section.split("\n") == [
        "- **ai-enhancement**: 1 corrupt: the digest does not fit (a.mp3)",
        "- **transcript**: 3 never seen (a.mp3, b.mp3)",
        "- **transcript**: 1 tier down: redis: timed out (c.mp3)",
    ]


def test_misses_of_which_the_same_part_has_changed_are_one_line_with_old_and_new_value() -> None:
    events = [miss("transcript", f"{name}.mp3", "changed: engine.model: tiny.en -> base") for name in "ab"]
    events += [miss("transcript", "c.mp3", "changed: audio: content changed")]
    section = report(events).partition("## Misses")[2]
    assert "2 changed: engine.model: tiny.en -\\> base (a.mp3, b.mp3)" in section
    assert "1 changed: audio: content changed (c.mp3)" in section


def test_of_one_part_that_has_changed_in_many_ways_the_most_frequent_is_named() -> None:
    changes = ["small -> large", "small -> large", "small -> base", "base -> large"]
    events = [
        miss("transcript", "a.mp3", f"changed: engine.model: {change}; cache_version: 3 -> 4") for change in changes
    ]
    told = "4 changed: engine.model: small -\\> large and 2 other changes of it; cache_version: 3 -\\> 4 (a.mp3)"
    assert told in report(events)


def test_names_of_files_are_links_to_the_task_runs_that_looked_them_up() -> None:
    run = "758ce192-b51f-4818-96ba-9c7cf2faeead"
    missed = [
        replace(miss("transcript", "a.mp3"), origin=Origin(subject="a.mp3", task_run_id=run)),
        replace(miss("transcript", "b.mp3"), origin=Origin(subject="b.mp3", task_run_id="](javascript:alert(1))")),
    ]
    assert f"([a.mp3](/runs/task-run/{run}), b.mp3)" in report(missed)
    with_address = render_report(missed, title="nightly", ui_url="https://prefect.example")
    assert [token.attrs["href"] for token in parsed(with_address) if token.type == "link_open"] == [
        f"https://prefect.example/runs/task-run/{run}"
    ]


def test_many_files_with_one_reason_are_named_by_example() -> None:
    markdown = report([miss("transcript", f"call-{number:03}.mp3") for number in range(100)])
    names = "call-000.mp3, call-001.mp3, call-002.mp3, call-003.mp3, call-004.mp3 and 95 more"
    assert f"**transcript**: 100 never seen ({names})" in markdown


def test_reasons_that_differ_in_their_age_only_share_a_line() -> None:
    events = [miss("transcript", "a.mp3", f"expired {hours} h ago", Outcome.EXPIRED) for hours in (3, 3, 8)]
    assert "**transcript**: 3 expired at different times, such as: expired 3 h ago (a.mp3)" in report(events)


def test_rare_reasons_share_a_line_and_are_all_counted() -> None:
    events = [miss("transcript", "a.mp3", f"model: v{number} -> v9") for number in range(8) for _ in range(9 - number)]
    section = report(events).partition("## Misses")[2]
    assert "5 other reasons, such as: model: v3 -\\> v9" in section
    assert sum(int(count) for count in re.findall(r"- \*\*transcript\*\*: (\d+) ", section)) == len(events)


def test_warnings_name_tier_number_and_reason() -> None:
    events = [
        happened(actions.TIER_DOWN, tier="redis", reason="timed out"),
        happened(actions.TIER_UP, tier="redis"),
        happened(actions.TIER_DOWN, tier="redis", reason="timed out"),
        happened(actions.TIER_DOWN, tier="object_store", reason="refused"),
        *[happened(actions.LOST, tier="redis", kind="transcript", reason="out of memory") for _ in range(3)],
        happened(actions.UNSTORED, "a.mp3", kind="transcript", reason="a Thread cannot be stored"),
        happened(actions.UNLEASED, "b.mp3", kind="transcript", reason="redis: refused"),
        *[happened(actions.SHARED, kind="transcript", tier="sql") for _ in range(2)],
        happened(actions.INVALIDATED, reason="kind:transcript"),
        happened(actions.NEAR_LIMIT, "c.mp3", kind="search-results", reason="the kind keeps 4.2 MB at most"),
    ]
    markdown = render_report([*MIXED, *events], title="nightly", warnings=["7 events could not be kept"])
    assert markdown.partition("## Warnings\n\n")[2].partition("\n\n")[0].split("\n") == [
        "- **object store** went down 1 time and did not come back: refused",
        "- **redis** went down 2 times and came back 1 time: timed out",
        "- **redis** lost 3 writes: out of memory",
        "- 1 result of transcript not stored: a Thread cannot be stored (a.mp3)",
        "- 1 result of transcript computed without a lease, perhaps more than once: redis: refused (b.mp3)",
        "- 1 result of search-results near the largest that is kept: the kind keeps 4.2 MB at most (c.mp3)",
        "- 7 events could not be kept",
    ]
    assert "2 of the misses took the result of an equal call" in markdown
    assert "1 invalidation · **7 warnings**" in markdown


def test_a_run_in_which_all_went_well_has_no_section_on_trouble() -> None:
    markdown = report([hit("transcript", "sql", seconds_saved=1.0)])
    assert re.findall("^## (.*)", markdown, re.MULTILINE) == ["By kind"]
    assert "warning" not in markdown


@given(st.lists(lookups(), max_size=25), st.randoms(use_true_random=False))
def test_the_report_does_not_depend_on_the_order_of_events(events: list[CacheEvent], order: random.Random) -> None:
    shuffled = list(events)
    order.shuffle(shuffled)
    # Sums of fractions depend on their order in the last bits; whole seconds do not.
    whole = [
        [CacheEvent(e.action, e.kind, e.key, e.outcome, e.tier, at=1.0) for e in one] for one in (events, shuffled)
    ]
    assert report(whole[0]) == report(whole[1])


@pytest.mark.parametrize(
    "seconds, said",
    [
        (0, "0 s"),
        (0.0001, "0 s"),
        (0.03, "30 ms"),
        (-0.03, "-30 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (4.24, "4.2 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (123.4, "2 min 3 s"),
        (3600, "1 h"),
        (3605, "1 h"),
        (11_520, "3 h 12 min"),
        (86_400 * 1234 + 3600, "1,234 d 1 h"),
    ],
)
def test_seconds(seconds: float, said: str) -> None:
    assert seconds_in_words(seconds) == said


@pytest.mark.parametrize(
    "count, said",
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (9_960, "10 kB"), (999_600, "1.0 MB"), (46 * 10**9, "46 GB")],
)
def test_bytes(count: int, said: str) -> None:
    assert bytes_in_words(count) == said


@pytest.mark.parametrize(
    "amount, said",
    [
        (0, "0.00 EUR"),
        (1234.5, "1,234.50 EUR"),
        (0.42, "0.42 EUR"),
        (0.00341, "0.0034 EUR"),
        (0.0000001, "0.000000 EUR"),
    ],
)
def test_money_keeps_two_digits_however_small_it_is(amount: float, said: str) -> None:
    assert money_in_words(amount, "EUR") == said


@pytest.mark.parametrize(
    "part, whole, said",
    [(0, 0, NONE), (0, 9, "0 %"), (1, 10_000, "1 %"), (93, 100, "93 %"), (9_999, 10_000, "99 %"), (9, 9, "100 %")],
)
def test_no_share_but_all_is_100_percent_and_none_but_nothing_is_0(part: int, whole: int, said: str) -> None:
    assert share_in_words(part, whole) == said


def test_further_sections_stand_between_the_charts_and_the_misses() -> None:
    markdown = render_report(MIXED, title="nightly", sections=["## Plan", "As foreseen."])
    assert re.findall("^## (.*)", markdown, re.MULTILINE) == ["Plan", "Misses", "Bypassed", "By kind"]


def test_a_result_is_near_its_limit_only_where_larger_ones_have_no_other_place() -> None:
    nowhere_else = CacheKind("small", ttl=timedelta(days=1), tiers=frozenset({"sql"}), sql_max_bytes=1000)
    elsewhere = CacheKind("small", ttl=timedelta(days=1), sql_max_bytes=1000)
    assert [limit_nearby(nowhere_else, size) for size in (0, 799, 800, 1000)] == [0, 0, 1000, 1000]
    assert limit_nearby(elsewhere, 999) == 0


# The charts


def test_a_chart_shows_kinds_tiers_and_savings() -> None:
    (answered,) = charts(render_report(MIXED, title="nightly", currency="EUR"))
    assert {"redis", "sql", "object store", "misses", "78 %", "4", "3", "2"} <= set(words(answered))
    assert "memory" not in words(answered), "what did not happen needs no legend"
    assert {"transcript", "2 min 3 s", "500 ms", "0.84 EUR", NONE} <= set(words(answered))


def test_the_last_runs_of_a_flow_have_a_chart_in_which_this_one_stands_out() -> None:
    before = [replace(LAST_NIGHT, at=LAST_NIGHT.at + night * 86_400, hits=night) for night in range(10)]
    history = charts(render_report(MIXED, title="nightly", before=before))[1]
    assert {"The last 11 runs of this flow", "80 %", "2 min 4 s", "2025-11-22 02:00 UTC", "this run"} <= set(
        words(history)
    )
    rates = [rect for rect in history.iter(f"{SVG}rect") if rect.attrib["class"] == "hit-rate"]
    heights = [float(rect.attrib["height"]) for rect in rates]
    assert len(heights) == 10, "a run without a hit has no column"
    assert heights == [*sorted(heights[:-1]), pytest.approx(8 * heights[0], abs=3)]
    assert [rect for rect in rates if "opacity" not in rect.attrib] == rates[-1:]


def test_a_first_run_has_no_chart_of_runs() -> None:
    assert len(charts(report([miss("transcript", "a.mp3")]))) == 1


def test_the_parts_of_a_bar_fill_it_and_one_miss_in_a_million_is_seen() -> None:
    series = [Series("hits", Paint("hits", "#0072b2", "#0072b2"), INK), Series("misses", GREY, INK)]
    chart = ET.fromstring(share_chart("t", [Bar("a", (999_999, 1), ())], series, []))  # noqa: S314 - our own
    track, *_ = (rect.attrib for rect in chart.iter(f"{SVG}rect") if rect.attrib["class"] == "track")
    hits, misses = [rect.attrib for rect in chart.iter(f"{SVG}rect")][-2:]
    assert (hits["fill"], misses["fill"]) == ("#0072b2", GREY.light)
    assert float(misses["width"]) >= 3
    assert float(hits["x"]) == pytest.approx(float(track["x"]), abs=1)
    end = float(track["x"]) + float(track["width"])
    assert float(misses["x"]) + float(misses["width"]) == pytest.approx(end, abs=1)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=6))
def test_every_bar_of_amounts_stays_on_its_track(amounts: list[float]) -> None:
    svg = amount_chart("t", [Bar("a", (amount,), ("",)) for amount in amounts], GREY)
    rects = [rect.attrib for rect in ET.fromstring(svg).iter(f"{SVG}rect")]  # noqa: S314 - our own
    track = next(rect for rect in rects if rect["class"] == "track")
    bars = [rect for rect in rects if GREY.light in (rect["fill"], rect.get("stroke"))]
    left, width = float(track["x"]), float(track["width"])
    assert len(bars) == sum(amount != 0 for amount in amounts)
    for bar in bars:
        assert float(bar["width"]) > 0
        assert left - 0.2 <= float(bar["x"])
        assert float(bar["x"]) + float(bar["width"]) <= left + width + 0.2


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=20), st.floats(0, 1e9))
def test_every_column_stands_within_its_panel(amounts: list[float], top: float) -> None:
    panel = Panel("p", tuple(amounts), top, "", "", GREY)
    chart = ET.fromstring(columns_chart("t", [panel, panel], "first", "last"))  # noqa: S314 - our own
    inside = [rect.attrib for rect in chart.iter(f"{SVG}rect")][1:]
    tracks = {(rect["x"], rect["y"]): rect for rect in inside if rect["class"] == "track"}
    assert len(tracks) == 2 * len(amounts)
    lowest = {float(rect["y"]) + float(rect["height"]) for rect in tracks.values()}
    for column in (rect for rect in inside if rect["class"] != "track"):
        foot = float(column["y"]) + float(column["height"])
        assert any(foot == pytest.approx(low, abs=0.2) for low in lowest)
        assert 0 < float(column["height"]) <= 60


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_charts_are_legible_in_both_themes(theme: str) -> None:
    before = [replace(LAST_NIGHT, seconds_saved=seconds) for seconds in (-3.0, 4.0)]
    everywhere = [*MIXED, hit("transcript", "memory"), hit("transcript", "memory")]
    for chart in charts(render_report(everywhere, title="nightly", before=before, currency="EUR")):
        colour = colours(chart, theme)
        card = next(chart.iter(f"{SVG}rect"))
        assert (luminance(colour(card)) > 0.5) == (theme == "light"), "a card of its own, in the theme of the page"
        assert float(card.attrib["width"]) >= float(chart.attrib["width"]) - 1
        for rect in chart.iter(f"{SVG}rect"):
            if rect.attrib["class"] not in ("card border-edge", "track"):
                edge = rect.attrib["class"].startswith("card ")
                assert contrast(colour(rect, "stroke" if edge else "fill"), colour(card)) >= 3
        for text in chart.iter(f"{SVG}text"):
            assert int(text.attrib["font-size"]) >= 12
            on_bar = text.attrib["text-anchor"] == "middle"  # a number on a part of a bar, drawn just before it
            behind = list(chart)[list(chart).index(text) - 1] if on_bar else card
            assert contrast(colour(text), colour(behind)) >= 4.5
        assert not re.search("https?:|url\\(", ET.tostring(chart, encoding="unicode").replace(SVG[1:-1], ""))


def test_no_word_of_a_chart_runs_into_the_next_or_over_the_edge() -> None:
    events = [hit("a-kind-with-a-very-long-name-indeed", "redis", seconds_saved=-98_765.4, money_saved=98_765.4)]
    for chart in charts(render_report(events, title="nightly", before=[LAST_NIGHT] * 19, currency="XYZCOINS")):
        lines: dict[str, list[tuple[float, float]]] = {}
        for text in chart.iter(f"{SVG}text"):
            if text.attrib["text-anchor"] == "middle":
                continue
            x, width = float(text.attrib["x"]), text_width(text.text or "")
            start = x - width if text.attrib["text-anchor"] == "end" else x
            lines.setdefault(text.attrib["y"], []).append((start, start + width))
        for spans in lines.values():
            ends = sorted(spans)
            assert ends[0][0] >= 0
            assert ends[-1][1] <= 700
            assert all(one[1] <= other[0] for one, other in pairwise(ends))


def test_an_image_says_in_words_what_it_shows() -> None:
    markdown = render_report(MIXED, title="nightly", before=[LAST_NIGHT])
    answered, history = [token for token in parsed(markdown) if token.type == "image"]
    assert "transcript 78 % hit, 2 min 3 s saved" in answered.content
    assert history.content == "The last 2 runs of this flow, hit rates: 50 %, 80 %"


# Names that would break it


@given(any_text, any_text, any_text, any_text)
@example("a|b", "`c` [d](http://e.example)", "<script>alert(1)</script>\n\n# f", "_g_ **h** ~~i~~ &amp; \\")
@example("x\\", "![a](http://b.example)", "www.example.com", "__init__.py")
@example("\udcff\x00\u202e", "- a", "1. b", "    c")
def test_whatever_the_names_a_report_is_what_it_was_meant_to_be(
    title: str, kind: str, subject: str, reason: str
) -> None:
    events = [
        miss(kind, subject, reason),
        miss("transcript", subject, reason, Outcome.CORRUPT),
        hit(kind, "sql", seconds_saved=2.0),
        happened(actions.TIER_DOWN, tier=kind, reason=reason),
        happened(actions.UNSTORED, subject, kind=kind, reason=reason),
    ]
    plain = [
        miss("kind", "subject", "reason"),
        miss("transcript", "subject", "reason", Outcome.CORRUPT),
        hit("kind", "sql", seconds_saved=2.0),
        happened(actions.TIER_DOWN, tier="kind", reason="reason"),
        happened(actions.UNSTORED, "subject", kind="kind", reason="reason"),
    ]
    markdown = report(events, title)
    markdown.encode()
    tokens = parsed(markdown)
    if kind not in ("transcript", "all"):
        blocks = [token.type for token in tokens if token.block]
        assert sorted(blocks) == sorted(token.type for token in parsed(report(plain)) if token.block)
    assert not {"html_inline", "html_block", "link_open", "code_inline", "em_open", "s_open"} & {t.type for t in tokens}
    assert all(
        str(token.attrs["src"]).startswith("data:image/svg+xml;base64,") for token in tokens if token.type == "image"
    )
    assert len(charts(markdown)) == 1
    assert len({len(row) for row in table(markdown)}) == 1


@given(any_text)
def test_an_escaped_name_reads_as_it_is_in_a_cell_and_in_a_line(name: str) -> None:
    shown = printable(name, 60)
    cell = table(f"| kind |\n| --- |\n| {escaped(name, 60)} |")[1]
    assert cell == [shown or NONE]
    line = parsed(f"- for {escaped(name, 60)}")
    assert "".join(token.content for token in line if token.type in ("text", "text_special")) == f"for {shown or NONE}"


@given(any_text, st.integers(1, 40))
def test_what_is_printed_fits_has_one_line_and_no_invisible_letters(name: str, limit: int) -> None:
    shown = printable(name, limit)
    assert len(shown) <= limit
    assert shown.isprintable()


def test_a_long_name_keeps_its_beginning_and_its_end() -> None:
    assert printable("recording-of-the-board-meeting-2024-05-17.flac", 24) == "recording-of-the…17.flac"


def test_names_in_the_charts_are_text() -> None:
    answered = charts(report([miss('a<b>&"c"', "x")]))[0]
    assert 'a<b>&"c"' in words(answered)
    assert len(charts(report([miss("語" * 48, "x")]))) == 1


# Size


@pytest.mark.parametrize("letter", ["x", "|", "語", "😀", "\x00"])
def test_a_report_stays_small_whatever_the_run(letter: str) -> None:
    long = letter * 400
    events = [miss(f"{number}-{long}", f"{number}{long}", f"{number}{long}") for number in range(3_000)]
    events += [miss("transcript", f"{number}{long}", f"{number}{long}", Outcome.CORRUPT) for number in range(7_000)]
    events += [lookup(f"{number}", Outcome.BYPASSED, subject=long, reason=f"{number}{long}") for number in range(500)]
    for action in (actions.LOST, actions.TIER_DOWN, actions.UNSTORED, actions.UNLEASED):
        events += [
            happened(action, f"{number}{long}", kind=f"{number}", tier=f"{number}{long}", reason=f"{number}{long}")
            for number in range(200)
        ]
    markdown = report(events, long)
    assert len(markdown.encode()) < 200_000
    assert markdown.startswith("# 0 % hit, nothing saved\n")
    assert "0 of 10,000 lookups hit" in markdown
    assert len(charts(markdown)) == 1


def test_kinds_beyond_the_first_are_summed_up() -> None:
    markdown = report([hit(f"kind-{number:02}", "sql", seconds_saved=1.0) for number in range(60)])
    rows = table(markdown)
    assert rows[-1][:3] == ["all", "60 of 60", "1 min"]
    assert len(rows) == 1 + 40 + 1
    assert "20 further kinds in the last row only." in markdown
    assert "49 other kinds" in words(charts(markdown)[0])


def test_reasons_beyond_the_first_are_counted() -> None:
    markdown = report([miss(f"kind-{number:02}", "a.mp3") for number in range(30)])
    assert "And 10 more, for 10 other reasons." in markdown


def test_the_report_needs_no_orchestrator() -> None:
    code = "import sys, cache_blocks.report; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
