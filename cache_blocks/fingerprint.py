"""Content digests of files: what a path, a remote object or a folder counts as in a key.

BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs) is collision-resistant and several times as fast as SHA-256.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, cast

import fsspec
from blake3 import blake3

if TYPE_CHECKING:
    from fsspec.core import OpenFile

CHUNK_BYTES: Final = 1024 * 1024


def digest_bytes(data: bytes) -> str:
    """Return the hexadecimal BLAKE3 digest of ``data``."""
    return blake3(data).hexdigest()


def digest_stream(stream: BinaryIO) -> str:
    """Return the digest of what is left in ``stream``, read in constant memory."""
    hasher = blake3()
    while chunk := stream.read(CHUNK_BYTES):
        hasher.update(chunk)
    return hasher.hexdigest()


def digest_path(path: str | os.PathLike[str]) -> str:
    """Return the digest of a local file's bytes, or of a folder's relative names and bytes.

    Raises:
        OSError: The path does not exist, cannot be read, or is neither a file nor a folder.
    """
    path = Path(path)
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return _digest_folder(path)
    if not stat.S_ISREG(mode):
        msg = f"{path} is neither a file nor a folder"
        raise OSError(msg)
    with path.open("rb") as stream:
        return digest_stream(stream)


def digest_open_file(remote: OpenFile) -> str:
    """Return the digest of the bytes behind an `fsspec.open` handle."""
    with remote as stream:
        return digest_stream(cast("BinaryIO", stream))


def digest_url(url: str, **options: object) -> str:
    """Return the digest of the bytes behind any fsspec URL, such as ``s3://bucket/audio.mp3``.

    Args:
        url: Address of one object.
        options: Handed to the fsspec file system (endpoint, key, secret).
    """
    return digest_open_file(cast("OpenFile", fsspec.open(url, "rb", **options)))


def _digest_folder(folder: Path) -> str:
    hasher = blake3(b"folder")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix().encode()
        hasher.update(len(name).to_bytes(8, "big") + name + bytes.fromhex(digest_path(path)))
    return hasher.hexdigest()
