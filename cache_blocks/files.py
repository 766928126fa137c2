"""`CachedFile`: a file-valued result, stored once under the digest of its bytes and fetched where it is used."""

from __future__ import annotations

import contextvars
import mimetypes
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic_core import core_schema

from cache_blocks.fingerprint import digest_path, is_digest

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler

    from cache_blocks.local_files import LocalCopy


class BlobSource(Protocol):
    """Where a `CachedFile` finds its bytes."""

    def materialise(self, file: CachedFile) -> LocalCopy:
        """Return a verified local copy of the file's bytes, or raise `BlobMissingError`."""
        ...


_source: contextvars.ContextVar[BlobSource | None] = contextvars.ContextVar("cache_blocks_blob_source", default=None)


class sourced_from:  # noqa: N801 - a context manager; a class, because a generator costs thrice
    """Let the files that are made in a block of code find their bytes in ``source``."""

    __slots__ = ("_before", "_mine")

    def __init__(self, source: BlobSource) -> None:
        self._mine = source

    def __enter__(self) -> None:
        self._before = _source.set(self._mine)

    def __exit__(self, *raised: object) -> None:
        _source.reset(self._before)


_private: contextvars.ContextVar[bool] = contextvars.ContextVar("cache_blocks_private_files", default=False)


class kept_privately:  # noqa: N801 - as above
    """Let descriptors that are made in a block of code be those of private files, if ``private``."""

    __slots__ = ("_before", "_mine")

    def __init__(self, private: bool) -> None:  # noqa: FBT001 - it says what its name asks
        self._mine = private

    def __enter__(self) -> None:
        self._before = _private.set(self._mine)

    def __exit__(self, *raised: object) -> None:
        _private.reset(self._before)


class CachedFile(os.PathLike[str]):
    """A file-valued result.

    It is small wherever it travels: digest, size, name and media type. Its bytes are stored once, under their
    digest, and come to this machine when `path` (or `open`, `pathlib.Path`) is used, where they stay at least as
    long as this object lives. Equal bytes are equal files, whatever they are called.

    Attributes:
        digest: Hexadecimal BLAKE3 digest of the bytes.
        size: Length in bytes.
        name: File name for people; it decides nothing.
        media_type: Such as ``audio/wav``.
        private: Whether its bytes are stored encrypted, under a name that only the key ring's holders can make.
    """

    __slots__ = ("_copy", "_path", "_source", "digest", "media_type", "name", "private", "size")

    def __init__(self, digest: str, size: int, name: str, media_type: str, *, private: bool = False) -> None:
        if not is_digest(digest):
            msg = f"{digest!r} is not a hexadecimal digest of 64 characters"
            raise ValueError(msg)
        if size < 0 or not name or name in {".", ".."} or "/" in name or "\\" in name or "\x00" in name:
            msg = f"{name!r} of {size} bytes is not a file name with a size"
            raise ValueError(msg)
        self.digest = digest
        self.size = size
        self.name = name
        self.media_type = media_type
        self.private = private
        self._path: Path | None = None  # where a task has produced it, which is not kept by us
        self._copy: LocalCopy | None = None
        self._source = _source.get()

    @classmethod
    def from_path(cls, path: str | os.PathLike[str], media_type: str | None = None) -> CachedFile:
        """Wrap a file that a task has produced.

        Args:
            path: The local file; it is read now for its digest, and again when the result is stored.
            media_type: Guessed from the name when not given.

        Raises:
            OSError: There is no such file.
        """
        path = Path(path)
        guessed = media_type or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        file = cls(digest_path(path), path.stat().st_size, path.name, guessed)
        file._path = path.absolute()
        return file

    @property
    def path(self) -> Path:
        """Where the bytes are on this machine; fetched and verified at first use.

        Raises:
            BlobMissingError: No place that this process reaches has them.
        """
        if self._path is not None and self._path.exists():
            return self._path
        if self._copy is None or not self._copy.holds:
            self._copy = (self._source or _cache_of_this_process()).materialise(self)
        return self._copy.path

    @property
    def local_path(self) -> Path | None:
        """Where the bytes are if they are on this machine already, else None; fetches nothing."""
        known = (self._path, self._copy.path if self._copy is not None else None)
        return next((path for path in known if path is not None and path.exists()), None)

    def bind(self, source: BlobSource, copy: LocalCopy) -> None:
        """Tell where the bytes come from and are; called by the cache that keeps them."""
        self._source = source
        self._copy = copy

    def as_dict(self) -> dict[str, Any]:
        """Return the descriptor: what is stored in place of the bytes."""
        plain = {"digest": self.digest, "size": self.size, "name": self.name, "media_type": self.media_type}
        return plain | {"private": True} if self.private or _private.get() else plain

    def as_private(self) -> CachedFile:
        """Return the same file as one that is stored encrypted."""
        file = CachedFile(self.digest, self.size, self.name, self.media_type, private=True)
        file._path, file._copy, file._source = self._path, self._copy, self._source
        return file

    @classmethod
    def from_dict(cls, descriptor: Any) -> CachedFile:
        """Return the file of a descriptor; ValueError when it is none."""
        if not isinstance(descriptor, dict):
            msg = f"a descriptor of a file is a mapping, not {type(descriptor).__name__}"
            raise ValueError(msg)  # noqa: TRY004 - pydantic reports ValueError, not TypeError, as a validation error
        fields: dict[str, Any] = {str(name): value for name, value in descriptor.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType, reportUnknownMemberType]
        private = fields.pop("private", False) is True
        if set(fields) != {"digest", "size", "name", "media_type"}:
            msg = f"a descriptor of a file has digest, size, name and media_type, not {sorted(fields)}"
            raise ValueError(msg)
        name, media_type = str(fields["name"]), str(fields["media_type"])
        return cls(str(fields["digest"]), int(fields["size"]), name, media_type, private=private)

    def __fspath__(self) -> str:
        return str(self.path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CachedFile) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        if self.private:
            return f"CachedFile(private, {self.size} bytes)"
        return f"CachedFile({self.name!r}, {self.media_type}, {self.size} bytes, {self.digest[:12]}…)"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.as_dict(), str(self._path) if self._path else None)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Let a file be a field: a descriptor in JSON, a `CachedFile` in Python, a produced path taken as input."""
        return core_schema.no_info_plain_validator_function(
            cls._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(
                cls._serialise, info_arg=True, return_schema=core_schema.dict_schema()
            ),
        )

    @classmethod
    def _validate(cls, value: Any) -> CachedFile:
        if isinstance(value, CachedFile):
            return value
        if isinstance(value, Path):
            return cls.from_path(value)
        return cls.from_dict(value)

    @staticmethod
    def _serialise(file: CachedFile, info: core_schema.SerializationInfo) -> dict[str, Any]:
        if isinstance(info.context, dict):
            info.context.setdefault("files", []).append(file)  # pyright: ignore[reportUnknownMemberType]
        return file.as_dict()


def _restore(descriptor: dict[str, Any], path: str | None) -> CachedFile:
    """Unpickle: a produced file may be stored nowhere yet. On another machine its path may be that of another file."""
    file = CachedFile.from_dict(descriptor)
    if path is not None and _has_bytes(Path(path), file):
        file._path = Path(path)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return file


def _has_bytes(path: Path, file: CachedFile) -> bool:
    try:
        return path.stat().st_size == file.size and digest_path(path) == file.digest
    except OSError:
        return False


def _cache_of_this_process() -> BlobSource:
    from cache_blocks.cache import TieredCache

    return TieredCache.from_settings().blobs
