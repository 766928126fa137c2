"""A folder of any fsspec file system in which objects appear whole or not at all; what is S3's own is in `s3`."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self, cast

from fsspec.implementations.local import LocalFileSystem

from cache_blocks import forking
from cache_blocks.errors import ConfigurationError
from cache_blocks.fingerprint import CHUNK_BYTES, open_file_system

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from cache_blocks.tiers.s3 import S3
    from cache_blocks.tiers.s3_uploads import UnfinishedUpload
    from cache_blocks.traffic import Traffic

_ATOMIC_PROTOCOLS: Final = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "az", "memory"})
TEMPORARY: Final = ".tmp-"
"""What names begin with of objects that are still being written, where they cannot be written in one step."""


class ObjectStore:
    """A folder of a file system.

    Args:
        url: fsspec URL of the root.
        options: Handed to fsspec.
        timeout_seconds: How long a request may take, or on S3 a transfer stand still.
        traffic: Counts the requests, where the file system tells them.
    """

    def __init__(
        self,
        url: str,
        options: Mapping[str, Any] | None = None,
        timeout_seconds: float = 5.0,
        traffic: Traffic | None = None,
    ) -> None:
        self._url = url
        self._options = dict(options or {})
        self._timeout = timeout_seconds
        self._traffic = traffic
        self._lock = forking.lock()
        self._opened: tuple[int, AbstractFileSystem, str] | None = None
        self._parents: list[Any] = []

    @property
    def label(self) -> str:
        """The URL, for people: without user, password and query, which may be secrets."""
        scheme, separator, rest = self._url.partition("://")
        return f"{scheme}{separator}{rest.partition('?')[0].rpartition('@')[2]}"

    @property
    def is_s3(self) -> bool:
        """Whether the URL is one of S3, or of a store that speaks it."""
        return self._url.startswith(("s3:", "s3a:"))

    @property
    def fs(self) -> AbstractFileSystem:
        """The file system of this process; a fork opens its own."""
        return self._open()[0]

    @property
    def local_root(self) -> Path | None:
        """The root as a local folder, if it is one."""
        fs, root = self._open()
        return Path(root) if isinstance(fs, LocalFileSystem) else None

    def path(self, *parts: str) -> str:
        """Return the path of an object in the file system's own form."""
        return "/".join((self._open()[1], *parts))

    def read(self, path: str) -> bytes | None:
        """Return an object's bytes, or None when there is none."""
        try:
            return Path(path).read_bytes() if self.local_root is not None else cast("bytes", self.fs.cat_file(path))
        except FileNotFoundError:
            return None

    def read_many(self, paths: Sequence[str]) -> dict[str, bytes]:
        """Return the objects that exist, fetched concurrently where the file system can."""
        if len(paths) == 1:
            data = self.read(paths[0])
            return {} if data is None else {paths[0]: data}
        answers = cast("dict[str, bytes | Exception]", self.fs.cat(list(paths), on_error="return")) if paths else {}
        for answer in answers.values():
            if isinstance(answer, Exception) and not isinstance(answer, FileNotFoundError):
                raise answer
        return {path: answer for path, answer in answers.items() if isinstance(answer, bytes)}

    def write(self, path: str, data: bytes) -> None:
        """Publish an object."""
        if self.is_s3:
            self.write_pieces(path, [data])
            return
        with self._publishing(path) as target:
            if self.local_root is not None:
                Path(target.name).write_bytes(data)
            else:
                self.fs.pipe_file(target.name, data)

    def write_file(self, path: str, source: Path, *, only_new: bool = False) -> bool:
        """Publish a local file's bytes; see `write_pieces`."""
        if self.local_root is None:
            return self.write_pieces(path, pieces_of(source), only_new=only_new)
        with self._publishing(path) as target:
            shutil.copyfile(source, target.name)
        return True

    def write_pieces(self, path: str, pieces: Iterable[bytes], *, only_new: bool = False) -> bool:
        """Publish bytes that come in pieces of any size, in constant memory.

        Args:
            path: The object.
            pieces: Its bytes; taken one after the other, in some thread.
            only_new: Leave alone an object that is there. Only S3 can promise it: elsewhere the object is overwritten,
                on S3 too if the server does not know conditional writes.

        Returns:
            Whether it was written.
        """
        if self.is_s3:
            return self._s3.send(path, iter(pieces), only_new=only_new)
        with self._publishing(path) as target, cast("BinaryIO", self.fs.open(target.name, "wb")) as stream:
            for piece in pieces:
                stream.write(piece)
        return True

    def fetch_file(self, path: str, target: Path) -> None:
        """Copy an object to a local file, in constant memory; FileNotFoundError when there is none."""
        self.fs.get_file(path, str(target))

    def exists(self, path: str) -> int | None:
        """Return an object's size, or None when there is none."""
        try:
            self.fs.invalidate_cache()
            return int(self.details(path)["size"])
        except FileNotFoundError:
            return None

    def details(self, path: str) -> dict[str, Any]:
        """Return what the file system says of an object, such as its size and times."""
        return self._s3.details(path) if self.is_s3 else cast("dict[str, Any]", self.fs.info(path))

    def delete(self, paths: Sequence[str]) -> int:
        """Remove objects; return how many there were."""
        removed = 0
        for path in paths:
            try:
                if self.exists(path) is not None:
                    self.fs.rm_file(path)
                    removed += 1
            except FileNotFoundError:
                continue
        return removed

    def walk(self, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield path and details (size, times) of every object under a prefix, unfinished ones too."""
        self.fs.invalidate_cache()
        try:
            found = cast("dict[str, dict[str, Any]]", self.fs.find(prefix, detail=True))
        except FileNotFoundError:
            return
        yield from found.items()

    def unfinished_uploads(self, prefix: str, before: float) -> Iterator[UnfinishedUpload]:
        """Yield the uploads in parts under a prefix that nobody has begun or added to since a time; only S3 has such.

        Args:
            prefix: Path of a folder.
            before: Seconds since the epoch.
        """
        if self.is_s3:
            from cache_blocks.tiers.s3_uploads import unfinished_uploads

            yield from unfinished_uploads(self._s3, prefix, before)

    def abort_upload(self, upload: UnfinishedUpload) -> bool:
        """Remove what was sent of an unfinished upload; return whether it was still there."""
        from cache_blocks.tiers.s3_uploads import abort_upload

        return abort_upload(self._s3, upload)

    @property
    def _s3(self) -> S3:
        return cast("S3", self.fs)

    def _publishing(self, path: str) -> _Publication:
        fs, _ = self._open()
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        return _Publication(fs, path, in_one_step=bool(protocols & _ATOMIC_PROTOCOLS))

    def _open(self) -> Any:
        opened = self._opened
        if opened is None or opened[0] != os.getpid():
            with self._lock:
                self._parents.append(opened)  # let go of in a child, it would disturb the parent's connections
                opened = (os.getpid(), *self._connect())
                self._opened = opened
        return opened[1:]

    def _connect(self) -> tuple[AbstractFileSystem, str]:
        try:
            if self.is_s3:
                from cache_blocks.tiers.s3 import open_s3

                fs, root = open_s3(self._url, self._options, self._timeout, self._traffic)
            else:
                fs, root = open_file_system(self._url, skip_instance_cache=True, **self._options)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(f"object store {self.label}: {error}") from error
        return fs, root.rstrip("/")


class _Publication:
    """Writes go to ``name``; leaving without an error makes them the object, leaving with one removes them."""

    def __init__(self, fs: AbstractFileSystem, path: str, *, in_one_step: bool) -> None:
        self._fs = fs
        self._path = path
        parent, _, last = path.rpartition("/")
        self.name = path if in_one_step else f"{parent}/{TEMPORARY}{secrets.token_hex(8)}-{last}"
        if not in_one_step:
            fs.makedirs(parent, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if self.name == self._path:
            return
        if error_type is not None:
            if self._fs.exists(self.name):
                self._fs.rm_file(self.name)
        elif isinstance(self._fs, LocalFileSystem):
            Path(self.name).replace(self._path)
        else:
            self._fs.mv(self.name, self._path)


def pieces_of(source: Path) -> Iterator[bytes]:
    """Yield a local file's bytes."""
    with source.open("rb") as stream:
        while piece := stream.read(CHUNK_BYTES):
            yield piece
