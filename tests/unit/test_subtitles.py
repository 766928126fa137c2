"""Transcripts as files: what players and people read, and back again."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import TranscriptFormatError
from tasks.subtitles import parse, parse_json, parse_srt, parse_vtt, to_json, to_srt, to_text, to_vtt
from tasks.transcript import Segment, Transcript, Word

TALK = Transcript.of_segments(
    [
        Segment(start=0.0, end=1.25, text="Hello & welcome.", words=(Word(start=0.0, end=0.5, word="Hello"),)),
        Segment(start=3661.5, end=3662.0, text="An hour later: <applause> -> silence."),
    ],
    language="en",
    duration_seconds=3662.0,
    engine="faster-whisper",
    model="tiny.en",
)


def test_srt() -> None:
    assert to_srt(TALK) == (
        "1\n00:00:00,000 --> 00:00:01,250\nHello & welcome.\n\n"
        "2\n01:01:01,500 --> 01:01:02,000\nAn hour later: <applause> -> silence.\n"
    )


def test_vtt_escapes_what_would_be_markup() -> None:
    assert to_vtt(TALK) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.250\nHello &amp; welcome.\n"
        "\n01:01:01.500 --> 01:01:02.000\nAn hour later: &lt;applause&gt; -&gt; silence.\n"
    )


def test_text_is_a_line_a_segment() -> None:
    assert to_text(TALK) == "Hello & welcome.\nAn hour later: <applause> -> silence.\n"
    assert to_text(Transcript(text="No times.")) == "No times.\n"


def test_json_gives_everything_back() -> None:
    assert parse_json(to_json(TALK)) == TALK


def test_an_empty_transcript_makes_valid_files() -> None:
    empty = Transcript(text="")

    assert (to_text(empty), to_srt(empty), to_vtt(empty)) == ("", "", "WEBVTT\n")
    assert parse_srt("").segments == parse_vtt("WEBVTT\n").segments == ()


def test_text_without_times_is_one_cue() -> None:
    assert to_srt(Transcript(text="Hello.", duration_seconds=2.0)) == "1\n00:00:00,000 --> 00:00:02,000\nHello.\n"


segments = st.lists(
    st.tuples(
        st.integers(0, 10**8),
        st.integers(0, 10**5),
        st.text(st.characters(categories=("L", "N", "P", "Zs"), exclude_characters="<>{}")).filter(str.strip),
    ),
    max_size=8,
).map(
    lambda cues: Transcript.of_segments(
        sorted(
            (
                Segment(start=start / 1000, end=(start + length) / 1000, text=" ".join(text.split()))
                for start, length, text in cues
            ),
            key=lambda segment: segment.start,
        )
    )
)


@pytest.mark.parametrize("write, read", [(to_srt, parse_srt), (to_vtt, parse_vtt)])
@given(transcript=segments)
def test_subtitles_come_back_as_they_were_written(
    write: Callable[[Transcript], str], read: Callable[[str], Transcript], transcript: Transcript
) -> None:
    back = read(write(transcript))

    assert [(one.start, one.end, one.text) for one in back.segments] == [
        (one.start, one.end, one.text.replace("-->", "->")) for one in transcript.segments
    ]
    assert back.engine == "import"


def test_srt_as_it_is_found_in_the_wild() -> None:
    """A byte-order mark, Windows line ends, styles, two lines a cue, points for commas, no numbers, wrong order."""
    content = (
        "\ufeff2\r\n00:00:05,000 --> 00:00:06,000 X1:40\r\n<i>Second</i>\r\nline {\\an8}here\r\n\r\n\r\n"
        "0:00:01.5 --> 0:00:02.25\r\nFirst\r\n"
    )

    assert [(one.start, one.end, one.text) for one in parse_srt(content).segments] == [
        (1.5, 2.25, "First"),
        (5.0, 6.0, "Second line here"),
    ]


def test_vtt_as_it_is_found_in_the_wild() -> None:
    content = (
        "WEBVTT - a title\n\nNOTE made by hand\n\nSTYLE\n::cue { color: red }\n\n"
        "intro\n00:01.000 --> 00:02.000 align:start position:0%\n<v Elinor>Fish &amp; chips</v>\n"
    )

    (cue,) = parse_vtt(content).segments

    assert (cue.start, cue.end, cue.text) == (1.0, 2.0, "Fish & chips")


def test_whispers_own_json() -> None:
    content = json.dumps(
        {
            "text": " Hello there.",
            "language": "en",
            "segments": [
                {
                    "id": 0, "seek": 0, "start": 0.0, "end": 1.1, "text": " Hello there.", "tokens": [1, 2],
                    "words": [
                        {"word": " Hello", "start": 0.0, "end": 0.50004, "probability": 0.98765},
                        {"word": " there.", "start": 0.5, "end": 1.1, "score": 0.5},
                    ],
                }
            ],
        }
    )  # fmt: skip

    transcript = parse_json(content)

    assert transcript.text == "Hello there."
    assert transcript.duration_seconds == 1.1
    assert transcript.segments[0].words == (
        Word(start=0.0, end=0.5, word="Hello", probability=0.9877),
        Word(start=0.5, end=1.1, word="there.", probability=0.5),
    )


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("a.srt", b"just words\n", "no line of times"),
        ("a.srt", b"1\n00:00:05,000 --> 00:00:01,000\nback\n", "ends before it starts"),
        ("a.vtt", b"1\n00:00:01,000 --> 00:00:02,000\nsrt\n", "begins with the word WEBVTT"),
        ("a.json", b"{", "not JSON"),
        ("a.json", b"[1]", "an object"),
        ("a.json", b'{"status": "ok"}', "neither"),
        ("a.json", b'{"segments": [{"start": "x"}]}', "not a transcript"),
        ("a.txt", b"\xff\xfe\x00", "UTF-8"),
        ("a.docx", b"", "ends in one of"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name_and_reason(name: str, content: bytes, reason: str) -> None:
    with pytest.raises(TranscriptFormatError, match=rf"{name}.*{reason}"):
        parse(content, name)


@pytest.mark.parametrize("name", ["talk.srt", "talk.VTT", "talk.json", "talk.txt"])
def test_the_format_goes_by_the_names_ending(name: str) -> None:
    writers = {"srt": to_srt, "vtt": to_vtt, "json": to_json, "txt": to_text}
    content = writers[name.rpartition(".")[2].lower()](TALK).encode()

    assert parse(content, name).text.startswith("Hello & welcome.")
