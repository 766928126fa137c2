"""Copies of blobs on this machine: fetched once, shared by its processes, and kept within a budget.

Layout under the folder::

    ab/BLOB/NAME       a copy; whoever uses it holds a shared lock on it. A blob's name is its digest, or a keyed one
    .state/budget      bytes of all copies, or more than that; its lock is held while copies come and go
    .state/abc.lock    held while a blob whose name begins so is fetched
    .state/abc.part    what has been fetched of it

A copy appears whole, by being renamed. When copies exceed the budget, those go first that were not used for the longest
time. A lost copy costs fetching it again, which takes about as long per byte for every file, so that the time of last
use is all that tells their values apart. A copy in use never goes; the system drops the lock of a process that dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cache_blocks import forking
from cache_blocks.fingerprint import digest_path

_HELD: Final = 256
"""Copies that a process keeps from going at most, since each takes a file descriptor; the latest ones count."""
_ROOM: Final = 0.9
"""To what part of the budget copies are reduced, so that not every further one has to make room."""

Write = Callable[[Path], object]
"""Writes the bytes of a blob to a file; what it raises goes to whoever asked for the copy."""


class LocalCopy:
    """A copy that stays where it is as long as this object lives.

    Attributes:
        path: Where it is.
    """

    __slots__ = ("__weakref__", "_close", "_descriptor", "path")

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._close = weakref.finalize(self, os.close, descriptor)

    @property
    def holds(self) -> bool:
        """Whether the copy is kept from going, and is there: a human may delete anything."""
        return self._close.alive and self.path.exists()

    def fileno(self) -> int:
        """Return the descriptor that holds it."""
        return self._descriptor

    def release(self) -> None:
        """Let it go when room is needed."""
        self._close()


@dataclass(frozen=True, slots=True)
class _Kept:
    """The copies of one blob: several names of the same bytes, as a rule."""

    used: float
    folder: Path
    size: int


class LocalFiles:
    """The copies of one namespace.

    Attributes:
        folder: Where they are.

    Args:
        folder: Where they are.
        budget: Bytes of all copies together, beyond which those that are not in use go.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder = folder
        self._state = folder / ".state"
        self._budget = budget
        self._lock = forking.lock()
        self._numbers = itertools.count()
        self._held: weakref.WeakValueDictionary[int, LocalCopy] = weakref.WeakValueDictionary()

    def copy_of(self, digest: str, name: str, write: Write, *, blob: str = "") -> LocalCopy:
        """Return a copy with exactly the bytes of this digest.

        Args:
            digest: Digest of the bytes.
            name: File name of the copy.
            blob: Name of the blob, where that is not the digest.
            write: Called by one process of this machine at a time, if there is no copy yet; it must see to it that the
                bytes are the right ones.
        """
        blob = blob or digest
        target = self._folder_of(blob) / name
        if (found := self._find(digest, target)) is not None:
            return found
        with self._locked(f"{blob[:3]}.lock"):  # others that want it wait here, and find it afterwards
            if (found := self._find(digest, target) or self._under_another_name(digest, target)) is not None:
                return found
            part = self._state / f"{blob[:3]}.part"
            part.unlink(missing_ok=True)
            try:
                write(part)
                return self._publish(part, target)
            finally:
                part.unlink(missing_ok=True)

    def remove(self, blob: str) -> None:
        """Remove the copies of a blob, half-fetched ones too; who has one open can read it to its end."""
        for path in _files_in(self._folder_of(blob)):
            path.unlink(missing_ok=True)
        self._remove_parts(f"{blob[:3]}.part")

    def _folder_of(self, blob: str) -> Path:
        return self.folder / blob[:2] / blob

    def _find(self, digest: str, target: Path) -> LocalCopy | None:
        """Return the copy that is here, if it has the right bytes, and note that it was used."""
        if (descriptor := _hold(target)) is None:
            return None
        copy = LocalCopy(target, descriptor)
        if digest_path(target) != digest:
            copy.release()
            return None
        os.utime(target.parent)  # not of the file, which would have to be read again for its digest
        return self._holding(copy)

    def _under_another_name(self, digest: str, target: Path) -> LocalCopy | None:
        """Give a copy a further name."""
        for path in _files_in(target.parent):
            if path != target and (found := self._find(digest, path)) is not None:
                target.unlink(missing_ok=True)
                os.link(path, target)
                return self._holding(LocalCopy(target, os.dup(found.fileno())))
        return None

    def _publish(self, part: Path, target: Path) -> LocalCopy:
        """Let a copy appear, already held, and make room for it."""
        with self._locked("budget") as ledger:
            total = _read_number(ledger)
            if total is not None:
                total += part.stat().st_size
                _write_number(ledger, total)  # before it appears: the number may be too high, never too low
            target.parent.mkdir(parents=True, exist_ok=True)
            descriptor = _hold(part)
            assert descriptor is not None  # noqa: S101 - nobody else touches it
            copy = self._holding(LocalCopy(target, descriptor))
            part.replace(target)
            if total is None or total > self._budget:
                _write_number(ledger, self._make_room())
        return copy

    def _holding(self, copy: LocalCopy) -> LocalCopy:
        """Remember what is held; of too many, let the oldest go."""
        with self._lock:
            self._held[next(self._numbers)] = copy
            for number in list(self._held.keys())[:-_HELD]:
                if (oldest := self._held.pop(number, None)) is not None:
                    oldest.release()
        return copy

    def _make_room(self) -> int:
        """Remove what is over the budget; return the bytes that are left."""
        self._remove_parts("*.part")
        kept = sorted(self._kept(), key=lambda one: one.used)
        total = sum(one.size for one in kept)
        if total <= self._budget:
            return total
        for one in kept:
            if total <= self._budget * _ROOM:
                break
            if _remove_unused(one.folder):
                total -= one.size
        return total

    def _kept(self) -> Iterator[_Kept]:
        for folder in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                used = folder.stat().st_mtime
                sizes = {status.st_ino: status.st_size for status in (path.stat() for path in _files_in(folder))}
                yield _Kept(used, folder, sum(sizes.values()))

    def _remove_parts(self, names: str) -> None:
        """Remove what processes have left that died while they were fetching."""
        for part in self._state.glob(names):
            with contextlib.suppress(BlockingIOError), self._locked(f"{part.stem}.lock", wait=False):
                part.unlink(missing_ok=True)

    @contextmanager
    def _locked(self, name: str, *, wait: bool = True) -> Generator[int]:
        """Hold a lock between processes and threads; gives its file. BlockingIOError if that would mean waiting."""
        self._state.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._state / name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield descriptor
        finally:
            # Closing alone would leave it locked as long as a child lives that was forked meanwhile.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _hold(path: Path) -> int | None:
    """Open and lock a copy, so that it stays; None when there is none."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # it went, or another one came, while we took the lock


def _remove_unused(folder: Path) -> bool:
    """Remove the copies of a blob unless somebody uses one, and say whether they are gone."""
    with contextlib.ExitStack() as opened:
        try:
            paths = _files_in(folder)
            for path in {path.stat().st_ino: path for path in paths}.values():  # a lock is on the bytes, not on a name
                descriptor = os.open(path, os.O_RDWR)
                opened.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, FileNotFoundError, PermissionError):
            return False
        for path in paths:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # an empty folder takes no room
            folder.rmdir()
    return True


def _read_number(descriptor: int) -> int | None:
    """Return the number in a file; None when there is none."""
    text = os.pread(descriptor, 64, 0)
    return int(text) if text.isdigit() else None


def _write_number(descriptor: int, number: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(number).encode(), 0)


def _files_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return []
