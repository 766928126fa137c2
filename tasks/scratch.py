"""Produced files that clean up after themselves."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cache_blocks import CachedFile

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


class ScratchFile(CachedFile):
    """A produced file in a temporary folder of its own.

    A task cannot delete what it returns, since the cache reads the file after the task has ended. So the
    folder lives as long as this object, and goes with it or with the process: hold on to the file, not to its
    `path`. Once pickled, it is left to the process that it was sent to and to the system's cleaning of
    temporary files.
    """

    def own(self, folder: Path) -> None:
        """Delete ``folder`` when this object goes."""
        self._cleaner = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    def __reduce__(self) -> tuple[Any, ...]:
        self._cleaner.detach()
        return super().__reduce__()


@contextmanager
def scratch(name: str, media_type: str) -> Generator[tuple[Path, Callable[[], ScratchFile]]]:
    """Give a path to write to, and a function that turns it into the file to return.

    Leaving the block without having called that function, as an exception does, deletes everything.

    Args:
        name: File name, without folders.
        media_type: Such as ``audio/wav``.
    """
    folder = Path(tempfile.mkdtemp(prefix="pipeline-"))
    path = folder / name
    kept: list[ScratchFile] = []

    def keep() -> ScratchFile:
        file = cast("ScratchFile", ScratchFile.from_path(path, media_type))  # annotated with the base class
        file.own(folder)
        kept.append(file)
        return file

    try:
        yield path, keep
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
