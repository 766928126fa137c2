"""What a batch is cut into, and what a shard and its batch tell each other: pure, so Hypothesis may try anything."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.outputs import RecordingResult, output_stems
from flows.shards import (
    AGAIN,
    Shard,
    ShardRun,
    cut,
    lost_results,
    reasons_of,
    results_of,
    results_to_bytes,
    shards_of,
)
from flows.sources import Recording, recordings_at

ANY = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..")  # which are folders
)
ALIKE = st.builds(
    "{}{}".format, st.sampled_from(["a", "A", "b", "c/a", "index"]), st.sampled_from(["", ".mp3", ".wav"])
)
"""Names whose outputs would have the same one without their suffixes."""
NAMES = st.lists(ANY | ALIKE, unique=True, max_size=60)
SIZES = st.integers(1, 70)


def recordings(names: list[str]) -> list[Recording]:
    return [Recording(name, Path("/calls") / name) for name in sorted(names)]


@given(st.lists(st.integers(), max_size=300), SIZES)
def test_every_item_is_in_one_page_and_their_order_is_kept(items: list[int], size: int) -> None:
    pages = cut(items, size)
    assert [item for page in pages for item in page] == items
    assert len(pages) == math.ceil(len(items) / size), "as few as possible"
    if pages:
        lengths = [len(page) for page in pages]
        assert 0 < min(lengths) <= max(lengths) <= min(size, min(lengths) + 1), "as equal as possible"


@given(NAMES, SIZES)
def test_every_recording_is_in_one_shard_and_is_called_as_in_the_whole_batch(names: list[str], size: int) -> None:
    batch = recordings(names)
    shards = list(shards_of(batch, size))
    assert [one.name for shard in shards for one in shard.recordings] == [recording.name for recording in batch]
    stems = {one.name: stem for shard in shards for one, stem in zip(shard.recordings, shard.stems, strict=True)}
    assert stems == output_stems([recording.name for recording in batch])
    assert list(shards_of(batch, size)) == shards, "the same again, so that what is running need not be asked"


@given(NAMES, SIZES)
def test_a_shard_finds_its_recordings_as_the_batch_has_found_them(names: list[str], size: int) -> None:
    """Names that are no text in any encoding too: a surrogate stands for a byte of a file's name."""
    batch = recordings([*names, "not\udcfftext.wav"])
    told = [Shard.from_bytes(shard.to_bytes()) for shard in shards_of(batch, size)]
    assert [one for shard in told for one in recordings_at(shard.recordings, "/calls")] == batch


@given(NAMES)
def test_an_answer_is_taken_if_it_is_about_the_shard_s_recordings(names: list[str]) -> None:
    results = [RecordingResult(name=name, text="said", keywords=["a"], written=2) for name in names]
    answer = results_to_bytes(results)
    assert results_of(names, answer) == results
    assert results_of([*names, "another.wav"], answer) is None
    if names:
        assert results_of(names, None) is None
        assert results_of(names, answer[: len(answer) // 2]) is None, "not written whole"
        assert results_of(names, b'{"name": 1}') is None


def test_recordings_of_a_lost_shard_say_so_with_the_way_out_and_are_no_reasons_of_their_own() -> None:
    lost = ShardRun(name="transcribe calls, shard 2 of 3", recordings=2, lost="crashed (killed)")
    done = ShardRun(name="transcribe calls, shard 1 of 3", recordings=1)
    told = lost_results(["b", "c"], lost)
    assert [(one.name, one.status, one.reason) for one in told] == [
        (name, "failed", f"transcribe calls, shard 2 of 3 crashed (killed): {AGAIN}") for name in ("b", "c")
    ]
    failed = [RecordingResult(name="a.wav", status="failed", reason="empty: no bytes"), *told]
    assert reasons_of(failed, [done, lost]) == ["a.wav: empty: no bytes"]


@pytest.mark.parametrize("count", [1_000_000])
def test_a_night_of_a_million_is_cut_at_once(count: int) -> None:
    pages = cut(range(count), 500)
    assert (len(pages), {len(page) for page in pages}) == (2000, {500})
