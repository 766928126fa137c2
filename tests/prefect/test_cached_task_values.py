"""What a task returns is the same on a miss and on a hit, or it is returned untouched and an error says why."""

import asyncio
import datetime as dt
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from cache_blocks import AUDIO_PREPROCESSING, TRANSCRIPT, CachedFile, TieredCache, cached_task
from cache_blocks import events as actions
from tests.prefect.observed import Calls, errors_of, recorded, run_async


class Word(BaseModel):
    text: str
    start: float


@dataclass
class Span:
    begin: int
    end: int


class Recording(BaseModel):
    title: str
    audio: CachedFile


@cached_task(kind=TRANSCRIPT)
def give_json(text: str) -> dict[str, Any]:
    return {"text": text, "numbers": [1, 2.5, None, True], "$bytes": "not bytes"}


@cached_task(kind=TRANSCRIPT)
def give_nothing(text: str) -> None:
    del text


@cached_task(kind=TRANSCRIPT)
def give_model(text: str) -> Word:
    return Word(text=text, start=0.5)


@cached_task(kind=TRANSCRIPT)
def give_dataclass(text: str) -> Span:
    return Span(0, len(text))


@cached_task(kind=TRANSCRIPT)
def give_models(text: str) -> list[Word]:
    return [Word(text=letter, start=float(number)) for number, letter in enumerate(text)]


@cached_task(kind=TRANSCRIPT)
def give_bytes(text: str) -> bytes:
    return text.encode() + b"\x00\xff"


@cached_task(kind=TRANSCRIPT)
def give_bytes_without_saying_so(text: str):  # noqa: ANN201
    return text.encode() + b"\x00\xff"


@cached_task(kind=TRANSCRIPT)
def give_datetime(text: str) -> dt.datetime:
    return dt.datetime(2026, 1, len(text), 12, 30, 15, 123456, tzinfo=dt.UTC)


@cached_task(kind=TRANSCRIPT)
def give_tuple(text: str) -> tuple[str, int]:
    return text, len(text)


@cached_task(kind=TRANSCRIPT)
async def give_model_later(text: str) -> Word:
    await asyncio.sleep(0)
    return Word(text=text, start=0.5)


@pytest.mark.parametrize(
    "task, value",
    [
        (give_json, {"text": "abc", "numbers": [1, 2.5, None, True], "$bytes": "not bytes"}),
        (give_nothing, None),
        (give_model, Word(text="abc", start=0.5)),
        (give_dataclass, Span(0, 3)),
        (give_models, [Word(text="a", start=0), Word(text="b", start=1), Word(text="c", start=2)]),
        (give_bytes, b"abc\x00\xff"),
        (give_bytes_without_saying_so, b"abc\x00\xff"),
        (give_datetime, dt.datetime(2026, 1, 3, 12, 30, 15, 123456, tzinfo=dt.UTC)),
        (give_tuple, ("abc", 3)),
        (give_model_later, Word(text="abc", start=0.5)),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else "",
)
def test_a_hit_is_of_the_same_type_and_value_as_the_miss(task: Any, value: object) -> None:
    states: list[Any] = [task("abc", return_state=True) for _ in range(2)]
    states = [run_async(state) if asyncio.iscoroutine(state) else state for state in states]

    assert [state.name for state in states] == ["Completed", "Cached"]
    for state in states:
        result = state.result()
        assert type(result) is type(value)
        assert result == value


def test_a_tuple_without_annotation_is_a_list_on_the_miss_already() -> None:
    @cached_task(kind=TRANSCRIPT)
    def pair(text: str):  # noqa: ANN202
        return text, len(text)

    assert [pair("abc"), pair("abc")] == [["abc", 3], ["abc", 3]]


def test_a_produced_file_comes_back_with_its_bytes(tmp_path: Path, cache: TieredCache) -> None:
    @cached_task(kind=AUDIO_PREPROCESSING)
    def produce(text: str) -> CachedFile:
        path = tmp_path / "produced.txt"
        path.write_text(text)
        return CachedFile.from_path(path, "text/plain")

    computed = produce("abc")
    (tmp_path / "produced.txt").unlink()
    found = produce("abc")

    assert computed == found
    assert (found.name, found.media_type, found.size) == ("produced.txt", "text/plain", 3)
    assert computed.path.read_text() == Path(found).read_text() == "abc"
    assert cache.settings.home in found.path.parents


def test_a_path_is_a_cached_file_on_the_miss_already(tmp_path: Path) -> None:
    @cached_task(kind=AUDIO_PREPROCESSING)
    def produce(text: str) -> Path:
        path = tmp_path / "produced.txt"
        path.write_text(text)
        return path

    computed, found = produce("abc"), produce("abc")

    assert type(computed) is type(found) is CachedFile
    assert Path(computed).read_text() == Path(found).read_text() == "abc"


def test_a_file_inside_a_model_comes_back_and_may_go_into_the_next_task(tmp_path: Path) -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    def produce(text: str) -> Recording:
        path = tmp_path / "produced.txt"
        path.write_text(text)
        return Recording(title=text, audio=CachedFile.from_path(path))

    @cached_task(kind=TRANSCRIPT)
    def consume(recording: Recording) -> str:
        calls.note()
        return recording.audio.path.read_text().upper()

    assert [consume(produce("abc")), consume(produce("abc"))] == ["ABC", "ABC"]
    assert calls.count == 1


def test_bytes_of_a_kind_of_large_results_live_in_the_object_store_only(cache: TieredCache) -> None:
    @cached_task(kind=AUDIO_PREPROCESSING)
    def produce(text: str) -> bytes:
        return b"RIFF" + text.encode() * 100_000

    assert produce("ab") == produce("ab") == b"RIFF" + b"ab" * 100_000
    (_, hit) = recorded(cache, actions.LOOKUP)
    entry = cache.lookup(hit.key).entry
    assert entry is not None
    assert entry.stored_bytes < 1000
    assert list(entry.blobs.values()) == [200_004]


def test_a_caller_that_changes_a_result_changes_only_its_own() -> None:
    pristine = {"text": "abc", "numbers": [1, 2.5, None, True], "$bytes": "not bytes"}

    for _ in range(3):
        mine = give_json("abc")
        assert mine == pristine
        mine["numbers"].append("changed")


# What cannot be kept


def test_nan_is_returned_untouched_and_an_error_says_that_it_is_not_kept(
    cache: TieredCache, caplog: pytest.LogCaptureFixture
) -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    def give_nan(text: str) -> dict[str, float]:
        calls.note()
        return {text: math.nan}

    assert [math.isnan(give_nan("x")["x"]), math.isnan(give_nan("x")["x"])] == [True, True]
    assert calls.count == 2
    assert any("is not cached" in line and "nan" in line for line in errors_of(caplog))
    assert len(recorded(cache, actions.UNSTORED)) == 2


class Unknown:
    """A type that JSON does not have."""


def test_a_value_of_another_type_is_returned_untouched_and_named(
    cache: TieredCache, caplog: pytest.LogCaptureFixture
) -> None:
    value = {"deep": [Unknown()]}

    @cached_task(kind=TRANSCRIPT)
    def give_unknown(text: str) -> Any:
        return value if text else None

    assert give_unknown("x") is value
    assert any("value['deep'][0] is a" in line and "Unknown" in line for line in errors_of(caplog))
    assert [event.action for event in recorded(cache, actions.UNSTORED)] == [actions.UNSTORED]


def test_a_value_that_is_not_what_the_annotation_says_is_returned_untouched(
    cache: TieredCache, caplog: pytest.LogCaptureFixture
) -> None:
    @cached_task(kind=TRANSCRIPT)
    def give_text(text: str) -> Word:
        return text  # type: ignore[return-value]  # pyright: ignore[reportReturnType]

    assert [give_text("x"), give_text("x")] == ["x", "x"]
    assert any("is not the annotated" in line for line in errors_of(caplog))
    assert len(recorded(cache, actions.UNSTORED)) == 2


def test_file_contents_among_small_values_are_refused_with_the_way_out(caplog: pytest.LogCaptureFixture) -> None:
    audio = b"RIFF" + bytes(100_000)

    @cached_task(kind=TRANSCRIPT)
    def give_audio(text: str) -> bytes:
        return audio + text.encode()

    assert give_audio("x") == audio + b"x"
    assert any("large_binary=True" in line for line in errors_of(caplog))
