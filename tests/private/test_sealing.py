"""Sealed bytes: whatever is done to them, they open to what was sealed, for where it was sealed, or not at all."""

from __future__ import annotations

import io
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_blocks.errors import ConfigurationError, CorruptEntryError, PrivateKeyMissingError
from cache_blocks.private.ring import KeyRing, new_key, new_ring
from cache_blocks.private.sealing import (
    CHUNK_BYTES,
    HEADER_BYTES,
    TAG_BYTES,
    id_of,
    seal,
    seal_stream,
    sealed_size,
    unseal,
    unseal_stream,
)

if TYPE_CHECKING:
    from typing import BinaryIO

RING = KeyRing.parse(new_ring("first"))
PLACE = ("payload", "default", "transcript:a")
SIZES = (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES)
SEALED_CHUNK = CHUNK_BYTES + TAG_BYTES


def chunks_of(sealed: bytes) -> tuple[bytes, list[bytes]]:
    """The header, and the sealed chunks."""
    body = sealed[HEADER_BYTES:]
    return sealed[:HEADER_BYTES], [body[start : start + SEALED_CHUNK] for start in range(0, len(body), SEALED_CHUNK)]


@pytest.mark.parametrize("size", SIZES)
def test_what_is_sealed_opens_again_and_its_size_is_known_beforehand(size: int) -> None:
    data = bytes(size)
    sealed = seal(data, RING, PLACE)
    assert len(sealed) == sealed_size(size)
    assert unseal(sealed, RING, PLACE) == data
    assert id_of(sealed) == "first"


def test_equal_bytes_are_sealed_differently_each_time() -> None:
    one, other = (seal(b"the same", RING, PLACE) for _ in range(2))
    assert one[HEADER_BYTES:] != other[HEADER_BYTES:]


@given(data=st.binary(max_size=300), where=st.integers(min_value=0), bit=st.integers(0, 7))
@pytest.mark.promise(
    "A private payload that was changed in any bit is no value.",
    tries="Hypothesis flips bits anywhere, header included",
)
def test_no_flipped_bit_goes_unnoticed(data: bytes, where: int, bit: int) -> None:
    sealed = bytearray(seal(data, RING, PLACE))
    sealed[where % len(sealed)] ^= 1 << bit
    with pytest.raises((CorruptEntryError, PrivateKeyMissingError)):
        unseal(bytes(sealed), RING, PLACE)


@given(cut=st.integers(min_value=0, max_value=2 * SEALED_CHUNK + HEADER_BYTES + 100))
def test_no_truncation_goes_unnoticed(cut: int) -> None:
    with pytest.raises(CorruptEntryError):
        unseal(TWO_CHUNKS[: min(cut, len(TWO_CHUNKS) - 1)], RING, PLACE)


TWO_CHUNKS = seal(b"x" * (2 * CHUNK_BYTES + 100), RING, PLACE)


@pytest.mark.parametrize(
    "order",
    [(1, 0, 2), (0, 2, 1), (0, 1), (0, 1, 1, 2), (0, 1, 2, 2), (2,), (1, 2), (0, 2)],
    ids=lambda order: "".join(map(str, order)),
)
@pytest.mark.promise(
    "Parts of a private file cannot be moved, left out or doubled.",
    tries="chunks of the STREAM construction are swapped, dropped, repeated and cut off",
)
def test_chunks_open_in_their_order_only(order: tuple[int, ...]) -> None:
    header, chunks = chunks_of(TWO_CHUNKS)
    with pytest.raises(CorruptEntryError):
        unseal(header + b"".join(chunks[number] for number in order), RING, PLACE)


def test_chunks_of_another_file_do_not_open() -> None:
    header, chunks = chunks_of(TWO_CHUNKS)
    _, others = chunks_of(seal(b"x" * (2 * CHUNK_BYTES + 100), RING, PLACE))
    with pytest.raises(CorruptEntryError):
        unseal(header + chunks[0] + others[1] + chunks[2], RING, PLACE)


@pytest.mark.parametrize(
    "elsewhere",
    [
        ("payload", "default", "transcript:b"),
        ("payload", "default", "other:a"),
        ("payload", "staging", "transcript:a"),
        ("manifest", "default", "transcript:a"),
        ("payload", "defaulttranscript", ":a"),
    ],
    ids=["key", "kind", "namespace", "purpose", "run together"],
)
def test_bytes_open_where_they_belong_only(elsewhere: tuple[str, ...]) -> None:
    with pytest.raises(CorruptEntryError, match="belong elsewhere"):
        unseal(seal(b"secret", RING, PLACE), RING, elsewhere)


def test_a_new_key_seals_and_the_old_one_still_opens() -> None:
    old = new_ring("old")
    names, key = old.split(",")
    both = KeyRing.parse(f"{names},{new_key('new')},{key}")
    before = seal(b"from before", KeyRing.parse(old), PLACE)
    assert unseal(before, both, PLACE) == b"from before"
    assert id_of(seal(b"from now", both, PLACE)) == "new"


def test_a_missing_key_is_named_and_another_of_its_name_is_not_taken_for_it() -> None:
    sealed = seal(b"secret", RING, PLACE)
    for ring in (new_ring("other"), new_ring("first")):
        with pytest.raises(PrivateKeyMissingError, match="'first'"):
            unseal(sealed, KeyRing.parse(ring), PLACE)


class _Zeros(io.RawIOBase):
    """So many zero bytes, made when they are read."""

    def __init__(self, size: int) -> None:
        self.left = size

    def read(self, size: int = -1) -> bytes:
        given = bytes(min(size, self.left))
        self.left -= len(given)
        return given


class _Counting(io.RawIOBase):
    def __init__(self) -> None:
        self.size = 0

    def write(self, data: object) -> int:
        self.size += len(data)  # type: ignore[arg-type]
        return len(data)  # type: ignore[arg-type]


def test_large_files_take_no_more_memory_than_small_ones() -> None:
    size, target = 64 * CHUNK_BYTES, _Counting()
    tracemalloc.start()
    try:
        source: BinaryIO = _Zeros(size)  # pyright: ignore[reportAssignmentType]
        seal_stream(source, target, RING, PLACE)  # pyright: ignore[reportArgumentType]
        assert target.size == sealed_size(size)
        assert tracemalloc.get_traced_memory()[1] < 8 * CHUNK_BYTES
    finally:
        tracemalloc.stop()


def test_nothing_follows_a_chunk_that_is_not_genuine() -> None:
    header, chunks = chunks_of(TWO_CHUNKS)
    damaged = header + chunks[0] + bytes(SEALED_CHUNK) + chunks[2]
    target = io.BytesIO()
    with pytest.raises(CorruptEntryError):
        unseal_stream(io.BytesIO(damaged), target, RING, PLACE)
    assert target.getvalue() == b"x" * CHUNK_BYTES


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "no key 'names'"),
        (new_key("first"), "no key 'names'"),
        (new_key("names"), "no key besides"),
        (f"{new_ring('a')},{new_key('a')}", "two keys"),
        (f"{new_key('names')},a:c2hvcnQ=", "not 32 bytes"),
        (f"{new_key('names')},a:!!!", "not 32 bytes"),
        (f"{new_key('names')},nothing", "not ID:BASE64"),
        (f"{new_key('names')},{new_key('Capital')}", "not ID:BASE64"),
        (f"{new_key('names')},{new_key('a' * 17)}", "not ID:BASE64"),
    ],
    ids=["empty", "no names", "names alone", "twice", "short", "no base64", "no key", "capital", "long id"],
)
def test_a_malformed_ring_is_refused_with_the_way_out_and_without_a_key(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as raised:
        KeyRing.parse(text)
    for member in text.split(","):
        assert (secret := member.partition(":")[2]) == "" or secret not in str(raised.value)
    assert "CACHE_BLOCKS_PRIVATE_KEYS" in str(raised.value)


def test_names_differ_by_what_they_name_by_namespace_and_by_ring() -> None:
    naming = RING.naming("default")
    names = {
        naming.digest("key", "a"),
        naming.digest("tag", "a"),
        naming.digest("key", "b"),
        RING.naming("staging").digest("key", "a"),
        KeyRing.parse(new_ring("first")).naming("default").digest("key", "a"),
    }
    assert len(names) == 5
    assert naming.digest("key", "a") == RING.naming("default").digest("key", "a")


def test_neither_ring_nor_key_shows_a_secret() -> None:
    assert "secret=" not in repr(RING)
    assert repr(RING.current) == "Key(id='first')"
