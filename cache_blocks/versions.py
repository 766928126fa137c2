"""Versions: what stays the same exactly as long as the bytes of a file or object do, told without reading them.

A local file's is path, size, times, inode and device. ``ctime`` is what it rests on: every write, rename and `os.utime`
moves it, and nothing short of changing the machine's clock sets it back. An object's is its ETag, which every write
changes unless it stores the same bytes again; a multipart or encrypted object's is no checksum, but is new all the
same. What changes bytes behind this: a mapping of the file into memory, until the system writes it out.
"""

from __future__ import annotations

import enum
import errno
import math
import os
import re
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from blake3 import blake3
from fsspec.core import OpenFile

if TYPE_CHECKING:
    from collections.abc import Mapping

_OBJECT_STORES: Final = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
"""Protocols whose ETag is new with every write. A web server's may be a time in seconds, and is not used."""
_OUR_CLOCK: Final = frozenset(
    {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}
)
_ANOTHER_CLOCK: Final = frozenset(
    {"9p", "beegfs", "ceph", "gfs2", "gpfs", "lustre", "nfs", "nfs4", "ocfs2", "virtiofs"}
)
_MOUNTS: Final = Path("/proc/self/mountinfo")
_MOUNTS_HOLD_SECONDS: Final = 60.0
_KNOWN_DEVICES: Final = 256
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")
_clocks: dict[tuple[int, int], Clock] = {}


class Clock(enum.Enum):
    """Whose clock gives a file system's files their times."""

    OURS = "ours"
    ANOTHER = "another machine's, or not known"
    NONE = "no ctime that tells of every change: FAT, sshfs and others of which nothing is known"


class Version(NamedTuple):
    """One state of a file or object.

    Attributes:
        identity: Digest of what tells it from all other states; names and addresses cannot be read from it.
        since: When it came to be, in seconds since the epoch by this machine's clock; infinite if that cannot be told,
            so that only having seen it before shows its age, and minus infinity if age does not matter.
    """

    identity: bytes
    since: float


class ListedFile(OpenFile):
    """An object as a listing showed it: its version needs no further request, and no other one is ever read.

    Args:
        fs: The file system.
        path: The object in it.
        version: From the listing; None if that does not tell.
    """

    def __init__(self, fs: Any, path: str, version: Version | None) -> None:
        super().__init__(fs, path, mode="rb")
        self.version = version

    def __reduce__(self) -> tuple[Any, ...]:
        return ListedFile, (self.fs, self.path, self.version)

    def __enter__(self) -> Any:
        """Open it; `OSError` when it has been written again since it was listed."""
        forget_listing(self)
        stream = cast("Any", super().__enter__())
        if self.version is not None:
            path, details = cast("str", self.path), cast("dict[str, Any]", getattr(stream, "details", None) or {})
            if (version_of_details(self.fs, path, details) or version_now(self)) != self.version:
                self.close()
                raise OSError(errno.ESTALE, "has been written again since it was listed; run this again", path)
        return stream


def version_of_file(path: str) -> Version | None:
    """Return the version of the file with this absolute path; None if it is no file, or its times do not tell.

    Raises:
        OSError: There is no such file, or it cannot be opened.
    """
    status = os.stat(path)  # noqa: PTH116 - ten thousand of them: a Path would double the time
    if clock_of(path, status.st_dev) is Clock.ANOTHER and stat.S_ISREG(status.st_mode):
        with open(path, "rb", buffering=0) as stream:  # noqa: PTH123 - NFS asks its server only when a file is opened
            status = os.fstat(stream.fileno())
    return version_of_status(path, status)


def version_of_status(path: str, status: os.stat_result) -> Version | None:
    """Return the version of the file with this absolute path and status, or None as `version_of_file` does."""
    clock = clock_of(path, status.st_dev)
    if clock is Clock.NONE or not stat.S_ISREG(status.st_mode):
        return None
    numbers = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev
    told = max(status.st_mtime, status.st_ctime)
    return Version(_identity("file", path, *numbers), told if clock is Clock.OURS else math.inf)


def version_of_object(remote: OpenFile) -> Version | None:
    """Return the version of an object: as listed, else by one request for its details; None if it has none."""
    return remote.version if isinstance(remote, ListedFile) else version_now(remote)


def version_now(remote: OpenFile) -> Version | None:
    """Return the version that an object has at this moment; None if it has none, and then nothing is asked."""
    if not _tells_versions(remote.fs) or remote.mode != "rb":
        return None
    forget_listing(remote)
    path = cast("str", remote.path)
    found = version_of_details(remote.fs, path, cast("Any", remote.fs).info(path))
    if found is None or remote.compression is None:
        return found
    return Version(_identity(found.identity.hex(), remote.compression), found.since)  # what it counts by is unpacked


def version_of_details(fs: Any, path: str, details: Mapping[str, Any]) -> Version | None:
    """Return the version of an object by what its file system's ``info`` or listing says, None if that tells none."""
    token, size = str(details.get("ETag") or details.get("etag") or "").strip('"'), details.get("size")
    if not _tells_versions(fs) or not token or token.startswith("W/") or not isinstance(size, int):
        return None
    return Version(_identity("object", *_place(fs), path, size, token), -math.inf)


def forget_listing(remote: OpenFile) -> None:
    """Make its file system ask again, which otherwise answers from the last listing of this process."""
    remote.fs.invalidate_cache(remote.path)


def clock_of(path: str, device: int) -> Clock:
    """Return whose clock gives the times to the files of a file system, told by any path in it and its device."""
    asked = device, int(time.monotonic() / _MOUNTS_HOLD_SECONDS)  # something else may be mounted later
    if (clock := _clocks.get(asked)) is None:
        if len(_clocks) >= _KNOWN_DEVICES:
            _clocks.clear()
        clock = _clocks[asked] = _clock_now(path)
    return clock


def _clock_now(path: str) -> Clock:
    if sys.platform != "linux":
        return Clock.ANOTHER
    kind = file_system_kind(path)
    if kind in _OUR_CLOCK:
        return Clock.OURS
    return Clock.ANOTHER if kind in _ANOTHER_CLOCK else Clock.NONE


def file_system_kind(path: str) -> str:
    """Return the kind of the file system that is mounted where a path is; empty if nobody says."""
    real, best, kind = os.fsencode(os.path.realpath(path)), b"", b""
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return ""
    for line in lines:
        mounted, _, rest = line.partition(b" - ")
        point = _OCTAL.sub(lambda found: bytes([int(found[1], 8)]), mounted.split(b" ")[4])
        if (real == point or real.startswith(point.rstrip(b"/") + b"/")) and len(point) >= len(best):
            best, kind = point, rest.split(b" ", 1)[0]
    return kind.decode()


def _tells_versions(fs: Any) -> bool:
    return not _OBJECT_STORES.isdisjoint([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def _place(fs: Any) -> tuple[str, str]:
    """Return what tells stores of one kind apart; who asks does not count."""
    options: dict[str, Any] = dict(fs.storage_options)
    options |= options.get("client_kwargs") or {}
    return type(fs).__name__, str(options.get("endpoint_url") or options.get("account_name") or "")


def _identity(*parts: str | int) -> bytes:
    return blake3(repr(parts).encode("utf-8", "surrogatepass")).digest()
