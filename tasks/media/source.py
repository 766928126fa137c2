"""Opening a recording: a local file or any fsspec object, read within bounds."""

from __future__ import annotations

import io
import stat
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from fsspec.core import OpenFile

from tasks.errors import (
    DamagedMediaError,
    EmptyMediaError,
    MediaNotFoundError,
    MediaPermissionError,
    NotMediaError,
    UnreadableMediaError,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Generator

READ_AMPLIFICATION: Final = 8
"""How often, at most, a demuxer may read the whole file: a crafted index can send it round in circles."""
_ALWAYS_ALLOWED_BYTES: Final = 64 * 1024 * 1024


class BoundedReader:
    """A seekable stream that knows its size and stops whoever reads it again and again.

    It has no attribute ``name``, which PyAV would hand on: a name's ending must not decide how bytes are
    read.

    Args:
        stream: Opened for reading bytes.
        file_name: For errors.
    """

    def __init__(self, stream: BinaryIO, file_name: str) -> None:
        self._stream = stream
        self.file_name = file_name
        self.size = stream.seek(0, io.SEEK_END)
        self._allowed = READ_AMPLIFICATION * self.size + _ALWAYS_ALLOWED_BYTES
        stream.seek(0)

    def read(self, count: int = -1) -> bytes:
        """Read up to ``count`` bytes; `MediaError` when that fails or it was read many times over."""
        with _as_media_error(self.file_name):
            data = self._stream.read(count)
        self._allowed -= len(data)
        if self._allowed < 0:
            raise DamagedMediaError(
                self.file_name, f"it makes its reader go over it more than {READ_AMPLIFICATION} times"
            )
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position as `io.IOBase.seek` does."""
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._stream.tell()

    def at(self, offset: int, count: int) -> bytes:
        """Return up to ``count`` bytes from ``offset`` on, leaving the position where it was."""
        position = self.tell()
        self.seek(offset)
        try:
            return self.read(count)
        finally:
            self.seek(position)


def source_name(source: str | os.PathLike[str] | OpenFile) -> str:
    """Return the file name of a source, for people and for naming outputs."""
    return PurePosixPath(cast("str", source.path)).name if isinstance(source, OpenFile) else Path(source).name


@contextmanager
def open_media(source: str | os.PathLike[str] | OpenFile) -> Generator[BoundedReader]:
    """Open a recording for reading.

    Args:
        source: A local path or an `fsspec.open` handle in mode ``rb``.

    Raises:
        MediaError: It is missing, empty, not a regular file, or may not be read.
    """
    name = source_name(source)
    with _as_media_error(name):
        stream = _open(source, name)
    with stream:
        with _as_media_error(name):
            reader = BoundedReader(stream, name)
        if reader.size == 0:
            raise EmptyMediaError(name, "the file has 0 bytes")
        yield reader


def _open(source: str | os.PathLike[str] | OpenFile, name: str) -> BinaryIO:
    if isinstance(source, OpenFile):
        return cast("BinaryIO", source.open())
    path = Path(source)
    if not stat.S_ISREG(path.stat().st_mode):
        # Opening a pipe would wait for a writer, and a device never ends.
        raise NotMediaError(name, "it is a folder" if path.is_dir() else "it is a device, pipe or socket, not a file")
    return path.open("rb")


@contextmanager
def _as_media_error(name: str) -> Generator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise MediaNotFoundError(name, "there is no such file") from error
    except PermissionError as error:
        raise MediaPermissionError(name, "this process may not read the file") from error
    except OSError as error:
        raise UnreadableMediaError(name, error.strerror or str(error)) from error
