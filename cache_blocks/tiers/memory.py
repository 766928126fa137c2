"""The in-process hot tier: what stands in for Redis where none is configured.

It keeps envelopes, not objects, so that no caller can change what another one gets. It knows no generations:
another process may have raised them, so every hit is checked against SQL.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import ClassVar

from cache_blocks import forking
from cache_blocks.entry import Entry
from cache_blocks.tiers.base import BackendTier


class MemoryTier(BackendTier):
    """Keeps envelopes in this process, least recently used out first.

    Args:
        namespace: Environment that the entries belong to.
        max_bytes: Budget for all envelopes together.
    """

    name: ClassVar[str] = "memory"
    keeps_manifest: ClassVar[bool] = False

    def __init__(self, namespace: str = "default", max_bytes: int = 64 * 1024 * 1024) -> None:
        super().__init__(namespace)
        self._max_bytes = max_bytes
        self._bytes = 0
        self._envelopes: OrderedDict[str, tuple[int, float, bytes]] = OrderedDict()
        self._lock = forking.lock()

    def _fetch(
        self, keys: Sequence[str], scopes: Sequence[str]
    ) -> tuple[dict[str, bytes], dict[str, int], dict[str, int]]:
        del scopes
        now = time.time()
        found: dict[str, bytes] = {}
        with self._lock:
            for key in keys:
                if (kept := self._envelopes.get(key)) is None:
                    continue
                if kept[1] <= now:
                    self._drop(key)
                    continue
                self._envelopes.move_to_end(key)
                found[key] = kept[2]
        return found, {}, {}

    def _store(self, items: Sequence[tuple[Entry, bytes]]) -> set[str]:
        stored: set[str] = set()
        with self._lock:
            for entry, envelope in items:
                kept = self._envelopes.get(entry.key)
                if (kept and kept[0] > entry.fence) or len(envelope) > self._max_bytes:
                    continue
                self._drop(entry.key)
                self._envelopes[entry.key] = (entry.fence, entry.expires_at, envelope)
                self._bytes += len(envelope)
                stored.add(entry.key)
            while self._bytes > self._max_bytes:
                self._drop(next(iter(self._envelopes)))
        return stored

    def _remove(self, keys: Sequence[str]) -> int:
        with self._lock:
            return sum(self._drop(key) for key in keys)

    def _scan(self) -> Iterator[str]:
        with self._lock:
            yield from list(self._envelopes)

    def _describe(self) -> str:
        with self._lock:
            return f"{len(self._envelopes)} entries, {self._bytes} of {self._max_bytes} bytes in this process"

    def _drop(self, key: str) -> bool:
        kept = self._envelopes.pop(key, None)
        self._bytes -= len(kept[2]) if kept else 0
        return kept is not None
