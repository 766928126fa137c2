"""The durable tier: SQLite or PostgreSQL.

It holds the truth about entries (which fence has won) and, through `generations`, about invalidation. One
statement brings entries and generations together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import sqlalchemy as sa

from cache_blocks.entry import Entry
from cache_blocks.errors import EntryRefusedError
from cache_blocks.kinds import DESCRIPTOR_BYTES
from cache_blocks.schema import BlobRow, EntryRow, GenerationRow, TagRow, table
from cache_blocks.tiers.base import BackendTier

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from cache_blocks.database import Database

SEEDED: Final = "seeded"
"""Scope whose row says that the generations are whole: an emptied table lacks it."""
_BATCH: Final = 500

_entry, _tag, _blob, _generation = (table(row) for row in (EntryRow, TagRow, BlobRow, GenerationRow))


class SqlTier(BackendTier):
    """Keeps entries in a database.

    Args:
        database: Connection.
        namespace: Environment that the entries belong to.
        reseed: Called when the generations table turns out to be empty; restores them from their mirror and
            returns them.
    """

    name: ClassVar[str] = "sql"
    knows_generations: ClassVar[bool] = True

    def __init__(self, database: Database, namespace: str = "default", reseed: Any = None) -> None:
        super().__init__(namespace)
        self.database = database
        self._reseed = reseed

    def close(self) -> None:
        """Give back pooled connections."""
        self.database.close()

    def _fetch(
        self, keys: Sequence[str], scopes: Sequence[str]
    ) -> tuple[dict[str, bytes], dict[str, int], dict[str, int]]:
        envelopes: dict[str, bytes] = {}
        elsewhere: dict[str, int] = {}
        generations = dict.fromkeys(scopes, 0)
        seeded = not scopes
        with self.database.read() as connection:
            for start in range(0, max(len(keys), len(scopes)), _BATCH):
                statement = self._select(keys[start : start + _BATCH], scopes[start : start + _BATCH])
                for is_scope, name, number, envelope in cast(
                    "Iterable[tuple[int, str, int, Any]]", connection.execute(statement)
                ):
                    if is_scope and name == SEEDED:
                        seeded = True
                    elif is_scope:
                        generations[name] = number
                    elif envelope is None:
                        elsewhere[name] = number
                    else:
                        envelopes[name] = bytes(envelope)
        if not seeded:
            generations |= self._restored(scopes)
        return envelopes, generations, elsewhere

    def _select(self, keys: Sequence[str], scopes: Sequence[str]) -> Any:
        """Return one statement for both questions; its first column tells the answers apart."""
        entries: Any = sa.select(
            sa.literal_column("0", sa.Integer).label("is_scope"), _entry.c.key, _entry.c.fence, _entry.c.envelope
        ).where(_entry.c.namespace == self.namespace, _entry.c.key.in_(keys))
        if not scopes:
            return entries
        nothing = sa.cast(sa.null(), sa.LargeBinary)
        numbers: Any = sa.select(
            sa.literal_column("1", sa.Integer), _generation.c.scope, _generation.c.number, nothing
        ).where(_generation.c.namespace == self.namespace, _generation.c.scope.in_([*scopes, SEEDED]))
        return sa.union_all(entries, numbers) if keys else numbers

    def _restored(self, scopes: Sequence[str]) -> dict[str, int]:
        restored: Mapping[str, int] = self._reseed() if self._reseed is not None else {}
        return {scope: restored.get(scope, 0) for scope in scopes}

    def _store(self, items: Sequence[tuple[Entry, bytes]]) -> set[str]:
        stored: set[str] = set()
        with self.database.begin() as connection:
            numbers = self._numbers(connection, {scope for entry, _ in items for scope in entry.scopes})
            for entry, envelope in items:
                if _is_standing(entry, numbers) and self._store_one(connection, entry, envelope):
                    stored.add(entry.key)
        return stored

    def _numbers(self, connection: Connection, scopes: Iterable[str]) -> dict[str, int]:
        statement = sa.select(_generation.c.scope, _generation.c.number).where(
            _generation.c.namespace == self.namespace, _generation.c.scope.in_([*scopes, SEEDED])
        )
        return {row[0]: row[1] for row in connection.execute(statement)}

    def _store_one(self, connection: Connection, entry: Entry, envelope: bytes) -> bool:
        """Upsert unless a higher fence is there; tags and blobs follow in the same transaction."""
        row = _row_of(entry, envelope)
        statement = self.database.upsert(_entry).values(row)
        statement = statement.on_conflict_do_update(
            index_elements=["namespace", "key"],
            set_={name: statement.excluded[name] for name in row if name not in ("namespace", "key")},
            where=_entry.c.fence <= statement.excluded.fence,
        )
        if connection.execute(statement.returning(_entry.c.key)).one_or_none() is None:
            return False
        self._replace(connection, _tag, entry.key, [{"tag": tag} for tag in entry.tags])
        self._replace(connection, _blob, entry.key, [{"digest": digest} for digest in sorted(entry.blobs)])
        return True

    def _replace(self, connection: Connection, side: sa.Table, key: str, rows: list[dict[str, Any]]) -> None:
        connection.execute(sa.delete(side).where(side.c.namespace == self.namespace, side.c.key == key))
        if rows:
            connection.execute(sa.insert(side), [{"namespace": self.namespace, "key": key, **row} for row in rows])

    def _remove(self, keys: Sequence[str]) -> int:
        removed = 0
        with self.database.begin() as connection:
            for start in range(0, len(keys), _BATCH):
                batch = keys[start : start + _BATCH]
                for side in (_tag, _blob):
                    connection.execute(sa.delete(side).where(side.c.namespace == self.namespace, side.c.key.in_(batch)))
                removed += connection.execute(
                    sa.delete(_entry).where(_entry.c.namespace == self.namespace, _entry.c.key.in_(batch))
                ).rowcount
        return removed

    def _scan(self) -> Iterator[str]:
        """Page by key, so that a long scan holds no transaction open."""
        last = ""
        while True:
            statement = (
                sa.select(_entry.c.key)
                .where(_entry.c.namespace == self.namespace, _entry.c.key > last)
                .order_by(_entry.c.key)
                .limit(_BATCH)
            )
            with self.database.read() as connection:
                keys = list(connection.execute(statement).scalars())
            yield from keys
            if len(keys) < _BATCH:
                return
            last = keys[-1]

    def _describe(self) -> str:
        with self.database.read() as connection:
            version = connection.execute(
                sa.text("SELECT sqlite_version()" if self.database.is_sqlite else "SHOW server_version")
            ).scalar()
        return f"{'SQLite' if self.database.is_sqlite else 'PostgreSQL'} {version}"


def _is_standing(entry: Entry, numbers: Mapping[str, int]) -> bool:
    """Whether nothing of an entry has been invalidated; what has been is not worth storing, and may be forgotten.

    Without generations there is no telling, and whoever reads decides.
    """
    if SEEDED not in numbers:
        return True
    return all(numbers.get(scope, 0) == number for scope, number in zip(entry.scopes, entry.generations, strict=True))


def _row_of(entry: Entry, envelope: bytes) -> dict[str, Any]:
    inline = "sql" in entry.placement
    if inline and entry.blobs and entry.stored_bytes > DESCRIPTOR_BYTES:
        raise EntryRefusedError("sql", f"{entry.key} holds file contents, which live in the object store only")
    return {
        "namespace": entry.namespace,
        "key": entry.key,
        "kind": entry.kind,
        "task": str(entry.manifest.get("task", "")).replace("\x00", "\ufffd")[:255],
        "fence": entry.fence,
        "created_at": entry.created_at,
        "expires_at": entry.expires_at,
        "compute_seconds": entry.compute_seconds,
        "stored_bytes": entry.stored_bytes,
        "blob_bytes": sum(entry.blobs.values()),
        "placement": ",".join(sorted(entry.placement)),
        "generations": list(entry.generations),
        "manifest": dict(entry.manifest),
        "envelope": envelope if inline else None,
    }
