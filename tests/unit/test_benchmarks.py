"""The benchmark runner: its pieces measure, its results have their form, and docs/performance.md is what they say."""

import gc
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from benchmarks import rendering
from benchmarks.counting import files_opened, payloads_decoded
from benchmarks.measuring import Bar, Bench, Timing, interleaved, quartiles, ratio, seconds, spread_of
from benchmarks.payloads import transcript
from benchmarks.pieces import names, pieces
from benchmarks.results import FILE, Figure, Machine, Measured, Results, versions
from tasks.transcript import Transcript

NOT_REACHED = Figure.of(Bar("hits | of 2 KB", 2.345678, 2.0, "lower", detail={"low": 2.1, "high": 2.6, "note": "So."}))
REACHED = Figure.of(Bar("times as fast", 12.0, 8, "higher", detail={"milliseconds": {"ours": 0.25, "theirs": 3.0}}))


def results_with(*bars: Figure, name: str = "hit") -> Results:
    """Results of one piece, as if it had run."""
    measured = {
        "order": 1,
        "about": "One hit.\n\nWhat it costs.",
        "date": "2026-11-22",
        "seconds": 1.0,
        "machine": {"python": "3.11.7", "system": "Linux", "cpus": 2, "cpu": "Some CPU"},
        "versions": {"prefect": "3.8.8"},
        "bars": [bar.model_dump() for bar in bars],
    }
    return Results(pieces={name: Measured.model_validate(measured)})


# --- measuring --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "figure, better, met", [(2.0, "lower", True), (2.1, "lower", False), (2.0, "higher", True), (1.9, "higher", False)]
)
def test_a_bar_is_met_at_its_limit_and_on_the_better_side(figure: float, better: str, met: bool) -> None:  # noqa: FBT001
    assert Bar("x", figure, 2.0, better).met is met  # pyright: ignore[reportArgumentType]


def test_contestants_take_turns_and_warming_up_does_not_count() -> None:
    turns: list[str] = []

    timings = interleaved({name: lambda name=name: turns.append(name) for name in "abc"}, rounds=4, warmup=2)

    assert [sorted(turns[start : start + 3]) for start in range(0, 18, 3)] == [["a", "b", "c"]] * 6
    assert {name: len(timing.samples) for name, timing in timings.items()} == {"a": 4, "b": 4, "c": 4}


def test_a_turn_may_be_many_times_the_same_and_have_a_place_of_its_own() -> None:
    told: list[str] = []

    def place(turn: Callable[[], float]) -> float:
        told.append("in")
        taken = turn()
        told.append("out")
        return taken

    timings = interleaved({"a": lambda: told.append("a")}, rounds=2, warmup=0, within=place, times=3)

    assert told == ["in", "a", "a", "a", "out"] * 2
    assert len(timings["a"].samples) == 2


def test_a_sample_is_what_the_work_takes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 16.0])
    monkeypatch.setattr("benchmarks.measuring.perf_counter", lambda: next(clock))

    assert seconds(lambda: None, times=3) == 2.0


def test_a_ratio_is_that_of_each_round() -> None:
    """Both are ten times slower in the second half: the ratio of the rounds does not move."""
    ours, theirs = Timing((1.0, 1.0, 10.0, 10.0)), Timing((2.0, 2.0, 20.0, 20.0))

    found = ratio(theirs, ours)

    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.0)


def test_quartiles_of_one_value_are_that_value() -> None:
    assert quartiles([3.0]) == (3.0, 3.0)
    assert spread_of([1.0, 2.0, 3.0, 4.0, 5.0]).spread == {"low": 2.0, "high": 4.0}


def test_a_small_scale_leaves_a_few_rounds() -> None:
    assert (Bench(0.01).rounds(1000), Bench(0.001).rounds(1000), Bench().rounds(1000)) == (10, 3, 1000)


def test_a_bench_removes_its_folder() -> None:
    with Bench() as bench:
        folder = bench.folder
        assert folder.is_dir()
    assert not folder.exists()


@pytest.mark.parametrize("size", [2_000, 46_000, 717_000])
def test_payloads_are_transcripts_of_their_size_and_always_the_same(size: int) -> None:
    made = transcript(size, seed=5)

    assert len(orjson.dumps(made)) == pytest.approx(size, rel=0.05)
    assert made == transcript(size, seed=5) != transcript(size, seed=6)
    assert orjson.loads(Transcript.model_validate(made).model_dump_json()) == made


def test_decodings_and_opened_files_are_counted(tmp_path: Path) -> None:
    watched, other = tmp_path / "watched", tmp_path / "other"
    for folder in (watched, other):
        folder.mkdir()
    with files_opened(watched) as opened:
        (watched / "a").write_text("a")
        (watched / "a").read_text()
        (other / "a").write_text("a")

    assert opened == {watched: 2}
    assert payloads_decoded(lambda: [orjson.loads(b"[1, 2, 3]"), orjson.loads(b"[]")], size=5) == 1


# --- pieces -----------------------------------------------------------------------------------------------


def test_every_piece_says_what_it_measures_and_for_which_bar() -> None:
    everything = pieces(names())

    assert [piece.order for piece in everything] == sorted(piece.order for piece in everything)
    assert {piece.order for piece in everything} == set(range(1, len(everything) + 1))
    assert all(piece.title for piece in everything)


@pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning")  # a peer's calls of Redis
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_a_hit_is_measured_against_every_peer(prefect_server: str) -> None:
    for peer in ("prefect_redis", "dogpile.cache", "cashews", "diskcache", "joblib"):
        pytest.importorskip(peer, reason="make bench installs the peers")
    [piece] = pieces(["hit"])
    with Bench(0.002, tell=lambda _: None) as bench:
        bench.prefect_url = prefect_server
        bars = {bar.name: Figure.of(bar) for bar in piece.measure(bench)}
    gc.collect()  # peers leave connections to the garbage collector, which must not find them in another test

    assert len(bars) == 15
    for how in ("20 in a row", "one at a time"):
        over_floor = bars[f"a hit of 2 KB, {how}: time as a multiple of GET + LZ4 + orjson"]
        assert len(over_floor.detail["milliseconds"]) == 9
    # What does not depend on the machine holds here too.
    assert bars["Redis commands for a hit"].detail["commands"] == {"mget": 1}
    assert bars["payloads decoded for a hit"].figure == 1
    assert bars["stored for 46 KB, over 1.01 times the compressed payload"].met


# --- results and what is made of them ---------------------------------------------------------------------


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    results = results_with(REACHED, NOT_REACHED)
    results.save(tmp_path / "results.json")

    assert Results.load(tmp_path / "results.json") == results
    assert Results.load(tmp_path / "nothing.json") == Results()


def test_the_page_says_what_was_not_reached() -> None:
    page = rendering.render(results_with(NOT_REACHED, REACHED))["performance.md"]

    assert "**1 of 2 bars are reached.**" in page
    assert "| hits \\| of 2 KB | 2.35 x | 2.1 to 2.6 | ≤ 2 x | **no** |" in page
    assert "| times as fast | 12 x | – | ≥ 8 x | yes |" in page  # noqa: RUF001 - a dash for what there is not
    assert "- hits | of 2 KB: So." in page
    assert "Measured on 2026-11-22: 2 × Some CPU, Python 3.11.7 on Linux; prefect 3.8.8." in page  # noqa: RUF001


def test_plots_are_svg_and_the_page_shows_each(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "performance-gone-0.svg").write_text("of a piece that is no more")

    rendering.write(results_with(NOT_REACHED, REACHED), tmp_path)

    page = (tmp_path / "performance.md").read_text()
    plots = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert plots == ["performance-hit-1.svg", "performance.svg"]
    for plot in plots:
        assert f"(images/{plot})" in page
        assert ET.fromstring((tmp_path / "images" / plot).read_text()).tag.endswith("svg")  # noqa: S314 - our own


def test_this_machine_is_described_without_its_name() -> None:
    described = Machine.here().model_dump()

    assert set(described) == {"python", "system", "cpus", "cpu"}
    assert "prefect" in versions()


def test_the_results_in_the_repository_have_their_form_and_name_no_path() -> None:
    results = Results.load(FILE)

    assert set(results.pieces) <= set(names())
    text = FILE.read_text()
    assert json.loads(text) == json.loads(results.model_dump_json())
    assert not re.search(r'"[^"]*(/tmp/|/home/|/root/|/Users/|127\.0\.0\.1)', text)
    for measured in results.pieces.values():
        for bar in measured.bars:
            assert bar.met == Bar(bar.name, bar.figure, bar.limit, bar.better).met


def test_the_page_in_the_repository_is_what_the_results_say() -> None:
    for path, text in rendering.render(Results.load(FILE)).items():
        assert (rendering.DOCS / path).read_text(encoding="utf-8") == text, f"docs/{path} is old: run make bench"
