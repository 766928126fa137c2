"""Fuzzing what reads bytes from tiers: only `CacheError` ever comes out, in bounded memory. `make fuzz` runs it."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import orjson
import pydantic
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache_blocks import CachedFile, codec
from cache_blocks.errors import CacheError
from cache_blocks.testing import KEY, entry_for
from cache_blocks.values import ValueCodec
from tests.unit.test_codec import json_values

# Hypothesis takes a thread that another test has left behind, and that rolls dice, for a strategy that does.
_STRANGERS = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
pytestmark = [pytest.mark.long, _STRANGERS]
SECONDS = float(os.environ.get("FUZZ_SECONDS", "60"))
EXAMPLES_AT_ONCE = 1000
MOST_BYTES = 64 * 1024 * 1024


class Word(pydantic.BaseModel):
    text: str
    at: float
    file: CachedFile | None = None


@dataclasses.dataclass
class Part:
    words: list[Word]
    made: dt.datetime | None = None


ANNOTATIONS: tuple[Any, ...] = (
    Any,
    str,
    bytes,
    CachedFile,
    dt.datetime,
    Word,
    list[Word],
    Part,
    dict[str, bytes],
    int | str,
)
CODECS = [ValueCodec(annotation) for annotation in ANNOTATIONS]
BLOB = {"digest": "ab" * 32, "size": 3, "name": "a.wav", "media_type": "audio/wav"}
SEEDS = [
    codec.pack(entry_for()),
    codec.pack(entry_for(value={"$bytes": "QQ=="}, tags=["a", "b"])),
    codec.pack(entry_for(value=[1.5, None, {"text": "x" * 500}], blobs={"ab" * 32: 3})),
    codec.pack(entry_for(), with_manifest=False),
]
BOMB = codec.compress(b"\x00" * 10_000_000)
_VALUES: list[Any] = [
    {"$bytes": "QQ=="}, {"$datetime": "2024-01-01T00:00:00"}, {"$file": BLOB}, {"$contents": BLOB}, BLOB,
    {"$dict": {"$bytes": {}}}, {"text": "x", "at": 1.5, "file": BLOB}, {"words": [{"text": "x", "at": 1}]},
]  # fmt: skip
VALUES = [orjson.dumps(value) for value in _VALUES]


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Sound bytes with a few changes: bits flipped, parts cut out, repeated, or overwritten with others."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 16))
        change = draw(st.sampled_from(["flip", "cut", "repeat", "overwrite"]))
        if change == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "cut":
            del data[at : at + length]
        elif change == "repeat":
            data[at:at] = data[at : at + length] * draw(st.integers(1, 50))
        else:
            data[at : at + length] = draw(st.binary(max_size=24))
    return bytes(data)


def _as_json(value: Any) -> bytes:
    return orjson.dumps(value)


@st.composite
def sealed(draw: st.DrawFn) -> bytes:
    """An envelope whose digest is right, around a header and a payload that anything may be wrong with."""
    header = codec._header(entry_for(), with_manifest=True)
    for name in draw(st.lists(st.sampled_from(sorted(header)), max_size=3)):
        header[name] = draw(json_values | st.integers(-(2**63), 2**64 - 1))
    extra = draw(st.sampled_from([{}, {"blobs": draw(json_values)}, {"usage": draw(json_values)}]))
    packed = orjson.dumps(header | extra)
    frames = st.sampled_from([entry_for().payload, BOMB])
    payload = draw(frames | mutated([entry_for().payload]) | st.binary(max_size=60))
    prefix = codec._PREFIX.pack(codec.MAGIC, codec.VERSION, 0, draw(st.integers(0, 2**64 - 1)), len(packed))
    return prefix + blake3(prefix + packed + payload).digest() + packed + payload


def for_a_while(check: Callable[[], None]) -> None:
    """Run a check, of `EXAMPLES_AT_ONCE` examples, again and again; what it allocates stays bounded."""
    tracemalloc.start()
    try:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            check()
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


without_hurry = settings(
    max_examples=EXAMPLES_AT_ONCE,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.promise("Any bytes give an entry or a CacheError, in bounded memory", tries=f"{SECONDS:.0f} s")
def test_any_envelope_is_an_entry_or_an_error_of_ours() -> None:
    @without_hurry
    @given(mutated(SEEDS) | sealed() | st.binary(max_size=300))
    def check(data: bytes) -> None:
        try:
            entry = codec.unpack(data, key=KEY, namespace="default")
            json = codec.payload_of(entry)
        except CacheError:
            return
        assert len(json) == entry.size
        assert codec.unpack(codec.pack(entry), key=KEY, namespace="default") == entry

    for_a_while(check)


@pytest.mark.promise("Any payload gives a value or a CacheError", tries=f"{SECONDS:.0f} s, {len(CODECS)} types")
def test_any_payload_is_a_value_or_an_error_of_ours() -> None:
    @st.composite
    def nested(draw: st.DrawFn) -> bytes:
        depth = draw(st.integers(1, 3000))
        return b"[" * depth + draw(st.sampled_from(VALUES)) + b"]" * depth

    @without_hurry
    @given(mutated(VALUES) | nested() | json_values.map(_as_json) | st.binary(max_size=100), st.sampled_from(CODECS))
    def check(data: bytes, decoder: ValueCodec) -> None:
        if b"$contents" in data:
            data = data.replace(b"$contents", b"$file")  # which would be fetched
        try:
            decoder.decode(data)
        except CacheError:
            return

    for_a_while(check)


def test_a_size_that_is_declared_and_not_there_takes_no_memory() -> None:
    """The other half of a bomb: a header that promises the most there may be, around a few bytes."""
    entry = dataclasses.replace(entry_for(), size=codec.MAX_PAYLOAD_BYTES)
    tracemalloc.start()
    try:
        with pytest.raises(CacheError, match="declared size"):
            codec.payload_of(entry)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
