"""The far tier: any fsspec file system. Entries here survive a lost database; blobs live nowhere else.

Layout under the configured URL::

    NAMESPACE/entries/KIND/ab/DIGEST      envelopes
    NAMESPACE/blobs/ab/DIGEST             contents of files
    NAMESPACE/generations/DIGEST/NUMBER   mirror of invalidations; the highest number counts

An object appears whole or not at all, see `objects`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

import orjson

from cache_blocks.entry import Entry, is_key
from cache_blocks.errors import TierUnavailableError
from cache_blocks.fingerprint import digest_bytes
from cache_blocks.tiers.base import BackendTier, describe
from cache_blocks.tiers.objects import TEMPORARY, ObjectStore

if TYPE_CHECKING:
    from collections.abc import Mapping

_MIRROR_ATTEMPTS: Final = 20


class ObjectStoreTier(BackendTier):
    """Keeps entries as objects, and the mirror of the generations.

    Args:
        store: Where the objects are.
        namespace: Environment that the entries belong to.
    """

    name: ClassVar[str] = "object_store"
    outages: ClassVar[tuple[type[BaseException], ...]] = (Exception,)  # fsspec backends raise what they please

    def __init__(self, store: ObjectStore, namespace: str = "default") -> None:
        super().__init__(namespace)
        self.store = store

    def mirror_generations(self, generations: Mapping[str, int]) -> None:
        """Keep a copy of these numbers, from which an emptied database is seeded.

        Each is an object of its own, so that of two invalidations at once the slower does not lower the number.
        """
        with self._outage():
            for scope, number in generations.items():
                content = orjson.dumps({"scope": scope, "number": number})
                self.store.write(self._generation_path(scope, number), content)
                folder = self._generation_path(scope)
                kept = {path: _number_in(path) for path, _ in self.store.walk(folder) if TEMPORARY not in path}
                self.store.delete([path for path, other in kept.items() if other < max(kept.values())])

    def mirrored_generations(self) -> dict[str, int]:
        """Return all numbers of the mirror.

        Raises:
            TierUnavailableError: The mirror cannot be read whole; an unknown number must not count as zero.
        """
        numbers: dict[str, int] = {}
        with self._outage():
            for path, data in self._mirror().items():
                try:
                    content: dict[str, Any] = orjson.loads(data)
                    scope, number = str(content["scope"]), int(content["number"])
                except (ValueError, KeyError, TypeError) as error:
                    raise TierUnavailableError(self.name, f"mirror of generations: {describe(error)}") from error
                if self._generation_path(scope, number) != path:
                    raise TierUnavailableError(self.name, f"mirror of generations: {path} holds another scope")
                numbers[scope] = max(number, numbers.get(scope, 0))
        return numbers

    def _mirror(self) -> dict[str, bytes]:
        """Return all objects of the mirror. One that goes while it is read gave way to a higher number: look again."""
        prefix = self.store.path(self.namespace, "generations")
        for _ in range(_MIRROR_ATTEMPTS):
            paths = [path for path, _ in self.store.walk(prefix) if TEMPORARY not in path]
            found = self.store.read_many(paths)
            if len(found) == len(paths):
                return found
        raise TierUnavailableError(self.name, "mirror of generations: it changes faster than it can be read")

    def _fetch(
        self, keys: Sequence[str], scopes: Sequence[str]
    ) -> tuple[dict[str, bytes], dict[str, int], dict[str, int]]:
        del scopes
        by_path = {self._entry_path(key): key for key in keys}
        found = self.store.read_many(list(by_path))
        return {by_path[path]: data for path, data in found.items()}, {}, {}

    def _store(self, items: Sequence[tuple[Entry, bytes]]) -> set[str]:
        for entry, envelope in items:
            self.store.write(self._entry_path(entry.key), envelope)
        return {entry.key for entry, _ in items}

    def _remove(self, keys: Sequence[str]) -> int:
        return self.store.delete([self._entry_path(key) for key in keys])

    def _scan(self) -> Iterator[str]:
        prefix = self.store.path(self.namespace, "entries")
        for path, _ in self.store.walk(prefix):
            *_, kind, _, digest = path.split("/")
            if is_key(key := f"{kind}:{digest}") and self._entry_path(key) == path:  # somebody's stray file is none
                yield key

    def _describe(self) -> str:
        self.store.exists(self.store.path(self.namespace, "entries"))
        return self.store.label

    def _entry_path(self, key: str) -> str:
        kind, _, digest = key.partition(":")
        return self.store.path(self.namespace, "entries", kind, f"{digest_bytes(digest.encode())[:2]}", digest)

    def _generation_path(self, scope: str, *number: int) -> str:
        return self.store.path(self.namespace, "generations", digest_bytes(scope.encode()), *map(str, number))


def _number_in(path: str) -> int:
    """Return the number that an object of the mirror is named after; a stray file's is the lowest."""
    name = path.rpartition("/")[2]
    return int(name) if name.isdecimal() else -1
