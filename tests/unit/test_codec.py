"""Envelopes: what comes out is what went in, or a `CorruptEntryError`."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import pickle
import tracemalloc
from dataclasses import replace
from typing import Any

import orjson
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from cache_blocks import codec
from cache_blocks.entry import NO_VALUE, Entry
from cache_blocks.errors import CacheError, CorruptEntryError, UnknownVersionError
from cache_blocks.testing import KEY, entry_for

SMALL = codec.pack(entry_for(value="x"))

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


def unpack(data: bytes) -> Entry:
    return codec.unpack(data, key=KEY, namespace="default")


def sealed(header: bytes, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """Return an envelope with a digest that is right, whatever its header says."""
    prefix = codec._PREFIX.pack(codec.MAGIC, codec.VERSION, 0, 1, len(header) if length is None else length)
    return prefix + blake3(prefix + header + payload).digest() + header + payload


def header_of(entry: Entry, **changes: Any) -> bytes:
    return orjson.dumps(codec._header(entry, with_manifest=True) | changes)


@given(
    value=json_values,
    tags=st.lists(texts.filter(bool), max_size=4, unique=True),
    fence=st.integers(0, 2**63 - 1),
    usage=st.dictionaries(texts, st.floats(0, 1e9), max_size=3),
    manifest=st.dictionaries(texts, json_values, max_size=3),
)
def test_what_is_packed_is_unpacked(
    value: Any, tags: list[str], fence: int, usage: dict[str, float], manifest: dict[str, Any]
) -> None:
    entry = entry_for(value=value, tags=tags, fence=fence, usage=usage, manifest=manifest)
    unpacked = unpack(codec.pack(entry))
    assert unpacked == entry
    assert orjson.loads(codec.payload_of(unpacked)) == value


def test_a_copy_without_manifest_is_smaller_and_otherwise_equal() -> None:
    entry = entry_for()
    small = codec.pack(entry, with_manifest=False)
    assert len(small) < len(codec.pack(entry))
    assert unpack(small) == replace(entry, manifest={})


@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_every_flipped_byte_is_noticed(bit: int) -> None:
    for offset in range(len(SMALL)):
        damaged = bytearray(SMALL)
        damaged[offset] ^= bit
        with pytest.raises(CorruptEntryError):
            unpack(bytes(damaged))


def test_every_truncation_and_any_addition_is_noticed() -> None:
    for length in range(len(SMALL)):
        with pytest.raises(CorruptEntryError):
            unpack(SMALL[:length])
    with pytest.raises(CorruptEntryError):
        unpack(SMALL + b"\x00")


def test_another_version_is_told_apart_from_damage() -> None:
    with pytest.raises(UnknownVersionError, match="version 2"):
        unpack(SMALL[:4] + b"\x02" + SMALL[5:])


def test_the_envelope_of_another_key_or_namespace_is_not_ours() -> None:
    with pytest.raises(CorruptEntryError, match="transcript:1f2e"):
        codec.unpack(SMALL, key="transcript:other", namespace="default")
    with pytest.raises(CorruptEntryError, match="default"):
        codec.unpack(SMALL, key=KEY, namespace="other")


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_our_errors(data: bytes) -> None:
    with pytest.raises(CacheError):
        unpack(data)


@given(st.binary(max_size=80), st.integers(0, 200))
def test_random_bytes_under_a_right_digest_raise_nothing_but_our_errors(data: bytes, length: int) -> None:
    with pytest.raises(CacheError):
        unpack(sealed(data, length=min(length, len(data))))


WRONG_HEADERS = [
    b"",
    b"null",
    b"[]",
    b'"text"',
    b"{}",
    b"{",
    b"\xff\xfe",
    header_of(entry_for(), size=-1),
    header_of(entry_for(), size=codec.MAX_PAYLOAD_BYTES + 1),
    header_of(entry_for(), size="x"),
    header_of(entry_for(), expires_at=None),
    header_of(entry_for(), expires_at="nan"),
    header_of(entry_for(), expires_at="inf"),
    header_of(entry_for(), created_at=[]),
    header_of(entry_for(), generations=[0]),
    header_of(entry_for(), generations={"all": 1}),
    header_of(entry_for(), generations=5),
    header_of(entry_for(), placement=None),
    header_of(entry_for(), placement=[["redis"]]),
    header_of(entry_for(), blobs=[1]),
    header_of(entry_for(), blobs={"ab": "x"}),
    header_of(entry_for(), blobs={"../../../secret": 1}),
    header_of(entry_for(), blobs={"ab" * 32: -1}),
    header_of(entry_for(), expires_at=1e300),
    header_of(entry_for(), usage=[1]),
    header_of(entry_for(), usage={"tokens": "many"}),
    header_of(entry_for(), manifest=["task"]),
    header_of(entry_for(), key="../../etc/passwd"),
    header_of(entry_for(), key=7),
    *(header_of(entry_for()).replace(orjson.dumps(part), b"[" * 1010 + b"]" * 1010) for part in (KEY, "default")),
    header_of(replace(entry_for(), tags=("deep",))).replace(b'"deep"', b"[" * 1010 + b"]" * 1010),
]


@pytest.mark.parametrize("header", WRONG_HEADERS, ids=range(len(WRONG_HEADERS)))
def test_a_header_of_the_wrong_shape_is_corrupt_though_its_digest_is_right(header: bytes) -> None:
    with pytest.raises(CorruptEntryError) as raised:
        unpack(sealed(header, entry_for().payload))
    assert len(str(raised.value)) < 1000, "whoever can write to a tier writes no book into the log"


def test_what_another_entry_calls_itself_is_told_in_one_short_line() -> None:
    header = header_of(entry_for(), key="x\n" * 100_000, namespace="y\n" * 100_000)
    with pytest.raises(CorruptEntryError, match="holds another entry") as raised:
        unpack(sealed(header, entry_for().payload))
    assert len(str(raised.value)) < 1000
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"not a frame",
        pickle.dumps({"a": 1}),
        entry_for().payload[:-1],
        codec.compress(b'"a longer transcript"'),
    ],
    ids=["empty", "text", "pickle", "cut", "another size"],
)
def test_a_payload_that_is_not_the_declared_frame_is_corrupt(payload: bytes) -> None:
    with pytest.raises(CorruptEntryError):
        codec.payload_of(replace(entry_for(), payload=payload))


def test_a_decompression_bomb_is_refused_in_bounded_memory() -> None:
    bomb = codec.compress(b"\x00" * 200_000_000)
    assert len(bomb) < 1_000_000
    tracemalloc.start()
    try:
        with pytest.raises(CorruptEntryError, match="declared size"):
            codec.payload_of(replace(entry_for(), payload=bomb, size=1000))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_entries_and_the_absent_value_pickle_into_another_process() -> None:
    assert pickle.loads(pickle.dumps(entry_for())) == entry_for()  # noqa: S301 - our own bytes
    assert pickle.loads(pickle.dumps(NO_VALUE)) is NO_VALUE  # noqa: S301
    assert not NO_VALUE
