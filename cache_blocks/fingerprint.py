"""Content digests of files: what a path, a remote object or a folder counts as in a key.

BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs) is collision-resistant and several times as fast as SHA-256.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

import fsspec
from blake3 import blake3

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from fsspec import AbstractFileSystem
    from fsspec.core import OpenFile

CHUNK_BYTES: Final = 1024 * 1024
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_SETTLED_SECONDS: Final = 2.0
"""A file changed more recently could change again without a new time, by the clock's granularity."""
_KNOWN_FILES: Final = 10_000

_Identity = tuple[str, int, int, int, int, int]
_known: dict[_Identity, str] = {}
_lock = threading.Lock()


def is_digest(text: str) -> bool:
    """Whether a text is a hexadecimal digest; nothing else becomes a part of a path."""
    return bool(_DIGEST.fullmatch(text))


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
        before = os.fstat(stream.fileno())
        if (known := _known.get(_identity(path, before))) is not None:
            return known
        digest = digest_stream(stream)
        after = os.fstat(stream.fileno())
    if (
        _identity(path, before) == _identity(path, after)
        and time.time() - max(after.st_mtime, after.st_ctime) > _SETTLED_SECONDS
    ):
        _remember(_identity(path, after), digest)
    return digest


def digest_of(source: str | os.PathLike[str] | OpenFile) -> str:
    """Return the digest of a local path's or a remote object's bytes."""
    return digest_path(source) if isinstance(source, str | os.PathLike) else digest_open_file(source)


def digest_open_file(remote: OpenFile) -> str:
    """Return the digest of the bytes behind an `fsspec.open` handle."""
    with cast("AbstractContextManager[BinaryIO]", remote) as stream:
        return digest_stream(stream)


def digest_url(url: str, **options: Any) -> str:
    """Return the digest of the bytes behind any fsspec URL, such as ``s3://bucket/audio.mp3``.

    Args:
        url: Address of one object.
        options: Handed to the fsspec file system (endpoint, key, secret).
    """
    return digest_open_file(cast("OpenFile", fsspec.open(url, "rb", **options)))


def open_file_system(url: str, **options: Any) -> tuple[AbstractFileSystem, str]:
    """Return the file system of an fsspec URL, and the path in it."""
    return cast("tuple[AbstractFileSystem, str]", fsspec.url_to_fs(url, **options))


def _identity(path: Path, status: os.stat_result) -> _Identity:
    """Return what changes when a file's bytes do, as far as a file system tells; ``st_ctime`` cannot be set back."""
    times = status.st_mtime_ns, status.st_ctime_ns
    return str(path.absolute()), status.st_size, *times, status.st_ino, status.st_dev


def _remember(identity: _Identity, digest: str) -> None:
    with _lock:
        if len(_known) >= _KNOWN_FILES:
            _known.clear()
        _known[identity] = digest


def _digest_folder(folder: Path) -> str:
    hasher = blake3(b"folder")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix().encode()
        hasher.update(len(name).to_bytes(8, "big") + name + bytes.fromhex(digest_path(path)))
    return hasher.hexdigest()
