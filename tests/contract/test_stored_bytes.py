"""Bytes that an earlier release has stored stay readable, and what is stored stays as it is.

When this fails, the envelope has changed: that needs a new version number in `codec`, and a test of the old one.
"""

from __future__ import annotations

from pathlib import Path

from cache_blocks import codec
from cache_blocks.entry import Entry
from cache_blocks.values import codec_of

SNAPSHOT = Path(__file__).parent / "snapshots" / "envelope_v1.bin"
VALUE = {"text": "Ein Satz — 日本語", "segments": [[0.0, 1.5, "Ein"], [1.5, 2.25, "Satz"]], "language": None}
# The payload is given as bytes, because another release of LZ4 may compress otherwise.
PAYLOAD = bytes.fromhex(
    "04224d1868406000000000000000e7600000807b2274657874223a2245696e205361747a20e2809420e697a5e69cace8aa9e222c22736567"
    "6d656e7473223a5b5b302e302c312e352c2245696e225d2c5b312e352c322e32352c225361747a225d5d2c226c616e6775616765223a6e75"
    "6c6c7d00000000"
)


def entry() -> Entry:
    return Entry(
        key="transcript:1f2e3d",
        namespace="production",
        created_at=1_700_000_000.25,
        expires_at=1_702_592_000.25,
        compute_seconds=12.75,
        tags=("model:tiny.en", "sprache:Äöü"),
        generations=(1, 2, 3, 4, 5),
        fence=2**40 + 7,
        placement=frozenset({"redis", "sql", "object_store"}),
        size=96,
        payload=PAYLOAD,
        blobs={"ab" * 32: 1024},
        usage={"audio_seconds": 63.5},
        manifest={"task": "transcribe", "version": "3", "inputs": {"audio": {"digest": "cd" * 32, "shown": "a.mp3"}}},
    )


def test_the_envelope_is_written_as_ever() -> None:
    assert codec.pack(entry()) == SNAPSHOT.read_bytes()


def test_a_stored_envelope_is_read_as_ever() -> None:
    read = codec.unpack(SNAPSHOT.read_bytes(), key="transcript:1f2e3d", namespace="production")
    assert read == entry()
    assert codec_of(dict).decode(codec.payload_of(read)) == VALUE


def test_the_fence_stands_where_redis_looks_for_it() -> None:
    stored = SNAPSHOT.read_bytes()[codec.FENCE_OFFSET : codec.FENCE_OFFSET + 8]
    assert int.from_bytes(stored, "big") == entry().fence
