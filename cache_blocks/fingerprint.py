"""Content digests of files: what a path, a remote object or a folder counts as in a key.

BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs) is collision-resistant and several times as fast as SHA-256.

What has been read once is not read again while its version (`versions.py`) stays the same, in this process nor, for
keys, in later ones (`fingerprint_memory.py`).
"""

from __future__ import annotations

import mmap
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, TypeVar, cast

import fsspec
from blake3 import blake3
from fsspec.core import OpenFile
from fsspec.implementations.local import LocalFileSystem

from cache_blocks.fingerprint_memo import DigestMemo, Known
from cache_blocks.fingerprint_memory import forget, recall, remember, shared_memo, worth_remembering
from cache_blocks.versions import (
    ListedFile,
    Version,
    version_now,
    version_of_file,
    version_of_object,
    version_of_status,
)

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from fsspec import AbstractFileSystem

T = TypeVar("T")
R = TypeVar("R")
_Each = Callable[..., Iterable[Any]]
"""The built-in ``map``, or that of a pool of threads."""
Source = str | os.PathLike[str] | OpenFile
"""A local file or folder, or a remote object."""

CHUNK_BYTES: Final = 1024 * 1024
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_PAGE: Final = 10_000

_buffers: deque[mmap.mmap] = deque(maxlen=64)


def is_digest(text: str) -> bool:
    """Whether a text is a hexadecimal digest; nothing else becomes a part of a path."""
    return bool(_DIGEST.fullmatch(text))


def digest_bytes(data: bytes) -> str:
    """Return the hexadecimal BLAKE3 digest of ``data``."""
    return blake3(data).hexdigest()


def digest_stream(stream: BinaryIO) -> str:
    """Return the digest of what is left in ``stream``, read in constant memory."""
    hasher = blake3()
    read_into = cast("Callable[[memoryview], int]", cast("Any", stream).readinto)  # BinaryIO has it, the typing not
    buffer = _borrow_buffer()
    try:
        with memoryview(buffer) as view:
            while count := read_into(view):
                hasher.update(view[:count])
    finally:
        _buffers.append(buffer)
    return hasher.hexdigest()


def digest_path(path: str | os.PathLike[str]) -> str:
    """Return the digest of a local file's bytes, or of a folder's relative names and bytes, as this process reads them.

    Damage by the disk leaves no trace in a file's times, so what other processes have read does not count here.

    Raises:
        OSError: The path does not exist, cannot be read, or is neither a file nor a folder.
    """
    return _only(_digest_page([path], None, map))


def digest_of(source: Source) -> str:
    """Return the digest of a local path's or a remote object's bytes, which are read only if nobody here has yet.

    Raises:
        OSError: It does not exist, cannot be read, or is neither a file nor a folder.
    """
    return _only(_digest_page([source], shared_memo(), map))


def digest_many(sources: Iterable[Source], *, threads: int | None = None) -> list[str | Exception]:
    """Return the digests of many sources, in their order; in place of one that cannot be read, the reason.

    What is known takes one lookup for ten thousand of them; the rest is read in parallel, in constant memory a thread.

    Args:
        sources: Files, folders and remote objects; a `ListedFile` that is known is not asked for at all.
        threads: How many at most; by default a few more than there are processors.
    """
    results: list[str | Exception] = []
    remaining = iter(sources)
    with ThreadPoolExecutor(threads, "digest") as pool:  # threads start when there is something to read
        while page := list(islice(remaining, _PAGE)):
            results += _digest_page(page, shared_memo(), pool.map)
    return results


def forget_digests(digests: Iterable[str]) -> int:
    """Erase from what this machine remembers of files and objects all that have these digests.

    Returns:
        How many versions there were in the file that processes share.

    Raises:
        TierUnavailableError: It cannot be changed now.
    """
    return forget(digests)


def open_file_system(url: str, **options: Any) -> tuple[AbstractFileSystem, str]:
    """Return the file system of an fsspec URL, and the path in it."""
    return cast("tuple[AbstractFileSystem, str]", fsspec.url_to_fs(url, **options))


class _Asked(NamedTuple):
    """A source, its path made absolute, and its version, if it has one."""

    source: str | OpenFile
    version: Version | None


class _Read(NamedTuple):
    """What came of reading: the digest, and what may be remembered of the version that was read."""

    digest: str
    identity: bytes = b""
    known: Known | None = None


def _digest_page(sources: Iterable[Source], memo: DigestMemo | None, each: _Each) -> list[str | Exception]:
    """Return digests, or why there is none; without a memo, those of what this process has read itself."""
    sources = list(sources)
    asked = _ask_all(sources, each)
    seen = recall([one.version.identity for one in asked if isinstance(one, _Asked) and one.version], memo)
    unread = [one for one in asked if isinstance(one, _Asked) and not _digest_in(seen, one)]
    read = dict(zip(map(id, unread), each(_attempted(partial(_read, seen=seen, memo=memo)), unread), strict=True))
    remember({one.identity: one.known for one in read.values() if isinstance(one, _Read) and one.known}, memo)
    results: list[str | Exception] = []
    for one in asked:
        answer = one if isinstance(one, Exception) else read.get(id(one)) or _digest_in(seen, one)
        results.append(answer.digest if isinstance(answer, _Read) else answer)
    return results


def _ask_all(sources: Sequence[Source], each: _Each) -> list[_Asked | Exception]:
    """Return versions; in parallel if that takes requests, which a local file and a listed object do not."""
    slow = any(isinstance(source, OpenFile) and not isinstance(source, ListedFile) for source in sources)
    return list((each if slow else map)(_attempted(_ask), sources))


def _ask(source: Source) -> _Asked:
    if isinstance(source, OpenFile):
        if not isinstance(source.fs, LocalFileSystem) or source.compression is not None:
            return _Asked(source, version_of_object(source))
        path = cast("str", source.path)
    else:
        path = os.fspath(source)
    if not path.startswith("/"):
        path = str(Path(path).absolute())
    return _Asked(path, version_of_file(path))


def _digest_in(seen: Mapping[bytes, Known], one: _Asked) -> str:
    """Return the digest if it is known, else nothing."""
    known = seen.get(one.version.identity) if one.version else None
    return known.digest if known else ""


def _read(one: _Asked, seen: Mapping[bytes, Known], memo: DigestMemo | None) -> _Read:
    """Read a source, and tell what may be remembered: only that which no later change can look like."""
    began = time.time()
    if isinstance(one.source, OpenFile):
        with cast("AbstractContextManager[BinaryIO]", one.source) as stream:
            digest = digest_stream(stream)
        version = one.version if one.version and version_now(one.source) == one.version else None
    elif one.version is None and not Path(one.source).is_file():
        return _Read(_digest_folder(Path(one.source), memo))
    else:
        with open(one.source, "rb", buffering=0) as stream:  # noqa: PTH123 - Path adds nothing here
            version = version_of_status(one.source, os.fstat(stream.fileno()))
            digest = digest_stream(stream)
            if version != version_of_status(one.source, os.fstat(stream.fileno())):
                version = None
    if version is None:
        return _Read(digest)
    return _Read(digest, version.identity, worth_remembering(version, digest, began, seen.get(version.identity)))


def _digest_folder(folder: Path, memo: DigestMemo | None) -> str:
    if not folder.is_dir():
        folder.stat()
        raise OSError(f"{folder} is neither a file nor a folder")
    hasher = blake3(b"folder")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path, digest in zip(paths, _digest_page(paths, memo, map), strict=True):
        name = path.relative_to(folder).as_posix().encode("utf-8", "surrogateescape")
        hasher.update(len(name).to_bytes(8, "big") + name + bytes.fromhex(_only([digest])))
    return hasher.hexdigest()


def _only(results: Sequence[str | Exception]) -> str:
    (result,) = results
    if isinstance(result, Exception):
        raise result
    return result


def _attempted(function: Callable[[T], R]) -> Callable[[T], R | Exception]:
    """Return the function with what it raises returned, so that it stays with its item."""

    def attempt(item: T) -> R | Exception:
        try:
            return function(item)
        except Exception as error:  # noqa: BLE001 - file systems raise what they like
            return error

    return attempt


def _borrow_buffer() -> mmap.mmap:
    """Return a buffer that starts with a page, which the kernel fills half as fast again; a fork has its own copy."""
    try:
        return _buffers.pop()
    except IndexError:
        return mmap.mmap(-1, CHUNK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
