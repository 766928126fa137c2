"""Payloads of a batch's hits, in memory while they are few and in an unnamed temporary file once they are many."""

from __future__ import annotations

import tempfile
import weakref
from typing import Final

from cache_blocks import forking

IN_MEMORY_BYTES: Final = 32 * 1024 * 1024


class Spool:
    """Bytes by offset, appended and read by any thread. Its file goes with it."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES)  # noqa: SIM115 - it is closed with the spool
        self._lock = forking.lock()
        self._end = 0
        weakref.finalize(self, self._file.close)

    def append(self, data: bytes) -> int:
        """Keep ``data`` and return its offset."""
        with self._lock:
            offset = self._end
            self._file.seek(offset)
            self._file.write(data)
            self._end += len(data)
            return offset

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset`` on."""
        with self._lock:
            self._file.seek(offset)
            return self._file.read(length)
