"""Full-text search over transcripts, the same in SQLite and in PostgreSQL."""

import contextlib
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, inspect, make_url, select, text

from cache_blocks import SEARCH_RESULTS, TieredCache
from tasks import search
from tasks.database import Database, engine_for, ensure_tables
from tasks.fulltext.index import MAX_SEGMENTS, SearchHit, TranscriptIndex
from tasks.fulltext.query import Query, SearchQueryError, Term, parse_query
from tasks.fulltext.tables import METADATA, SEGMENTS, TRANSCRIPTS
from tasks.search import index_transcript, remove_recording, search_transcripts
from tasks.transcript import Segment, Transcript


def said(*segments: str) -> Transcript:
    """A transcript whose segments are two seconds long each."""
    parts = [Segment(start=2.0 * n, end=2.0 * n + 2, text=words) for n, words in enumerate(segments)]
    return Transcript.of_segments(parts, language="en")


DASHWOOD = said(
    "Mister John Dashwood had then leisure to consider", "how much there might be prudently", "in his power"
)
YOUNG_MAN = said("He was not an ill-disposed young man", "unless to be rather cold-hearted is to be ill disposed")
AMIABLE = said("He might even have been made amiable himself", "John, more amiable than he was", "amiable John")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'not-there-yet' / 'pipeline.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def index(database_url: str) -> TranscriptIndex:
    return TranscriptIndex(Database(engine_for(database_url), "default"))


@pytest.fixture
def library(index: TranscriptIndex) -> TranscriptIndex:
    """Three recordings."""
    index.add("digest-1", "austen-870.mp3", DASHWOOD)
    index.add("digest-2", "austen-880.wav", YOUNG_MAN)
    index.add("digest-3", "interview.flac", AMIABLE)
    return index


def names(index: TranscriptIndex, typed: str) -> list[str]:
    return [hit.name for hit in index.search(parse_query(typed), 10)]


# --- finding ----------------------------------------------------------------------------------------------


def test_a_hit_says_what_matched_and_when_it_is_said(library: TranscriptIndex) -> None:
    (hit,) = library.search(parse_query("leisure"), 10)
    assert (hit.recording, hit.name) == ("digest-1", "austen-870.mp3")
    assert "then **leisure** to consider" in hit.snippet
    (segment,) = hit.segments
    assert (segment.start, segment.end, segment.text) == (0, 2, DASHWOOD.segments[0].text)
    assert hit.score > 0


def test_the_best_match_comes_first(library: TranscriptIndex) -> None:
    assert names(library, "john") == ["interview.flac", "austen-870.mp3"]
    first, second = library.search(parse_query("john"), 10)
    assert first.score > second.score
    assert [hit.name for hit in library.search(parse_query("john"), 1)] == ["interview.flac"]


@pytest.mark.parametrize(
    "typed,found",
    [
        ("DASHWOOD", ["austen-870.mp3"]),
        ("leisure power", ["austen-870.mp3"]),  # segments apart
        ("dashwood amiable", []),
        ('"leisure to consider"', ["austen-870.mp3"]),
        ('"consider leisure"', []),
        ('"consider how much"', ["austen-870.mp3"]),  # over the end of a segment
        ("considering", ["austen-870.mp3"]),  # stems, as English does
        ("john -dashwood", ["interview.flac"]),
        ('john -"more amiable"', ["austen-870.mp3"]),
        ("dash*", ["austen-870.mp3"]),
        ("dash", []),
        ("cold-hearted", ["austen-880.wav"]),
        ("interview", ["interview.flac"]),  # the file's name counts as well
        ("870", ["austen-870.mp3"]),
        ('"leisure to', ["austen-870.mp3"]),  # the closing quote is forgotten
        ("zebra", []),
        ('"he was not"', ["austen-880.wav"]),  # the most frequent words count like all others
    ],
)
def test_the_query_language_of_web_search(library: TranscriptIndex, typed: str, found: list[str]) -> None:
    assert names(library, typed) == found


def test_a_phrase_over_the_end_of_a_segment_still_has_times(library: TranscriptIndex) -> None:
    (hit,) = library.search(parse_query('"consider how much"'), 10)
    assert [segment.start for segment in hit.segments] == [0, 2]


def test_numbers_and_addresses_are_found_by_their_words(index: TranscriptIndex) -> None:
    index.add("d", "call.wav", said("write to ann@prefect.io, it grew by 3.5 percent and/or -7"))
    for typed in ("3.5", "prefect.io", "prefect", "ann@prefect.io", "7", "and/or 7"):
        assert names(index, typed) == ["call.wav"], typed


def test_a_hit_lists_a_bounded_number_of_segments(index: TranscriptIndex) -> None:
    index.add("d", "long.wav", said(*["once more"] * (MAX_SEGMENTS + 5)))
    (hit,) = index.search(parse_query("more"), 10)
    assert [segment.start for segment in hit.segments] == [2.0 * n for n in range(MAX_SEGMENTS)]


def test_namespaces_do_not_see_each_other(library: TranscriptIndex) -> None:
    other = TranscriptIndex(Database(library.database.engine, "staging"))
    assert names(other, "leisure") == []
    other.add("digest-1", "theirs.mp3", DASHWOOD)
    assert names(other, "leisure") == ["theirs.mp3"]
    assert other.remove("digest-1")
    assert names(library, "leisure") == ["austen-870.mp3"]


# --- hostile queries --------------------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["", "   ", '"', '""', "***", "- -", "&|!()", "'; --", "\0"])
def test_a_query_without_words_is_refused(typed: str) -> None:
    with pytest.raises(SearchQueryError, match="no word to look for"):
        parse_query(typed)


def test_a_query_that_only_excludes_is_refused() -> None:
    with pytest.raises(SearchQueryError, match="only excludes"):
        parse_query('-john -"more amiable"')


def test_a_query_without_end_is_refused() -> None:
    with pytest.raises(SearchQueryError, match="501 characters; at most 500"):
        parse_query("a" * 501)
    with pytest.raises(SearchQueryError, match="33 terms; at most 32"):
        parse_query("a " * 33)


@pytest.mark.parametrize(
    "typed,parsed",
    [
        ("a b*", Query((Term(("a",)), Term(("b",), prefix=True)))),
        ('"a b"-c', Query((Term(("a", "b")),), (Term(("c",)),))),
        ("a-b", Query((Term(("a", "b")),))),
        ("x --b", Query((Term(("x",)),), (Term(("b",)),))),
        ("body:x AND y", Query((Term(("body", "x")), Term(("AND",)), Term(("y",))))),
        ("cafe\u0301", Query((Term(("caf\u00e9",)),))),
    ],
)
def test_only_quotes_minus_and_star_mean_anything(typed: str, parsed: Query) -> None:
    assert parse_query(typed) == parsed


_syntax = st.sampled_from(
    [
        "AND",
        "OR",
        "NOT",
        "NEAR(",
        "body:",
        "namespace:staging",
        "^",
        "*",
        '"',
        "'",
        "\\",
        ":*",
        "<->",
        "!",
        "&",
        "|",
    ]
)
_typed = st.lists(_syntax | st.sampled_from(["john", "secret"]) | st.text(max_size=6), max_size=12).map(" ".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(typed=_typed)
def test_no_query_breaks_out_of_its_quotes(library: TranscriptIndex, typed: str) -> None:
    staging = TranscriptIndex(Database(library.database.engine, "staging"))
    staging.add("theirs", "secret.wav", said("John has a secret"))
    with contextlib.suppress(SearchQueryError):
        assert "secret.wav" not in names(library, typed)


@pytest.mark.parametrize("typed", ["dashwood OR john", "john NOT amiable", "dashwood') OR ('1'='1", "john | zebra"])
def test_operators_of_the_databases_are_ordinary_words(library: TranscriptIndex, typed: str) -> None:
    assert names(library, typed) == []


# --- writing ----------------------------------------------------------------------------------------------


def test_adding_the_same_again_changes_nothing(index: TranscriptIndex) -> None:
    assert index.add("d", "a.mp3", DASHWOOD)
    index.announce("d", "a.mp3", DASHWOOD)
    assert not index.add("d", "a.mp3", DASHWOOD)
    assert names(index, "leisure") == ["a.mp3"]


def test_a_new_transcript_or_name_takes_the_place_of_the_old_one(index: TranscriptIndex) -> None:
    index.add("d", "a.mp3", DASHWOOD)
    index.announce("d", "a.mp3", DASHWOOD)
    assert index.add("d", "b.mp3", YOUNG_MAN)
    assert names(index, "leisure") == []
    (hit,) = index.search(parse_query("unless"), 10)
    assert (hit.name, [segment.start for segment in hit.segments]) == ("b.mp3", [2.0])


def test_a_writer_that_died_before_it_told_anybody_leaves_that_to_the_next(index: TranscriptIndex) -> None:
    assert index.add("d", "a.mp3", DASHWOOD)
    assert index.add("d", "a.mp3", DASHWOOD)


def test_a_late_announcement_of_old_content_counts_for_nothing(index: TranscriptIndex) -> None:
    index.add("d", "a.mp3", DASHWOOD)
    index.add("d", "a.mp3", YOUNG_MAN)
    index.announce("d", "a.mp3", DASHWOOD)
    assert index.add("d", "a.mp3", YOUNG_MAN)


def test_removing_leaves_nothing(library: TranscriptIndex) -> None:
    assert library.remove("digest-1")
    assert not library.remove("digest-1")
    assert names(library, "leisure") == []
    with library.database.reading(METADATA) as connection:
        tables = (TRANSCRIPTS, SEGMENTS)
        counts = [connection.scalar(select(func.count()).select_from(table)) for table in tables]
    assert counts == [2, len(YOUNG_MAN.segments) + len(AMIABLE.segments)]


def test_what_was_removed_is_gone_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.db"
    index = TranscriptIndex(Database(engine_for(f"sqlite:///{file}"), "default"))
    index.add("kept", "a.mp3", DASHWOOD)
    index.add("gone", "b.mp3", said("the word is xylophonist"))

    def bytes_on_disk() -> bytes:
        return b"".join(path.read_bytes() for path in tmp_path.iterdir())

    assert b"xylophonist" in bytes_on_disk()
    index.remove("gone")
    assert b"xylophon" not in bytes_on_disk()
    assert b"Dashwood" in bytes_on_disk()


def test_silence_and_odd_characters_can_be_indexed(index: TranscriptIndex) -> None:
    index.add("d", "silence.wav", Transcript(text="", duration_seconds=1))
    index.add("e", "odd\0.wav", said("nul\0 and \ud800 and 日本語"))
    assert names(index, "silence") == ["silence.wav"]
    assert names(index, "日本語") == ["odd .wav"]


def test_many_may_start_at_once(database_url: str) -> None:
    barrier = threading.Barrier(8)

    def first_use(number: int) -> bool:
        index = TranscriptIndex(Database(engine_for(database_url), "default"))
        barrier.wait()
        return index.add(f"digest-{number % 4}", f"{number % 4}.mp3", DASHWOOD)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(first_use, range(8)))
    index = TranscriptIndex(Database(engine_for(database_url), "default"))
    assert names(index, "leisure") == [f"{number}.mp3" for number in range(4)]
    assert all(len(hit.segments) == 1 for hit in index.search(parse_query("leisure"), 10))


_OTHER_PROCESS = """
import sys
from tasks.database import Database, engine_for
from tasks.fulltext.index import TranscriptIndex
from tasks.transcript import Transcript
index = TranscriptIndex(Database(engine_for(sys.argv[1]), "default"))
print("ready", flush=True)
sys.stdin.readline()
index.add(sys.argv[2], sys.argv[2], Transcript(text="hello from another process"))
"""


def test_several_processes_may_create_the_tables(database_url: str) -> None:
    root = Path(search.__file__).parents[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _OTHER_PROCESS, database_url, f"p{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=root,
            text=True,
        )
        for number in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.communicate("go\n")
    assert [process.returncode for process in processes] == [0, 0, 0]
    index = TranscriptIndex(Database(engine_for(database_url), "default"))
    assert sorted(names(index, "another")) == ["p0", "p1", "p2"]


def test_tables_of_others_in_the_database_are_left_alone(database_url: str) -> None:
    engine = engine_for(database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE theirs (id INTEGER)"))
    ensure_tables(engine, METADATA)
    ours = set(inspect(engine).get_table_names()) - {"theirs"}
    assert ours >= {"pipeline_transcripts", "pipeline_segments"}
    assert all(name.startswith("pipeline_") for name in ours)


def test_another_kind_of_database_is_refused() -> None:
    with pytest.raises(ValueError, match="SQLite or PostgreSQL, not mysql"):
        engine_for(make_url("mysql://host/name").render_as_string())


# --- through the cache ------------------------------------------------------------------------------------


class Answers:
    """A cached search result, and how often it was computed."""

    def __init__(self, cache: TieredCache) -> None:
        self.cache = cache
        self.computed = 0

    def ask(self) -> int:
        """Return the number of the computation that the answer came from."""
        return self.cache.get_or_compute(f"{SEARCH_RESULTS.name}:{'0' * 64}", self._compute, kind=SEARCH_RESULTS)

    def _compute(self) -> int:
        self.computed += 1
        return self.computed


@pytest.fixture
def answers() -> Answers:
    return Answers(TieredCache.from_settings())


def test_indexing_invalidates_search_results_only_when_something_changed(answers: Answers) -> None:
    assert answers.ask() == 1
    assert index_transcript("d", "a.mp3", DASHWOOD)
    assert answers.ask() == 2
    assert not index_transcript("d", "a.mp3", DASHWOOD)
    assert answers.ask() == 2
    assert index_transcript("d", "a.mp3", YOUNG_MAN)
    assert answers.ask() == 3


def test_removing_invalidates_search_results_each_time(answers: Answers) -> None:
    index_transcript("d", "a.mp3", DASHWOOD)
    assert answers.ask() == 1
    assert remove_recording("d")
    assert answers.ask() == 2
    assert not remove_recording("d")
    assert answers.ask() == 3


@pytest.mark.usefixtures("prefect_server")
def test_a_search_is_a_cached_task_that_sees_new_transcripts() -> None:
    index_transcript("d", "a.mp3", DASHWOOD)
    first = search_transcripts("leisure")
    assert [(hit.name, type(hit)) for hit in first] == [("a.mp3", SearchHit)]
    assert search_transcripts("leisure", return_state=True).name == "Cached"
    index_transcript("e", "b.mp3", DASHWOOD)
    assert sorted(hit.name for hit in search_transcripts("leisure")) == ["a.mp3", "b.mp3"]


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("query,limit,reason", [("", 10, "no word"), ("x", 0, "limit is 0"), ("x", 101, "limit")])
def test_a_search_that_cannot_be_answered_fails_with_the_reason(query: str, limit: int, reason: str) -> None:
    with pytest.raises(SearchQueryError, match=reason):
        search_transcripts(query, limit)
