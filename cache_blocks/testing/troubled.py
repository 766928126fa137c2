"""Tiers that fail or wait when a test says so."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from cache_blocks.entry import Entry
from cache_blocks.errors import TierUnavailableError
from cache_blocks.plan import TierAnswer
from cache_blocks.tiers.base import Tier


class TierAround(Tier):
    """A tier around another one, under its name; the base of `FaultyTier` and `SlowTier`."""

    name: ClassVar[str] = "around"

    def __init__(self, inner: Tier, operations: Sequence[str] = ()) -> None:
        super().__init__(inner.namespace)
        self.inner = inner
        self.calls: list[str] = []
        self._operations = frozenset(operations)
        vars(self).update(name=inner.name, knows_generations=inner.knows_generations)

    def before(self, operation: str) -> None:
        """Act before an operation that is passed on."""

    def read(self, keys: Sequence[str], scopes: Sequence[str] = ()) -> TierAnswer:
        """See `Tier.read`."""
        self._passing("read")
        return self.inner.read(keys, scopes)

    def write(self, entries: Sequence[Entry]) -> set[str]:
        """See `Tier.write`."""
        self._passing("write")
        return self.inner.write(entries)

    def delete(self, keys: Sequence[str]) -> int:
        """See `Tier.delete`."""
        self._passing("delete")
        return self.inner.delete(keys)

    def keys(self) -> Iterator[str]:
        """See `Tier.keys`."""
        self._passing("keys")
        return self.inner.keys()

    def ping(self) -> str:
        """See `Tier.ping`."""
        self._passing("ping")
        return self.inner.ping()

    def reserve(self, scopes: Sequence[str]) -> str:
        """See `Tier.reserve`."""
        self._passing("reserve")
        return self.inner.reserve(scopes)

    def seed(self, generations: Mapping[str, int], token: str) -> None:
        """See `Tier.seed`."""
        self._passing("seed")
        self.inner.seed(generations, token)

    def close(self) -> None:
        """See `Tier.close`."""
        self.inner.close()

    def _passing(self, operation: str) -> None:
        self.calls.append(operation)
        if not self._operations or operation in self._operations:
            self.before(operation)


class FaultyTier(TierAround):
    """Raises `TierUnavailableError` while `down` is set.

    Args:
        inner: The tier that answers otherwise.
        operations: Names of the methods that fail; all of them when not given.
    """

    name: ClassVar[str] = "faulty"

    def __init__(self, inner: Tier, operations: Sequence[str] = ()) -> None:
        super().__init__(inner, operations)
        self.down = threading.Event()

    def before(self, operation: str) -> None:
        """Fail while `down` is set."""
        if self.down.is_set():
            raise TierUnavailableError(self.name, f"{operation} was told to fail")


class SlowTier(TierAround):
    """Holds every call until `gate` is set, and sets `reached` when one has arrived.

    Args:
        inner: The tier that answers in the end.
        operations: Names of the methods that wait; all of them when not given.
        timeout_seconds: After so long a closed gate is an outage, as a slow server is.
    """

    name: ClassVar[str] = "slow"

    def __init__(self, inner: Tier, operations: Sequence[str] = (), *, timeout_seconds: float = 60.0) -> None:
        super().__init__(inner, operations)
        self.gate = threading.Event()
        self.reached = threading.Event()
        self._timeout = timeout_seconds

    def before(self, operation: str) -> None:
        """Wait for the gate."""
        self.reached.set()
        if not self.gate.wait(self._timeout):
            raise TierUnavailableError(self.name, f"{operation} took too long")
