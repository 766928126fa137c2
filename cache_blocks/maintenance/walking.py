"""What all maintenance does: walk through tiers in batches, and ask SQL what it knows."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import sqlalchemy as sa

from cache_blocks.entry import Entry
from cache_blocks.errors import CacheError, TierUnavailableError
from cache_blocks.schema import BlobRow, EntryRow, TagRow, table
from cache_blocks.tiers.base import Tier, describe

if TYPE_CHECKING:
    from cache_blocks.cache import TieredCache
    from cache_blocks.plan import TierAnswer

T = TypeVar("T")

Progress = Callable[[str, int], None]
"""Takes what is being done, and how much more of it has been done since the last call."""

ROWS: Final = 1000
"""Rows of one statement, and of one transaction."""
ENVELOPES: Final = 64
"""Entries of unknown size that are read at once."""

entry_table, tag_table, blob_table = (table(row) for row in (EntryRow, TagRow, BlobRow))


def unheard(what: str, done: int) -> None:
    """Take progress for nobody."""
    del what, done


def batched(items: Iterable[T], size: int = ROWS) -> Iterator[list[T]]:
    """Yield the items in lists of at most ``size``."""
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch


@dataclass(frozen=True, slots=True)
class Walker:
    """The tiers of a cache, for who walks through all that they keep.

    Attributes:
        cache: The cache.
    """

    cache: TieredCache

    @property
    def namespace(self) -> str:
        """Environment whose entries are walked."""
        return self.cache.settings.namespace

    @property
    def sql(self) -> Tier:
        """The tier that holds the truth."""
        return self.cache.parts.chain.tier("sql")

    @property
    def copies(self) -> list[Tier]:
        """The other tiers."""
        return [tier for tier in self.cache.parts.chain.tiers if tier.name != "sql"]

    @property
    def local_files(self) -> Path:
        """Where this machine keeps copies of blobs."""
        return self.cache.settings.local_files

    def envelopes(self, tier: Tier) -> Iterator[tuple[list[str], TierAnswer]]:
        """Yield the keys of a tier in batches, with what reading them gave; reading removes corrupt copies.

        Raises:
            TierUnavailableError: The tier does not answer.
        """
        for keys in batched(tier.keys(), ENVELOPES):
            yield keys, self.read(tier, keys)

    def read(self, tier: Tier, keys: Sequence[str]) -> TierAnswer:
        """Return what a tier has under these keys."""
        return self.cache.parts.chain.guarded(tier, tier.read, keys)

    def delete(self, tier: Tier, keys: Sequence[str]) -> int:
        """Remove entries from one tier; return how many there were."""
        chain = self.cache.parts.chain
        return sum(chain.guarded(tier, tier.delete, batch) for batch in batched(keys)) if keys else 0

    def generations(self, scopes: Iterable[str]) -> dict[str, int]:
        """Return SQL's numbers of these scopes."""
        return dict(self.cache.parts.chain.guarded(self.sql, self.sql.read, (), sorted(set(scopes))).generations)

    def generations_of(self, entries: Iterable[Entry]) -> dict[str, int]:
        """Return SQL's numbers of all scopes of these entries."""
        return self.generations(scope for entry in entries for scope in entry.scopes)

    def among(self, column: sa.ColumnElement[str], values: Sequence[str]) -> sa.ColumnElement[bool]:
        """Return the condition that a column is one of these values."""
        return self.cache.parts.database.among(column, values)

    def known(self, keys: Sequence[str]) -> set[str]:
        """Return which of these keys, a batch at most, SQL has a row for."""
        statement = sa.select(entry_table.c.key).where(
            entry_table.c.namespace == self.namespace, self.among(entry_table.c.key, keys)
        )
        with self.cache.parts.database.read() as connection:
            return set(connection.execute(statement).scalars())

    def referring(self, digests: Sequence[str]) -> list[tuple[str, str]]:
        """Return digest and key of every entry that SQL knows to refer to one of these blobs, a batch at most."""
        statement = (
            sa.select(blob_table.c.digest, blob_table.c.key)
            .join(
                entry_table,
                (entry_table.c.namespace == blob_table.c.namespace) & (entry_table.c.key == blob_table.c.key),
            )
            .where(blob_table.c.namespace == self.namespace, self.among(blob_table.c.digest, digests))
        )
        with self.cache.parts.database.read() as connection:
            return [(row[0], row[1]) for row in connection.execute(statement)]

    def tags(self, keys: Sequence[str]) -> dict[str, list[str]]:
        """Return the tags that SQL knows of these keys, a batch at most, in the order that entries have them."""
        statement = sa.select(tag_table.c.key, tag_table.c.tag).where(
            tag_table.c.namespace == self.namespace, self.among(tag_table.c.key, keys)
        )
        found: dict[str, list[str]] = {key: [] for key in keys}
        with self.cache.parts.database.read() as connection:
            for key, tag in connection.execute(statement):
                found[key].append(tag)
        return {key: sorted(tags) for key, tags in found.items()}

    def count(self, rows: sa.Table, condition: sa.ColumnElement[bool]) -> int:
        """Return how many rows of SQL fulfil a condition."""
        statement = sa.select(sa.func.count()).select_from(rows).where(condition)
        with self.cache.parts.database.read() as connection:
            return int(connection.execute(statement).scalar_one())

    def blob_path(self, digest: str) -> str:
        """Return the path of a blob in the object store."""
        return self.cache.parts.store.path(self.namespace, "blobs", digest[:2], digest)


@contextmanager
def object_store_errors() -> Generator[None]:
    """Turn what fsspec backends raise into `TierUnavailableError`."""
    try:
        yield
    except CacheError:
        raise
    except Exception as error:
        raise TierUnavailableError("object_store", describe(error)) from error
