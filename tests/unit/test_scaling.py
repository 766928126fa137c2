"""What a larger night needs: the model's reckoning by hand, and that docs/scaling.md is what the results say."""

from dataclasses import replace

import pytest

from benchmarks.simulation import page
from benchmarks.simulation.figures import Figures
from benchmarks.simulation.model import Assumptions, files_until, limits, needs
from benchmarks.simulation.night import KINDS
from benchmarks.simulation.results import Simulation

FIGURES = Figures(
    page_ms=dict(zip(KINDS, (1.0, 0.5, 0.5), strict=True)),
    miss_ms=dict.fromkeys(KINDS, 10.0),
    redis_ms=0.1,
    postgres_ms=0.4,
    page_requests=dict(zip(KINDS, ((0.0, 0.0), (0.0, 0.0), (1.0, 0.0)), strict=True)),
    miss_requests=dict(zip(KINDS, ((1.0, 1.0), (0.0, 0.0), (2.0, 1.0)), strict=True)),
    redis_bytes=dict(zip(KINDS, (3_000.0, 1_000.0, 500.0), strict=True)),
    generation_bytes=125.0,
    entry_bytes=dict.fromkeys(KINDS, 5_000.0),
    event_bytes=600.0,
    wal_bytes=1_000.0,
    object_bytes=4_000.0,
    vacuum_us=10.0,
    connections=2.0,
    worker_bytes=1.5e8,
    keys_per_second=2_000.0,
    processors=2,
)
ASSUMED = Assumptions(
    hours=10.0,
    hit_share=0.9,
    days=dict.fromkeys(KINDS, 10.0),
    event_days=30.0,
    sound_seconds=10.0,
    sound_bytes=100.0,
    busy_share=0.5,
)
MILLION = 1_000_000


def test_lookups_computations_and_events_follow_from_the_stages() -> None:
    needed = needs(MILLION, FIGURES, ASSUMED)

    assert needed.lookups == 3 * MILLION
    assert needed.computations == pytest.approx(0.3 * MILLION)
    assert needed.events == pytest.approx(3.3 * MILLION)
    assert needed.lookups_per_second == pytest.approx(3 * MILLION / 36_000)


def test_processors_are_those_of_all_lookups_over_the_night() -> None:
    needed = needs(MILLION, FIGURES, ASSUMED)

    # A file: 2 ms for its pages, and a tenth of three misses of 10 ms each; half of the time nobody works.
    assert needed.worker_processors == pytest.approx(MILLION * 0.005 / 36_000 / 0.5)
    assert needed.redis_processors == pytest.approx(3 * MILLION * 0.0001 / 36_000)
    assert needed.postgres_processors == pytest.approx(3 * MILLION * 0.0004 / 36_000)


def test_entries_of_what_does_not_come_back_stay_until_they_expire() -> None:
    """A tenth is new each night, and ten days' worth of what they replaced is still there."""
    needed = needs(MILLION, FIGURES, ASSUMED)

    assert needed.postgres_entries == pytest.approx(3 * 2 * MILLION)
    assert needed.postgres_entry_gb == pytest.approx(30.0)
    assert needed.redis_gb == pytest.approx(2 * 4.5 + 4 * 0.125)


def test_events_are_kept_for_their_days() -> None:
    needed = needs(MILLION, FIGURES, ASSUMED)
    fewer = needs(MILLION, FIGURES, replace(ASSUMED, event_days=1.0))

    assert needed.postgres_event_gb == pytest.approx(3.3 * 0.6 * 30)
    assert fewer.postgres_event_gb == pytest.approx(3.3 * 0.6)
    assert needed.postgres_gb == pytest.approx(needed.postgres_entry_gb + needed.postgres_event_gb)


def test_requests_are_billed_as_reading_and_writing() -> None:
    needed = needs(MILLION, FIGURES, ASSUMED)

    assert needed.store_reads == pytest.approx(MILLION * (1 + 0.1 * 3))
    assert needed.store_writes == pytest.approx(MILLION * 0.1 * 2)
    assert needed.store_dollars == pytest.approx(1300 * 0.0004 + 200 * 0.005)
    assert needed.store_gb == pytest.approx(2 * (1_000 + 4_000) / 1_000)


@pytest.mark.parametrize("times", [2, 50])
def test_needs_grow_as_the_files_do(times: int) -> None:
    small, large = (needs(files, FIGURES, ASSUMED) for files in (10 * MILLION, 10 * times * MILLION))

    for one, other in zip(limits(small, ASSUMED), limits(large, ASSUMED), strict=True):
        assert one.name == other.name
        assert other.used == pytest.approx(times * one.used)
        assert files_until(one, 10 * MILLION) == pytest.approx(files_until(other, 10 * times * MILLION))


def test_what_breaks_first_is_what_is_fullest() -> None:
    roomy = replace(ASSUMED, redis_gb=1e6)
    needed = needs(MILLION, FIGURES, ASSUMED)

    assert limits(needed, replace(ASSUMED, redis_gb=1.0))[0].name == "memory of one Redis"
    assert limits(needed, replace(roomy, postgres_gb=1.0))[0].name == "size of PostgreSQL"
    shares = [limit.used for limit in limits(needed, ASSUMED)]
    assert shares == sorted(shares, reverse=True)


def test_a_limit_is_reached_at_as_many_files_as_fill_it() -> None:
    first = limits(needs(MILLION, FIGURES, ASSUMED), ASSUMED)[0]
    full = round(files_until(first, MILLION))

    again = next(limit for limit in limits(needs(full, FIGURES, ASSUMED), ASSUMED) if limit.name == first.name)
    assert again.used == pytest.approx(1.0, rel=1e-3)


# --- the page ---------------------------------------------------------------------------------------------


def test_figures_come_out_of_the_results() -> None:
    done = Simulation.load()
    figures = Figures.of(done)

    assert figures.page_ms["transcript"] == done.processor_ms["page of transcript"]
    assert figures.event_bytes == pytest.approx(
        done.sizes.tables["cache_blocks_event"].total_bytes / done.sizes.tables["cache_blocks_event"].rows
    )
    # What entries take by kind adds up to what the table takes with all that hangs on it.
    tables = done.sizes.tables
    stored = sum(tables[f"cache_blocks_{name}"].total_bytes for name in ("entry", "tag", "blob"))
    reckoned = sum(figures.entry_bytes[kind] * share for kind, share in zip(KINDS, done.shape.kinds, strict=True))
    assert reckoned * tables["cache_blocks_entry"].rows == pytest.approx(stored)


def test_the_page_says_what_was_measured_what_was_assumed_and_what_breaks_first() -> None:
    text = page.render(Simulation.load())

    assert "What breaks first is the " in text
    assert "(measured" in text
    assert "(assumed)" in text
    assert f"Measured on {Simulation.load().date.isoformat()}" in text


def test_problems_are_on_the_page() -> None:
    done = Simulation.load().model_copy(update={"problems": {"a wrong value was served": 3}})

    assert "a wrong value was served: 3" in " ".join(page.render(done).split())


def test_the_page_in_the_repository_is_what_the_results_say() -> None:
    rendered = page.render(Simulation.load())

    assert page.FILE.read_text(encoding="utf-8") == rendered, "docs/scaling.md is old: run make simulation"
