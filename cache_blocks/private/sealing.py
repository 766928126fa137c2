"""Sealed bytes: AES-256-GCM under a key of their own, in chunks, so that any size takes constant memory.

Layout::

    magic 4s "PCBS" | format u8 | reserved 3s | key id 16s | key check 8s | salt 32s | chunk | chunk | … | last chunk

A chunk is 1 MiB of plain bytes and a tag of 16; the last one may be shorter, and there always is one. Each thing that
is sealed has a key of its own, derived (HKDF) from the ring's key and the random salt. So the ring's key meets no limit
of messages, and nonces may count: 7 zero bytes, the chunk's number, and whether it is the last, which is the STREAM
construction (https://eprint.iacr.org/2015/189): a chunk that is missing, moved, doubled or cut off is found.
Associated data, in every chunk, are the header and where the bytes belong.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, Final

import orjson

from cache_blocks.errors import CorruptEntryError, PrivateKeyMissingError
from cache_blocks.private.ring import CHECK_BYTES, MAX_ID_LETTERS, KeyRing, derive

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAGIC: Final = b"PCBS"
CHUNK_BYTES: Final = 1024 * 1024
TAG_BYTES: Final = 16
_FORMAT: Final = 1
_FRONT: Final = struct.Struct(">4sB3s")
_LABEL: Final = slice(_FRONT.size, _FRONT.size + MAX_ID_LETTERS + CHECK_BYTES)
_SALT_BYTES: Final = 32
HEADER_BYTES: Final = _LABEL.stop + _SALT_BYTES
_NONCE: Final = struct.Struct(">7xI?")
_MOST_CHUNKS: Final = 2**32

Place = Sequence[str]
"""Where sealed bytes belong, such as ``("payload", namespace, key)``; anywhere else they do not open."""


def is_sealed(data: bytes) -> bool:
    """Whether bytes are, or begin like, sealed ones."""
    return data[: len(MAGIC)] == MAGIC


def label_of(data: bytes) -> bytes:
    """Return what the header of sealed bytes says of their key; see `Key.label`."""
    return data[_LABEL]


def id_of(data: bytes) -> str:
    """Return the id of the key that bytes were sealed with, for people."""
    return label_of(data)[:MAX_ID_LETTERS].rstrip(b"\0").decode("ascii", "replace")


def sealed_size(size: int) -> int:
    """Return how many bytes ``size`` plain ones become."""
    return HEADER_BYTES + size + TAG_BYTES * max(1, -(-size // CHUNK_BYTES))


def seal(data: bytes, ring: KeyRing, place: Place) -> bytes:
    """Return bytes sealed with the current key of a ring."""
    return b"".join(_sealed(io.BytesIO(data), ring, place))


def unseal(data: bytes, ring: KeyRing, place: Place) -> bytes:
    """Return what `seal` was given.

    Raises:
        PrivateKeyMissingError: The ring does not have the key.
        CorruptEntryError: The bytes are not what was sealed, or not for this place.
    """
    return b"".join(unsealed_parts(io.BytesIO(data), ring, place))


def seal_stream(source: BinaryIO, target: BinaryIO, ring: KeyRing, place: Place) -> None:
    """Copy plain bytes to sealed ones, in constant memory."""
    target.writelines(_sealed(source, ring, place))


def unseal_stream(source: BinaryIO, target: BinaryIO, ring: KeyRing, place: Place) -> None:
    """Copy sealed bytes to plain ones, in constant memory. What was written before an error counts for nothing.

    Raises:
        PrivateKeyMissingError: The ring does not have the key.
        CorruptEntryError: The bytes are not what was sealed, or not for this place.
    """
    target.writelines(unsealed_parts(source, ring, place))


def _sealed(source: BinaryIO, ring: KeyRing, place: Place) -> Iterator[bytes]:
    salt = os.urandom(_SALT_BYTES)
    header = _FRONT.pack(MAGIC, _FORMAT, b"") + ring.current.label + salt
    yield header
    cipher, about = _cipher(ring.current.secret, salt), _about(header, place)
    for number, chunk, last in _chunks(source, CHUNK_BYTES):
        yield cipher.encrypt(_NONCE.pack(number, last), chunk, about)


def unsealed_parts(source: BinaryIO, ring: KeyRing, place: Place) -> Iterator[bytes]:
    """Yield the plain bytes of sealed ones, each chunk once it has proved genuine; raises as `unseal_stream` does."""
    from cryptography.exceptions import InvalidTag

    header = source.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES or not is_sealed(header):
        raise CorruptEntryError("not sealed bytes of this package")
    if header[len(MAGIC)] != _FORMAT:
        raise CorruptEntryError(f"sealed in the unknown format {header[len(MAGIC)]}")
    if (key := ring.by_label.get(label_of(header))) is None:
        raise PrivateKeyMissingError(id_of(header))
    cipher, about = _cipher(key.secret, header[_LABEL.stop :]), _about(header, place)
    for number, chunk, last in _chunks(source, CHUNK_BYTES + TAG_BYTES):
        try:
            yield cipher.decrypt(_NONCE.pack(number, last), chunk, about)
        except InvalidTag:
            raise CorruptEntryError("sealed bytes are damaged, or belong elsewhere") from None


def _chunks(source: BinaryIO, size: int) -> Iterator[tuple[int, bytes, bool]]:
    """Yield number and bytes of each chunk, and whether it is the last; there is at least one."""
    chunk, number = _read(source, size), 0
    while True:
        following = _read(source, size) if len(chunk) == size else b""
        yield number, chunk, not following
        if not following:
            return
        chunk, number = following, number + 1
        if number == _MOST_CHUNKS:
            raise CorruptEntryError("more than 4 PiB in one piece")


def _read(source: BinaryIO, size: int) -> bytes:
    """Return the next ``size`` bytes, fewer only at the end: remote streams give what they have."""
    data = source.read(size)
    while 0 < len(data) < size and (more := source.read(size - len(data))):
        data += more
    return data


def _cipher(secret: bytes, salt: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(derive(secret, b"seal", salt=salt))


def _about(header: bytes, place: Place) -> bytes:
    return header + orjson.dumps(list(place))
