"""Values come back as the annotation says, or are refused with a name and a way out."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import math
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple
from uuid import UUID

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import TypedDict

from cache_blocks.errors import CorruptEntryError, UnsupportedValueError
from cache_blocks.files import CachedFile
from cache_blocks.values import ValueCodec, codec_of, is_plain, return_annotation
from tests.unit.test_codec import json_values


class Segment(pydantic.BaseModel):
    start: float
    words: list[str]


class Transcript(pydantic.BaseModel):
    text: str
    at: dt.datetime
    segments: list[Segment]
    audio: CachedFile | None = None


class Aliased(pydantic.BaseModel):
    text: str = pydantic.Field(alias="Text")


class Computed(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    words: list[str]

    @pydantic.computed_field
    @property
    def count(self) -> int:
        return len(self.words)


class WithPath(pydantic.BaseModel):
    audio: Path


class Anything(pydantic.BaseModel):
    what: Any


@dataclasses.dataclass
class Point:
    x: float
    label: str = ""


@dataclasses.dataclass
class Nested:
    points: list[Point]
    when: dt.date


@dataclasses.dataclass
class NestedPath:
    files: list[Path]


class Pair(NamedTuple):
    left: int
    right: str


class Row(TypedDict):
    id: int
    day: dt.date


class Colour(enum.Enum):
    RED = "red"


AWARE = dt.datetime(2024, 2, 29, 12, 30, 1, 5, tzinfo=dt.timezone(dt.timedelta(hours=2)))


def round_trip(value: Any, annotation: Any = Any) -> Any:
    codec = ValueCodec(annotation)
    return codec.decode(codec.encode(value).json)


@pytest.mark.parametrize(
    "value, annotation",
    [
        (None, Any),
        (True, Any),
        (2**63 - 1, Any),
        (0.1, Any),
        ("Äöü 日本語 \x00 \u2028", Any),
        ([1, [2, {"a": None}]], Any),
        ({"": [], "nested": {"$": 1}}, Any),
        (b"\x00\xff raw", Any),
        (b"", Any),
        (AWARE, Any),
        (dt.datetime(2024, 1, 1), Any),  # noqa: DTZ001 - naive ones are kept naive
        ({"raw": b"x", "when": [AWARE]}, Any),
        ({"a": 1}, dict[str, int]),
        ([1, 2], list[int]),
        ("x", str),
        (None, None),
        ((1, "a"), tuple[int, str]),
        ({1, 2, 3}, set[int]),
        (frozenset({"a"}), frozenset[str]),
        ({1: "a"}, dict[int, str]),
        (b"\x00\xff raw", bytes),
        ([b"\xff", b""], list[bytes]),
        (AWARE, dt.datetime),
        (dt.date(2024, 2, 29), dt.date),
        (dt.timedelta(seconds=1.5), dt.timedelta),
        (Decimal("1.10"), Decimal),
        (UUID(int=7), UUID),
        (Colour.RED, Colour),
        ("a", Literal["a", "b"]),
        (Pair(1, "x"), Pair),
        ({"id": 1, "day": dt.date(2024, 1, 1)}, Row),
        (Point(1.5, "p"), Point),
        (Nested([Point(1)], dt.date(2024, 1, 1)), Nested),
        (Transcript(text="t", at=AWARE, segments=[Segment(start=0, words=["a"])]), Transcript),
        ([Point(1), Point(2)], list[Point]),
        ({"a": Segment(start=1, words=[])}, dict[str, Segment]),
        (None, Segment | None),
        (Segment(start=1, words=[]), Segment | None),
        (Aliased(Text="by alias"), Aliased),
        (Computed(words=["a", "b"]), Computed),
        ({"$contents": dt.date(2024, 1, 1)}, dict[str, dt.date]),
    ],
    ids=lambda what: getattr(what, "__name__", None) or repr(what)[:40],
)
def test_a_value_comes_back_as_the_annotation_says(value: Any, annotation: Any) -> None:
    back = round_trip(value, annotation)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "value, annotation",
    [
        (b"x", str | bytes),
        (AWARE, str | dt.datetime),
        (dt.date(2024, 1, 1), str | dt.date),
        ({1, 2}, list[int] | set[int]),
        (Anything(what=b"x"), Anything),
        (Anything(what=AWARE), Anything),
    ],
    ids=repr,
)
def test_what_would_come_back_changed_is_refused_or_comes_back(value: Any, annotation: Any) -> None:
    """JSON cannot tell these apart for pydantic: either answer is honest, a silent change is not."""
    try:
        back = round_trip(value, annotation)
    except UnsupportedValueError:
        return
    assert back == value
    assert type(back) is type(value)


@given(json_values)
def test_json_comes_back_as_it_was(value: Any) -> None:
    assert round_trip(value) == value


wrapped_names = st.sampled_from(["$bytes", "$datetime", "$file", "$contents", "$dict", "$", "plain"])


@given(
    st.recursive(
        st.text("ab=", max_size=4) | st.sampled_from([b"", b"x", b"\x00\xfe"]) | st.just(AWARE),
        lambda inner: st.dictionaries(wrapped_names, inner, max_size=2) | st.lists(inner, max_size=2),
        max_leaves=6,
    )
)
def test_dictionaries_that_look_like_wrapped_values_are_not_mistaken(value: Any) -> None:
    assert round_trip(value) == value


def test_a_tuple_without_annotation_comes_back_as_the_list_that_json_has() -> None:
    assert round_trip((1, (2,))) == [1, [2]]


@pytest.mark.parametrize(
    "value, named",
    [
        (object(), "builtins.object"),
        ({"a": [1, {2, 3}]}, "builtins.set"),
        ({"segments": [Segment(start=0, words=[])]}, "Segment"),
        (Point(1), "Point"),
        (Decimal(1), "decimal.Decimal"),
        (lambda: None, "function"),
        ({1: "a"}, "key 1 of type int"),
    ],
)
def test_what_needs_an_annotation_is_refused_with_its_type_and_the_way_out(value: Any, named: str) -> None:
    with pytest.raises(UnsupportedValueError, match="annotate the task's return type") as refusal:
        ValueCodec().encode(value)
    assert named in str(refusal.value)


def test_a_refusal_says_where_in_the_value() -> None:
    with pytest.raises(UnsupportedValueError, match=r"value\['segments'\]\[1\] is a "):
        ValueCodec().encode({"segments": [1, object()]})


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("annotation", [Any, list[float], tuple[float, ...], dict[str, Any]])
def test_numbers_that_json_does_not_have_are_refused(number: float, annotation: Any) -> None:
    value: Any = {"a": number} if annotation == dict[str, Any] else [number]
    with pytest.raises(UnsupportedValueError):
        ValueCodec(annotation).encode(tuple(value) if annotation == tuple[float, ...] else value)


def test_nan_in_a_model_is_refused() -> None:
    with pytest.raises(UnsupportedValueError):
        ValueCodec(Segment).encode(Segment(start=math.nan, words=[]))


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, "\ud800"])
def test_what_the_json_writer_cannot_write_is_refused(value: Any) -> None:
    with pytest.raises(UnsupportedValueError):
        ValueCodec().encode({"a": value})


@pytest.mark.parametrize("annotation", [WithPath, NestedPath, list[WithPath], Path | None, dict[str, WithPath]])
def test_a_path_inside_a_model_is_refused_before_anything_runs(annotation: Any) -> None:
    with pytest.raises(UnsupportedValueError, match="CachedFile"):
        ValueCodec(annotation)


@pytest.mark.parametrize("annotation", [threading.Thread, list[threading.Thread], "x".join])
def test_an_annotation_that_nothing_can_come_back_as_is_refused(annotation: Any) -> None:
    with pytest.raises(UnsupportedValueError):
        ValueCodec(annotation)


def test_a_value_of_another_type_than_annotated_is_refused() -> None:
    with pytest.raises(UnsupportedValueError, match="int"):
        ValueCodec(Segment).encode(7)


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b'{"start": "x"}', b"\xff"])
def test_json_that_is_not_of_the_annotated_type_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptEntryError):
        ValueCodec(Segment).decode(data)


@pytest.mark.parametrize(
    "data",
    [
        b'{"$bytes": "*"}',
        b'{"$datetime": "yesterday"}',
        b'{"$file": {"digest": "x"}}',
        b'{"$file": 7}',
        b'{"$contents": {}}',
    ],
)
def test_wrapped_json_that_holds_nonsense_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptEntryError):
        ValueCodec().decode(data)


def test_a_produced_path_becomes_a_cached_file(tmp_path: Path) -> None:
    produced = tmp_path / "a.wav"
    produced.write_bytes(b"sound")
    for annotation in (Any, Path, CachedFile):
        encoded = ValueCodec(annotation).encode(produced)
        assert [file.size for file in encoded.files] == [5]
        back = ValueCodec(annotation).decode(encoded.json)
        assert isinstance(back, CachedFile)
        assert back == CachedFile.from_path(produced)


@pytest.mark.parametrize("annotation", [Any, list[Path], list[CachedFile]])
def test_produced_paths_in_a_list_become_cached_files(annotation: Any, tmp_path: Path) -> None:
    produced = [tmp_path / name for name in ("a.wav", "b.wav")]
    for path in produced:
        path.write_bytes(path.name.encode())
    encoded = ValueCodec(annotation).encode(produced)
    assert len(encoded.files) == 2
    assert ValueCodec(annotation).decode(encoded.json) == [CachedFile.from_path(path) for path in produced]


def test_files_in_models_are_found(tmp_path: Path) -> None:
    produced = tmp_path / "a.wav"
    produced.write_bytes(b"sound")
    value = Transcript(text="t", at=AWARE, segments=[], audio=CachedFile.from_path(produced))
    encoded = ValueCodec(Transcript).encode(value)
    assert [file.name for file in encoded.files] == ["a.wav"]
    assert ValueCodec(Transcript).decode(encoded.json) == value


MAGICS = {
    "wav": b"RIFF\x00\x00\x00\x00WAVE",
    "flac": b"fLaC\x00\x00\x00\x22",
    "ogg": b"OggS\x00\x02\x00\x00",
    "mp3 with tag": b"ID3\x04\x00\x00\x00\x00",
    "mp3": b"\xff\xfb\x90\x64\x00\x00\x00\x00",
    "webm": b"\x1aE\xdf\xa3\x01\x00\x00\x00",
    "m4a": b"\x00\x00\x00\x20ftypM4A ",
}


@pytest.mark.parametrize("magic", MAGICS.values(), ids=MAGICS)
@pytest.mark.parametrize("annotation", [Any, bytes], ids=["unannotated", "bytes"])
def test_audio_among_small_values_is_refused(magic: bytes, annotation: Any) -> None:
    with pytest.raises(UnsupportedValueError, match="CachedFile"):
        ValueCodec(annotation).encode(magic + bytes(100_000))


def test_bytes_of_a_kind_of_large_results_become_a_file(tmp_path: Path) -> None:
    def spool(data: bytes) -> CachedFile:
        (tmp_path / "spooled").write_bytes(data)
        return CachedFile.from_path(tmp_path / "spooled")

    encoded = ValueCodec(bytes).encode(MAGICS["wav"], spool)
    assert [file.size for file in encoded.files] == [len(MAGICS["wav"])]
    assert b"RIFF" not in encoded.json


@pytest.mark.parametrize(
    "annotation, plain",
    [
        (Any, True),
        (dict, True),
        (dict[str, list[int]], True),
        (dict[int, str], False),
        (tuple, False),
        (Segment, False),
        (bytes, False),
        (int | None, False),
    ],
)
def test_which_annotations_json_alone_fulfils(annotation: Any, plain: bool) -> None:  # noqa: FBT001 - a table's column
    assert is_plain(annotation) is plain


def test_the_annotation_of_a_function() -> None:
    def annotated() -> Segment: ...
    def silent(): ...  # noqa: ANN202  # pyright: ignore[reportUnknownParameterType]
    def unresolvable() -> "Missing": ...  # noqa: F821, UP037  # pyright: ignore[reportUndefinedVariable, reportUnknownParameterType]

    assert return_annotation(annotated) is Segment
    assert return_annotation(silent) is Any  # pyright: ignore[reportUnknownArgumentType]
    assert return_annotation(unresolvable) is Any  # pyright: ignore[reportUnknownArgumentType]


def test_codecs_are_made_once_and_unhashable_annotations_do_not_matter() -> None:
    assert codec_of(Segment) is codec_of(Segment)
    assert codec_of(Literal["a"]).decode(b'"a"') == "a"
