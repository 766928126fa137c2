"""Entries to bytes and back: a self-describing, verified envelope.

Layout, big-endian::

    magic 4s "PCBE" | version u8 | reserved u8 | fence u64 | header length u32 | BLAKE3 digest 32s | header | payload

The digest covers everything else. The header is JSON, the payload an LZ4 frame over JSON. Nothing in the
bytes chooses how they are decoded: another magic, version or length is an error, and decompression is
bounded by the size that the verified header declares. The fence sits at a fixed place so that Redis can
compare it without decoding.
"""

from __future__ import annotations

import math
import struct
from typing import Any, Final, cast

import lz4.frame
import orjson
from blake3 import blake3

from cache_blocks.entry import SCOPES_WITHOUT_TAGS, Entry
from cache_blocks.errors import CorruptEntryError, UnknownVersionError, UnsupportedValueError
from cache_blocks.fingerprint import is_digest

MAGIC: Final = b"PCBE"
VERSION: Final = 1
MAX_PAYLOAD_BYTES: Final = 256 * 1024 * 1024
"""Largest payload, uncompressed. Larger results are files."""
_MOST_PER_BYTE: Final = 255
"""What a byte of LZ4 can stand for at most (https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md)."""

_PLACES: Final = frozenset({"redis", "sql", "object_store"})
_PREFIX = struct.Struct(">4sBBQI")
_DIGEST_BYTES: Final = 32
_BODY: Final = _PREFIX.size + _DIGEST_BYTES
_LAST_FENCE: Final = 2**63 - 1  # what SQL's sequence can reach
_LAST_TIME: Final = 253_402_300_799.0  # the year 9999, which is where `datetime` ends
FENCE_OFFSET: Final = 6
"""Where the fence starts, in bytes; it is an unsigned 64-bit big-endian number."""


def compress(data: bytes) -> bytes:
    """Return ``data`` as an LZ4 frame that carries its own size."""
    return cast("bytes", lz4.frame.compress(data, store_size=True))


def payload_of(entry: Entry) -> bytes:
    """Return the payload's JSON.

    Raises:
        CorruptEntryError: The frame is damaged, or holds more or less than the entry declares.
    """
    if entry.size > _MOST_PER_BYTE * len(entry.payload):  # before memory is taken for it
        raise CorruptEntryError(f"{entry.key}: payload cannot have its declared size of {entry.size} bytes")
    try:
        decompressor = lz4.frame.LZ4FrameDecompressor()
        data = cast("bytes", decompressor.decompress(entry.payload, max_length=entry.size + 1))
    except (RuntimeError, EOFError, MemoryError) as error:
        raise CorruptEntryError(f"{entry.key}: payload is not an LZ4 frame: {error}") from error
    if len(data) != entry.size or not decompressor.eof:
        raise CorruptEntryError(f"{entry.key}: payload does not have its declared size of {entry.size} bytes")
    return data


def pack(entry: Entry, *, with_manifest: bool = True) -> bytes:
    """Return the envelope of an entry; without its manifest where a copy has to stay small.

    Raises:
        UnsupportedValueError: Manifest or tags hold what JSON does not have.
    """
    try:
        header = orjson.dumps(_header(entry, with_manifest=with_manifest))
    except orjson.JSONEncodeError as error:
        raise UnsupportedValueError(f"{entry.key}: manifest or tags cannot be written as JSON: {error}") from error
    prefix = _PREFIX.pack(MAGIC, VERSION, 0, entry.fence, len(header))
    digest = _digest(prefix, header, entry.payload)
    return b"".join((prefix, digest, header, entry.payload))


def unpack(data: bytes, *, key: str, namespace: str) -> Entry:
    """Return the verified entry.

    Args:
        data: Bytes that a tier gave for ``key``.
        key: Key that was asked for; an envelope of another key is corrupt.
        namespace: Namespace that was asked in; likewise.

    Raises:
        UnknownVersionError: The envelope is intact but of another version.
        CorruptEntryError: Anything else is wrong with it.
    """
    if len(data) < _BODY:
        raise CorruptEntryError(f"{key}: {len(data)} bytes are no envelope")
    magic, version, _, fence, header_length = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise CorruptEntryError(f"{key}: not an envelope of this package")
    if version != VERSION:
        raise UnknownVersionError(f"{key}: unknown version {version} of the envelope, this is {VERSION}")
    end = _BODY + header_length
    if end > len(data):
        raise CorruptEntryError(f"{key}: truncated header")
    header, payload = data[_BODY:end], data[end:]
    if _digest(data[: _PREFIX.size], header, payload) != data[_PREFIX.size : _BODY]:
        raise CorruptEntryError(f"{key}: digest does not match")
    return _entry(header, fence, payload, key, namespace)


def _digest(prefix: bytes, header: bytes, payload: bytes) -> bytes:
    hasher = blake3(prefix + header)
    hasher.update(payload)
    return hasher.digest()


def _places(names: Any) -> frozenset[str]:
    """Return the tiers of a header; ValueError when it names something else."""
    places = frozenset(names)
    if not places <= _PLACES:
        msg = f"{sorted(map(repr, places))} are not all tiers"
        raise ValueError(msg)
    return places


def _header(entry: Entry, *, with_manifest: bool) -> dict[str, Any]:
    """Return what the header says; what is empty is left out, to keep small entries small."""
    header: dict[str, Any] = {
        "key": entry.key,
        "namespace": entry.namespace,
        "created_at": entry.created_at,
        "expires_at": entry.expires_at,
        "compute_seconds": entry.compute_seconds,
        "generations": entry.generations,
        "placement": sorted(entry.placement),
        "size": entry.size,
    }
    optional = {"tags": entry.tags, "blobs": entry.blobs, "marks": entry.marks, "usage": entry.usage}
    header |= {name: value for name, value in optional.items() if value}
    if with_manifest and entry.manifest:
        header["manifest"] = entry.manifest
    return header


def _entry(packed: bytes, fence: int, payload: bytes, key: str, namespace: str) -> Entry:
    """Return the entry of a verified header; a header of the wrong shape is corrupt as well."""
    try:
        header: dict[str, Any] = orjson.loads(packed)
        if header["key"] != key or header["namespace"] != namespace:
            whose = f"of key {header['key']!r:.200} in namespace {header['namespace']!r:.100}"
            raise CorruptEntryError(f"{key}: holds another entry, {whose}")
        entry = Entry(  # by position, and nothing for what is not there: every hit waits for this
            key,
            namespace,
            float(header["created_at"]),
            float(header["expires_at"]),
            float(header["compute_seconds"]),
            tuple(map(str, header["tags"])) if "tags" in header else (),
            tuple(map(int, header["generations"])),
            fence,
            _places(header["placement"]),
            int(header["size"]),
            payload,
            {str(digest): int(size) for digest, size in header["blobs"].items()} if "blobs" in header else {},
            {str(digest): str(mark) for digest, mark in header["marks"].items()} if "marks" in header else {},
            {str(name): float(amount) for name, amount in header["usage"].items()} if "usage" in header else {},
            dict(header["manifest"]) if "manifest" in header else {},
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise CorruptEntryError(f"{key}: malformed header: {error!r:.200}") from error
    if not _is_sound(entry):
        raise CorruptEntryError(f"{key}: the header contradicts itself")
    return entry


def _is_sound(entry: Entry) -> bool:
    """Whether the fields are in their ranges; a blob's digest becomes a part of a path."""
    return (
        abs(entry.created_at) <= _LAST_TIME
        and abs(entry.expires_at) <= _LAST_TIME
        and math.isfinite(entry.compute_seconds)
        and 0 <= entry.size <= MAX_PAYLOAD_BYTES
        and entry.fence <= _LAST_FENCE
        and (not entry.blobs or all(is_digest(digest) and size >= 0 for digest, size in entry.blobs.items()))
        and len(entry.generations) == SCOPES_WITHOUT_TAGS + len(entry.tags)
    )
