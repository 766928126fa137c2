"""What a batch works on: the recordings of a folder, a glob, a file, or any fsspec URL."""

import glob
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from fsspec import AbstractFileSystem
from fsspec.core import OpenFile
from pydantic import BaseModel

from cache_blocks.fingerprint import open_file_system
from cache_blocks.versions import ListedFile, Version, version_of_details

MEDIA_SUFFIXES = frozenset(
    [
        ".3gp",
        ".aac",
        ".aif",
        ".aiff",
        ".amr",
        ".avi",
        ".caf",
        ".flac",
        ".m4a",
        ".m4b",
        ".mka",
        ".mkv",
        ".mov",
        ".mp2",
        ".mp3",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".oga",
        ".ogg",
        ".opus",
        ".wav",
        ".webm",
        ".wma",
    ]
)
"""Files in a folder that count as recordings; a glob or a single file is taken at its word."""


class SourceError(ValueError):
    """The source of a batch is not there, or holds no recordings."""


_Listing = dict[str, dict[str, object]]
"""Details by path."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording to work on.

    Attributes:
        name: Path relative to the source, for people and for naming outputs.
        handle: Where its bytes are. A remote one knows its version from the listing, so that nothing more is asked of
            the store for a recording that is known.
    """

    name: str
    handle: Path | OpenFile


class Located(BaseModel):
    """A recording as another machine finds it again, without listing anything.

    Attributes:
        name: See `Recording`.
        path: Where it is, in the terms of the source's file system.
        version: Digest of a remote one's version when it was listed, in hexadecimal; empty if nothing tells it.
    """

    name: str
    path: str
    version: str = ""


def located(recordings: Sequence[Recording]) -> list[Located]:
    """Return where recordings are."""
    return [_located(recording.name, recording.handle) for recording in recordings]


def recordings_at(places: Sequence[Located], source: str, options: dict[str, object] | None = None) -> list[Recording]:
    """Return the recordings that `located` has told the places of; that one is gone shows when it is read.

    Args:
        places: Where they are.
        source: The source in which they were found.
        options: Those that it was listed with.

    Raises:
        SourceError: The source's file system cannot be had.
    """
    if "://" not in source:
        return [Recording(place.name, Path(place.path)) for place in places]
    fs, _ = _file_system(source, options or {})
    return [Recording(place.name, ListedFile(fs, place.path, _version(place.version))) for place in places]


def find_recordings(source: str, options: dict[str, object] | None = None) -> list[Recording]:
    """Return the recordings of a source, sorted by name.

    Args:
        source: A folder (searched with its subfolders), a glob, a file, or an fsspec URL of one of these, such as
            ``s3://bucket/calls`` or ``s3://bucket/calls/*.mp3``.
        options: Handed to fsspec for a URL: endpoint, key, secret.

    Raises:
        SourceError: There is no such source, or there are no recordings in it.
    """
    found = _remote(source, options or {}) if "://" in source else _local(source)
    recordings = sorted(found, key=lambda recording: recording.name)
    if not recordings:
        raise SourceError(f"no recordings in {source}; looked for {', '.join(sorted(MEDIA_SUFFIXES))}")
    return recordings


def _local(source: str) -> Iterator[Recording]:
    path = Path(source).expanduser()
    if path.is_dir():
        for file in _files_under(path):
            if file.suffix.lower() in MEDIA_SUFFIXES:
                yield Recording(file.relative_to(path).as_posix(), file.absolute())
    elif glob.has_magic(source):
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207 - the pattern may be absolute
        files = [match for match in matches if not match.is_dir()]
        root = Path(os.path.commonpath([file.parent for file in files])) if files else path
        yield from (Recording(file.relative_to(root).as_posix(), file.absolute()) for file in files)
    elif path.exists():
        yield Recording(path.name, path.absolute())
    else:
        raise SourceError(f"there is no {source}; give a folder, a file, a glob or an fsspec URL")


def _files_under(folder: Path) -> Iterator[Path]:
    """Yield files, those that cannot be read too: each is somebody's recording, and its reason is reported."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(parent) / file for file in files if not file.startswith("."))


def _remote(url: str, options: dict[str, object]) -> Iterator[Recording]:
    fs, root = _file_system(url, options)
    fs.invalidate_cache()  # it may have listed this in an earlier batch, and answers from memory
    if glob.has_magic(root):
        listed = cast("_Listing", fs.glob(root, detail=True))
        found = {path: how for path, how in listed.items() if how.get("type") != "directory"}
        base = os.path.commonpath([str(PurePosixPath(path).parent) for path in found]) if found else root
    elif fs.isdir(root):
        listed = cast("_Listing", fs.find(root, detail=True))
        found = {path: how for path, how in listed.items() if PurePosixPath(path).suffix.lower() in MEDIA_SUFFIXES}
        base = root
    elif fs.exists(root):
        found, base = {root: cast("dict[str, object]", fs.info(root))}, str(PurePosixPath(root).parent)
    else:
        raise SourceError(f"there is no {url}")
    for path, details in found.items():
        handle = ListedFile(fs, path, version_of_details(fs, path, details))
        yield Recording(PurePosixPath(path).relative_to(base).as_posix(), handle)


def _file_system(url: str, options: dict[str, object]) -> tuple[AbstractFileSystem, str]:
    try:
        return open_file_system(url, **options)
    except (ImportError, ValueError) as error:
        raise SourceError(f"{url}: {error}") from error


def _located(name: str, handle: Path | OpenFile) -> Located:
    if isinstance(handle, Path):
        return Located(name=name, path=str(handle))
    version = handle.version if isinstance(handle, ListedFile) else None
    return Located(name=name, path=str(cast("Any", handle).path), version=version.identity.hex() if version else "")


def _version(told: str) -> Version | None:
    return Version(bytes.fromhex(told), -math.inf) if told else None  # as a listing gives it: its age does not matter
