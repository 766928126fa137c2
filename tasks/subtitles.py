"""Transcripts as files: SubRip (srt), WebVTT, plain text and Whisper's JSON, written and read."""

from __future__ import annotations

import html
import itertools
import json
import re
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.errors import TranscriptFormatError
from tasks.transcript import Segment, Transcript, Word

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TIME: Final = r"(?:(\d+):)?(\d{1,2}):(\d{2})[,.](\d{1,3})"
_CUE: Final = re.compile(rf"^\s*{_TIME}\s*-->\s*{_TIME}", re.MULTILINE)
_TAG: Final = re.compile(r"<[^<>]*>|\{\\[^}]*\}")

_LANGUAGE_CODES: Final = {
    "arabic": "ar", "chinese": "zh", "dutch": "nl", "english": "en", "french": "fr", "german": "de",
    "hindi": "hi", "italian": "it", "japanese": "ja", "korean": "ko", "polish": "pl", "portuguese": "pt",
    "russian": "ru", "spanish": "es", "swedish": "sv", "turkish": "tr", "ukrainian": "uk",
}  # fmt: skip
"""Endpoints answer with English names; the most spoken ones become the codes that everything else uses."""


def to_text(transcript: Transcript) -> str:
    """Return the text, one segment a line."""
    lines = [segment.text for segment in transcript.segments] or [transcript.text]
    return "".join(f"{line}\n" for line in lines if line)


def to_srt(transcript: Transcript) -> str:
    """Return SubRip subtitles, numbered from 1; empty for an empty transcript."""
    return "\n".join(
        f"{number}\n{_timestamp(one.start, ',')} --> {_timestamp(one.end, ',')}\n{_one_paragraph(one.text)}\n"
        for number, one in enumerate(_timed(transcript), 1)
    )


def to_vtt(transcript: Transcript) -> str:
    """Return WebVTT subtitles (https://www.w3.org/TR/webvtt1/)."""
    cues = (
        f"\n{_timestamp(one.start, '.')} --> {_timestamp(one.end, '.')}\n"
        f"{html.escape(_one_paragraph(one.text), quote=False)}\n"
        for one in _timed(transcript)
    )
    return "WEBVTT\n" + "".join(cues)


def to_json(transcript: Transcript) -> str:
    """Return all that is known, in a form that `parse_json` reads back unchanged."""
    return transcript.model_dump_json(indent=2) + "\n"


def parse_srt(content: str) -> Transcript:
    """Read SubRip subtitles, with or without numbers, styles and blank lines at odd places.

    Raises:
        TranscriptFormatError: There is text but no cue, or a cue ends before it starts.
    """
    return _of_cues(_cues(content.removeprefix("\ufeff")), content)


def parse_vtt(content: str) -> Transcript:
    """Read WebVTT subtitles; notes, styles, regions, identifiers, settings and tags are left out.

    Raises:
        TranscriptFormatError: The header is missing, or a cue ends before it starts.
    """
    content = content.removeprefix("\ufeff")
    if not re.match(r"WEBVTT(\s|$)", content):
        raise TranscriptFormatError("a WebVTT file begins with the word WEBVTT")
    cues = (Segment(start=one.start, end=one.end, text=html.unescape(one.text)) for one in _cues(content))
    return _of_cues(cues, "")


def parse_text(content: str) -> Transcript:
    """Read plain text: a transcript without times."""
    return Transcript(text=" ".join(content.removeprefix("\ufeff").split()), engine="import")


def parse_json(content: str | bytes) -> Transcript:
    """Read JSON as of `to_json`, openai-whisper, whisperX, or an endpoint's ``verbose_json``.

    Raises:
        TranscriptFormatError: It is no JSON, or has neither text nor segments.
    """
    try:
        data = json.loads(content)
    except ValueError as error:
        raise TranscriptFormatError(f"not JSON: {error}") from error
    if not isinstance(data, dict):
        raise TranscriptFormatError("a transcript in JSON is an object with `text` and `segments`")
    return _from_whisper(cast("dict[str, Any]", data))


def parse(content: bytes, name: str) -> Transcript:
    """Read a transcript file by its name's ending: srt, vtt, json or txt.

    Raises:
        TranscriptFormatError: The ending is another, the bytes are not UTF-8, or the format is not kept to.
    """
    parsers: dict[str, Callable[[str], Transcript]] = {
        ".srt": parse_srt, ".vtt": parse_vtt, ".json": parse_json, ".txt": parse_text,
    }  # fmt: skip
    parser = parsers.get(PurePath(name).suffix.lower())
    if parser is None:
        raise TranscriptFormatError(f"{name}: a transcript ends in one of {', '.join(parsers)}")
    try:
        return parser(content.decode("utf-8"))
    except TranscriptFormatError as error:
        raise TranscriptFormatError(f"{name}: {error}") from error
    except UnicodeDecodeError as error:
        raise TranscriptFormatError(f"{name}: not UTF-8 text") from error


class _WhisperWord(BaseModel):
    model_config = ConfigDict(extra="ignore")
    word: str
    start: float | None = None
    end: float | None = None
    probability: float | None = None
    score: float | None = None

    def word_of(self) -> Word:
        probability = self.probability if self.probability is not None else self.score
        return Word(
            start=round(self.start or 0.0, 3),
            end=round(self.end or 0.0, 3),
            word=self.word.strip(),
            probability=None if probability is None else round(probability, 4),
        )


class _WhisperSegment(BaseModel):
    model_config = ConfigDict(extra="ignore")
    start: float
    end: float
    text: str
    words: list[_WhisperWord] | None = None


class _Whisper(BaseModel):
    """What the JSON formats have in common."""

    model_config = ConfigDict(extra="ignore")
    text: str | None = None
    language: str | None = None
    duration: float | None = None
    duration_seconds: float | None = None
    segments: list[_WhisperSegment] | None = None
    words: list[_WhisperWord] | None = None
    engine: str = "import"
    model: str = ""


def _from_whisper(data: dict[str, Any]) -> Transcript:
    """Return the transcript in a decoded Whisper-like JSON object; words may lie in segments or beside them.

    Raises:
        TranscriptFormatError: It has neither text nor segments, or they are of other types.
    """
    try:
        read = _Whisper.model_validate(data)
    except ValidationError as error:
        raise TranscriptFormatError(
            f"not a transcript: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}"
        ) from error
    if read.text is None and read.segments is None:
        raise TranscriptFormatError("it has neither `text` nor `segments`")
    loose = [word.word_of() for word in read.words or [] if word.start is not None]
    segments = [_segment(one, loose) for one in read.segments or []]
    text = " ".join((read.text or " ".join(one.text for one in segments)).split())
    language = (read.language or "").lower()
    return Transcript(
        text=text,
        language=_LANGUAGE_CODES.get(language, language),
        duration_seconds=max(
            0.0, read.duration_seconds or read.duration or max((s.end for s in segments), default=0.0)
        ),
        segments=tuple(one for one in segments if one.text),
        engine=read.engine,
        model=read.model,
    )


def _segment(read: _WhisperSegment, loose: list[Word]) -> Segment:
    if read.words is not None:
        words = [word.word_of() for word in read.words]
    else:
        words = [word for word in loose if read.start <= (word.start + word.end) / 2 < read.end]
    return Segment(start=round(read.start, 3), end=round(read.end, 3), text=read.text.strip(), words=tuple(words))


def _cues(content: str) -> Iterator[Segment]:
    """Yield the cues of SubRip or WebVTT: a line of times, then text up to an empty line."""
    content = content.replace("\r\n", "\n").replace("\r", "\n")
    for cue in _CUE.finditer(content):
        times = cue.groups()
        start, end = _seconds(times[:4]), _seconds(times[4:])
        if end < start:
            raise TranscriptFormatError(f"a cue ends before it starts: {cue.group().strip()}")
        _, _, after = content[cue.end() :].partition("\n")
        lines = itertools.takewhile(str.strip, after.split("\n"))
        yield Segment(start=start, end=end, text=" ".join(_TAG.sub("", " ".join(lines)).split()))


def _of_cues(cues: Iterator[Segment], content: str) -> Transcript:
    segments = sorted(cues, key=lambda segment: segment.start)
    if not segments and content.strip():
        raise TranscriptFormatError("no line of times such as 00:00:01,000 --> 00:00:02,500 is in it")
    duration = max((segment.end for segment in segments), default=0.0)
    return Transcript.of_segments(segments, duration_seconds=duration, engine="import")


def _seconds(parts: tuple[str | Any, ...]) -> float:
    hours, minutes, seconds, fraction = parts
    whole = int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds)
    return (whole * 1000 + int(str(fraction).ljust(3, "0"))) / 1000


def _timestamp(seconds: float, point: str) -> str:
    milliseconds = round(max(0.0, seconds) * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"


def _timed(transcript: Transcript) -> tuple[Segment, ...]:
    """Return the segments; text without times becomes one cue over the whole duration."""
    if transcript.segments or not transcript.text:
        return transcript.segments
    return (Segment(start=0.0, end=transcript.duration_seconds, text=transcript.text),)


def _one_paragraph(text: str) -> str:
    """Return text that no reader takes for the end of a cue or for its times."""
    return " ".join(text.split()).replace("-->", "->")
