"""What the first bytes of a file say it is, and whether the file is as long as its container promises."""

from __future__ import annotations

import codecs
import re
import unicodedata
from typing import TYPE_CHECKING, Final

from tasks.errors import DamagedMediaError, MediaError, NotMediaError, PlaylistError, TruncatedMediaError

if TYPE_CHECKING:
    from tasks.media.source import BoundedReader

_HEAD_BYTES: Final = 4096
_PLAYLISTS: Final = re.compile(
    rb"\s*(#EXTM3U|\[playlist\]|ffconcat|\[Reference\]|(<\?xml.*?)?<(MPD|smil|asx|SmoothStreamingMedia)\b"
    rb"|v=0\r?\no=|file\s+['\"]|\w+://)",
    re.IGNORECASE | re.DOTALL,
)
_CONTAINERS: Final = (
    (8, b"WAVE", "WAV"),
    (0, b"RIFF", "RIFF"),
    (0, b"fLaC", "FLAC"),
    (0, b"OggS", "Ogg"),
    (0, b"ID3", "MP3"),
    (4, b"ftyp", "MP4"),
    (0, b"\x1aE\xdf\xa3", "Matroska or WebM"),
    (8, b"AIFF", "AIFF"),
    (0, b"#!AMR", "AMR"),
    (0, b"caff", "CAF"),
    (0, b"FLV", "FLV"),
    (0, b"0&\xb2u", "WMA"),
)
_OTHERS: Final = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive or office document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x7fELF", "a program"),
)
_UNKNOWN_SIZE: Final = 0x7FFF_0000
"""RIFF sizes from here on are what programs write that stream to a pipe and cannot know the length."""
_RIFF_SLACK: Final = 8
"""Some programs count the RIFF header itself into its size."""
_MOST_BOXES: Final = 200_000
"""More are not walked over: a hundred million empty boxes would take a minute."""
_OGG_LARGEST_PAGE: Final = 65_307


def refuse_text(reader: BoundedReader) -> None:
    """Refuse text before any demuxer sees it: some take nearly anything, and playlists point elsewhere.

    Raises:
        PlaylistError: It lists other files or addresses.
        NotMediaError: It is other text.
    """
    head = reader.at(0, _HEAD_BYTES)
    if _PLAYLISTS.match(head.removeprefix(b"\xef\xbb\xbf")):
        raise PlaylistError(reader.file_name, "it lists other files or addresses, which are not followed")
    if _is_text(head):
        raise NotMediaError(reader.file_name, "it is text")


def not_media(reader: BoundedReader) -> MediaError:
    """Return the error for a file that no demuxer takes, with what it is instead."""
    head = reader.at(0, _HEAD_BYTES)
    for offset, magic, what in _CONTAINERS:
        if head[offset:].startswith(magic):
            return DamagedMediaError(reader.file_name, f"it begins as {what}, but no sound can be found in it")
    for magic, what in _OTHERS:
        if head.startswith(magic):
            return NotMediaError(reader.file_name, f"it is {what}")
    if not head.strip(b"\0"):
        return NotMediaError(reader.file_name, "it begins with nothing but zero bytes")
    return NotMediaError(reader.file_name, "no known audio or video format is recognised in it")


def check_complete(reader: BoundedReader) -> None:
    """Refuse a file that ends before its container says that it does.

    Checked by structure, before anything is decoded: RIFF and AIFF (their size field), MP4 (the sizes of its
    boxes), Matroska and WebM (the size of the segment), Ogg (the last page), FLAC (its metadata). FLAC and
    MP3 with a Xing header declare their duration, which the decoder compares. Raw streams (ADTS, MP3 without
    that header) declare nothing, so a shorter one is a complete one.

    Raises:
        TruncatedMediaError: Bytes are missing.
    """
    head = reader.at(0, _HEAD_BYTES)
    if head[:4] in (b"RIFF", b"FORM"):
        promised = _riff_size(head)
    elif head[4:8] == b"ftyp":
        promised = _mp4_size(reader)
    elif head[:4] == b"\x1aE\xdf\xa3":
        promised = _matroska_size(head)
    elif head[:4] == b"OggS":
        promised = _ogg_size(reader)
    elif head[:4] == b"fLaC":
        promised = _flac_metadata_size(reader)
    else:
        return
    if promised > reader.size:
        raise TruncatedMediaError(
            reader.file_name,
            f"the container says that it has at least {promised:,} bytes, the file has {reader.size:,}",
        )


def _riff_size(head: bytes) -> int:
    size = int.from_bytes(head[4:8], "little" if head[:4] == b"RIFF" else "big")
    return 0 if size >= _UNKNOWN_SIZE else size + 8 - _RIFF_SLACK


def _mp4_size(reader: BoundedReader) -> int:
    """Walk over the top-level boxes (ISO/IEC 14496-12, 4.2) and return where the last one ends."""
    position = 0
    for _ in range(_MOST_BOXES):
        if position + 8 > reader.size:
            break
        header = reader.at(position, 16)
        size, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        if size < 8 or not kind.isalnum():  # noqa: PLR2004 - to the end of the file, or no box
            break
        position += size
    return position


def _matroska_size(head: bytes) -> int:
    """Return where the segment ends (RFC 8794, variable-size integers); 0 when it does not say."""
    start = head.find(b"\x18\x53\x80\x67") + 4
    if start < 4 or start >= len(head) or not head[start]:  # noqa: PLR2004 - the marker is not there
        return 0
    length = 9 - head[start].bit_length()
    bits = 7 * length
    value = int.from_bytes(head[start : start + length], "big") & ((1 << bits) - 1)
    return 0 if value == (1 << bits) - 1 else start + length + value


def _flac_metadata_size(reader: BoundedReader) -> int:
    """Walk over the metadata blocks (RFC 9639, 8.1) and return where the last one ends; sound comes after it."""
    position = 4
    for _ in range(_MOST_BOXES):
        if position + 4 > reader.size:
            break
        header = reader.at(position, 4)
        position += 4 + int.from_bytes(header[1:], "big")
        if header[0] & 0x80:
            break
    return position


def _ogg_size(reader: BoundedReader) -> int:
    """Return where the last page ends (RFC 3533, 6)."""
    start = max(0, reader.size - 2 * _OGG_LARGEST_PAGE)
    tail = reader.at(start, 2 * _OGG_LARGEST_PAGE)
    page = tail.rfind(b"OggS")
    if page < 0:
        return 0
    header = tail[page : page + 27]
    if len(header) < 27:  # noqa: PLR2004 - a page's header without its table
        return start + page + 27
    table = tail[page + 27 : page + 27 + header[26]]
    missing = header[26] - len(table)
    return start + page + 27 + len(table) + missing + sum(table)


def _is_text(head: bytes) -> bool:
    """Whether the bytes are UTF-8 or marked UTF-16 text; media have control characters early on."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return _is_printable(head.decode("utf-16", errors="replace"))
    try:
        # An incremental decoder waits for the rest of a character that was cut in two.
        text = codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < _HEAD_BYTES)
    except UnicodeDecodeError:
        return False
    return _is_printable(text)


def _is_printable(text: str) -> bool:
    return bool(text.strip()) and not any(unicodedata.category(one) == "Cc" and not one.isspace() for one in text)
