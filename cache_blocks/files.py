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


class BlobSource(Protocol):
    """Where a `CachedFile` finds its bytes."""

    def materialise(self, file: CachedFile) -> Path:
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


class CachedFile(os.PathLike[str]):
    """A file-valued result.

    It is small wherever it travels: digest, size, name and media type. Its bytes are stored once, under their
    digest, and come to this machine when `path` (or `open`, `pathlib.Path`) is used. Equal bytes are equal
    files, whatever they are called.

    Attributes:
        digest: Hexadecimal BLAKE3 digest of the bytes.
        size: Length in bytes.
        name: File name for people; it decides nothing.
        media_type: Such as ``audio/wav``.
    """

    __slots__ = ("_path", "_source", "digest", "media_type", "name", "size")

    def __init__(self, digest: str, size: int, name: str, media_type: str) -> None:
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
        self._path: Path | None = None
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
        if self._path is None or not self._path.exists():
            source = self._source or _cache_of_this_process()
            self._path = source.materialise(self)
        return self._path

    @property
    def local_path(self) -> Path | None:
        """Where the bytes are if they are on this machine already, else None; fetches nothing."""
        return self._path if self._path is not None and self._path.exists() else None

    def bind(self, source: BlobSource, path: Path | None = None) -> None:
        """Tell where the bytes come from; called by the cache that stored or found the file."""
        self._source = source
        self._path = path or self._path

    def as_dict(self) -> dict[str, Any]:
        """Return the descriptor: what is stored in place of the bytes."""
        return {"digest": self.digest, "size": self.size, "name": self.name, "media_type": self.media_type}

    @classmethod
    def from_dict(cls, descriptor: Any) -> CachedFile:
        """Return the file of a descriptor; ValueError when it is none."""
        if not isinstance(descriptor, dict):
            msg = f"a descriptor of a file is a mapping, not {type(descriptor).__name__}"
            raise ValueError(msg)  # noqa: TRY004 - pydantic reports ValueError, not TypeError, as a validation error
        fields: dict[str, Any] = {str(name): value for name, value in descriptor.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType, reportUnknownMemberType]
        if set(fields) != {"digest", "size", "name", "media_type"}:
            msg = f"a descriptor of a file has digest, size, name and media_type, not {sorted(fields)}"
            raise ValueError(msg)
        return cls(str(fields["digest"]), int(fields["size"]), str(fields["name"]), str(fields["media_type"]))

    def __fspath__(self) -> str:
        return str(self.path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CachedFile) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
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
    """Unpickle: the path is kept because the next process is often on the same machine."""
    file = CachedFile.from_dict(descriptor)
    if path is not None:
        file._path = Path(path)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return file


def _cache_of_this_process() -> BlobSource:
    from cache_blocks.cache import TieredCache

    return TieredCache.from_settings().blobs
