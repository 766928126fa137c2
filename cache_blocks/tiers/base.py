"""The contract of a tier.

The public methods validate, verify and translate errors; a backend writes the small hooks that do the I/O. A
tier keeps bytes and knows nothing of lifetimes or generations beyond what it is told: deciding is `plan`'s.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final

from cache_blocks import codec
from cache_blocks.entry import Entry, check_key, check_namespace
from cache_blocks.errors import CorruptEntryError, TierError, TierFullError, TierUnavailableError
from cache_blocks.plan import TierAnswer

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Tier(ABC):
    """A place that keeps entries of one namespace: one backend, or a chain of them.

    Attributes:
        name: One of ``memory``, ``redis``, ``sql``, ``object_store``; ``chain`` for several.
        knows_generations: Whether `read` can answer for scopes.
        namespace: Environment that the entries belong to.
    """

    name: ClassVar[str]
    knows_generations: ClassVar[bool] = False

    def __init__(self, namespace: str = "default") -> None:
        self.namespace = check_namespace(namespace)

    @abstractmethod
    def read(self, keys: Sequence[str], scopes: Sequence[str] = ()) -> TierAnswer:
        """Return the intact entries of these keys and what is known of these scopes, in one round trip.

        An entry that is not what was written is not returned but named in ``corrupt``, and removed.

        Raises:
            TierUnavailableError: The tier is down, slow or full.
        """

    @abstractmethod
    def write(self, entries: Sequence[Entry]) -> set[str]:
        """Store entries, each unless one with a higher fence is there; return the keys that were stored.

        Raises:
            EntryRefusedError: An entry does not belong here.
            TierUnavailableError: The tier is down, slow or full.
        """

    @abstractmethod
    def delete(self, keys: Sequence[str]) -> int:
        """Remove entries and return how many there were."""

    @abstractmethod
    def keys(self) -> Iterator[str]:
        """Yield the keys of all entries in this namespace, in no particular order."""

    @abstractmethod
    def ping(self) -> str:
        """Return a line on what answers, such as a version; raises `TierUnavailableError`."""

    def reserve(self, scopes: Sequence[str]) -> str:
        """Prepare to `seed` copies of these generations; return a token, or nothing where no copies are kept."""
        del scopes
        return ""

    def seed(self, generations: Mapping[str, int], token: str) -> None:
        """Keep copies of these generations, as far as nobody has changed them since ``token`` was given."""
        del generations, token

    def close(self) -> None:  # noqa: B027 - most tiers hold no connections
        """Give back connections; the tier opens them again when it is used."""


class BackendTier(Tier):
    """A tier over one backend, which writes the hooks that do the I/O.

    Attributes:
        keeps_manifest: Whether copies here carry the manifest.
        outages: Exceptions of the backend that mean "down, slow or full".
    """

    keeps_manifest: ClassVar[bool] = True
    outages: ClassVar[tuple[type[BaseException], ...]] = (OSError,)

    def read(self, keys: Sequence[str], scopes: Sequence[str] = ()) -> TierAnswer:
        """See `Tier.read`; what comes out of the hook is verified here."""
        keys = [check_key(key) for key in keys]
        with self._outage():
            found, generations, elsewhere = self._fetch(keys, list(scopes))
        entries: dict[str, Entry] = {}
        corrupt: dict[str, str] = {}
        for key, data in found.items():
            try:
                entries[key] = codec.unpack(data, key=key, namespace=self.namespace)
            except CorruptEntryError as error:
                corrupt[key] = str(error)
        if corrupt:
            self.delete(list(corrupt))
        return TierAnswer(entries, corrupt, generations, elsewhere)

    def write(self, entries: Sequence[Entry]) -> set[str]:
        """See `Tier.write`."""
        for entry in entries:
            check_key(entry.key)
        items = [(entry, codec.pack(entry, with_manifest=self.keeps_manifest)) for entry in entries]
        with self._outage():
            return self._store(items)

    def delete(self, keys: Sequence[str]) -> int:
        """See `Tier.delete`."""
        keys = [check_key(key) for key in keys]
        with self._outage():
            return self._remove(keys)

    def keys(self) -> Iterator[str]:
        """See `Tier.keys`."""
        with self._outage():
            yield from self._scan()

    def ping(self) -> str:
        """See `Tier.ping`."""
        with self._outage():
            return self._describe()

    def _outage(self) -> _Outage:
        return _Outage(self.name, self.outages)

    @abstractmethod
    def _fetch(
        self, keys: Sequence[str], scopes: Sequence[str]
    ) -> tuple[dict[str, bytes], dict[str, int], dict[str, int]]:
        """Return envelopes by key, generations by scope, and fences by key of payloads kept elsewhere."""

    @abstractmethod
    def _store(self, items: Sequence[tuple[Entry, bytes]]) -> set[str]:
        """Store envelopes, each unless one with a higher fence is there; return the keys stored."""

    @abstractmethod
    def _remove(self, keys: Sequence[str]) -> int:
        """Remove entries; return how many there were."""

    @abstractmethod
    def _scan(self) -> Iterator[str]:
        """Yield the keys of this namespace."""

    @abstractmethod
    def _describe(self) -> str:
        """Return a line on what answers, at the cost of one round trip."""


class _Outage:
    """Translates what a backend raises when it is down, slow or full; a class, because a generator costs thrice."""

    __slots__ = ("_outages", "_tier")

    def __init__(self, tier: str, outages: tuple[type[BaseException], ...]) -> None:
        self._tier = tier
        self._outages = outages

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, self._outages) and not isinstance(error, TierError):
            raise unavailable(self._tier, error) from error


def unavailable(tier: str, error: BaseException) -> TierUnavailableError:
    """Return what a backend's error means: a tier that is full still answers, any other is down or slow."""
    original = getattr(error, "orig", None) or error
    full = (
        getattr(original, "errno", None) in _NO_ROOM
        or getattr(original, "sqlite_errorname", "") == "SQLITE_FULL"
        or getattr(original, "sqlstate", "") == "53100"  # PostgreSQL's disk_full
        or type(original).__name__ == "OutOfMemoryError"  # Redis's; by name, for tiers whose library is not redis
    )
    return (TierFullError if full else TierUnavailableError)(tier, describe(error))


def describe(error: BaseException) -> str:
    """Return a backend's error in one line without URLs or statements, which may carry credentials and data."""
    original = getattr(error, "orig", None) or error
    text = str(original).partition("\n")[0]
    safe = "" if "://" in text or "[SQL" in text else text[:160]
    return f"{type(original).__name__}{f': {safe}' if safe else ''}"
