"""The durable tier: SQLite or PostgreSQL.

It holds the truth about entries (which fence has won) and, through `generations`, about invalidation. One
statement brings entries and generations together, and one stores a batch; what entries add up to, and that side rows
go with their entry, is the triggers' affair (see `cache_blocks.tallies`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import sqlalchemy as sa

from cache_blocks.entry import Entry
from cache_blocks.errors import EntryRefusedError
from cache_blocks.kinds import DESCRIPTOR_BYTES
from cache_blocks.manifests import main_input
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
        # Building a statement takes longer than executing it, so those of every lookup and write are built once.
        self._numbers_of = sa.select(_generation.c.scope, _generation.c.number).where(
            _generation.c.namespace == namespace, database.among(_generation.c.scope, "scopes")
        )
        self._upsert = _upsert_of(database)
        self._select = functools.cache(self._build_select)

    def close(self) -> None:
        """Give back pooled connections."""
        self.database.close()

    def referring(self, digests: Sequence[str]) -> set[str]:
        """Return which of these blobs an entry refers to."""
        mine = (_entry.c.namespace == _blob.c.namespace) & (_entry.c.key == _blob.c.key)
        statement = sa.select(_blob.c.digest).distinct().join(_entry, mine)
        with self.database.read() as connection:
            return set(
                connection.execute(
                    statement.where(_blob.c.namespace == self.namespace, self.database.among(_blob.c.digest, digests))
                ).scalars()
            )

    def _fetch(
        self, keys: Sequence[str], scopes: Sequence[str]
    ) -> tuple[dict[str, bytes], dict[str, int], dict[str, int]]:
        envelopes: dict[str, bytes] = {}
        elsewhere: dict[str, int] = {}
        generations = dict.fromkeys(scopes, 0)
        seeded = not scopes
        with self.database.read() as connection:
            statement = self._select(of_keys=bool(keys), of_scopes=bool(scopes))
            parameters = {"keys": keys, "scopes": [*scopes, SEEDED]}
            rows = cast("Iterable[tuple[int, str, int, Any]]", connection.execute(statement, parameters))
            for is_scope, name, number, envelope in rows:
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

    def _build_select(self, *, of_keys: bool, of_scopes: bool) -> Any:
        """Return one statement for both questions; its first column tells the answers apart."""
        entries: Any = sa.select(
            sa.literal_column("0", sa.Integer).label("is_scope"), _entry.c.key, _entry.c.fence, _entry.c.envelope
        ).where(_entry.c.namespace == self.namespace, self.database.among(_entry.c.key, "keys"))
        if not of_scopes:
            return entries
        nothing = sa.cast(sa.null(), sa.LargeBinary)
        numbers: Any = sa.select(
            sa.literal_column("1", sa.Integer), _generation.c.scope, _generation.c.number, nothing
        ).where(_generation.c.namespace == self.namespace, self.database.among(_generation.c.scope, "scopes"))
        return sa.union_all(entries, numbers) if of_keys else numbers

    def _restored(self, scopes: Sequence[str]) -> dict[str, int]:
        restored: Mapping[str, int] = self._reseed() if self._reseed is not None else {}
        return {scope: restored.get(scope, 0) for scope in scopes}

    def _store(self, items: Sequence[tuple[Entry, bytes]]) -> set[str]:
        """Store a batch in one transaction with one statement for each table, whatever its size."""
        latest: dict[str, tuple[Entry, bytes]] = {}
        for entry, envelope in sorted(items, key=_fence_of):
            latest[entry.key] = (entry, envelope)
        rows = {key: _row_of(*latest[key]) for key in sorted(latest)}  # in order, so that writers cannot deadlock
        with self.database.begin() as connection:
            numbers = self._numbers(connection, {scope for entry, _ in items for scope in entry.scopes})
            standing = [row for key, row in rows.items() if _is_standing(latest[key][0], numbers)]
            if not standing:
                return set()
            stored = set(connection.execute(self._upsert, standing).scalars())
            self._add_sides(connection, [latest[key][0] for key in sorted(stored)])
        return stored

    def _numbers(self, connection: Connection, scopes: Iterable[str]) -> dict[str, int]:
        return {row[0]: row[1] for row in connection.execute(self._numbers_of, {"scopes": [*scopes, SEEDED]})}

    def _add_sides(self, connection: Connection, entries: Sequence[Entry]) -> None:
        """Add the tags and blobs of entries that were just stored; those of before went with them, by a trigger."""
        tags = [
            {"tag": tag, "created_at": entry.created_at, "key": entry.key} for entry in entries for tag in entry.tags
        ]
        blobs = [{"digest": digest, "key": entry.key} for entry in entries for digest in sorted(entry.blobs)]
        for side, rows in ((_tag, tags), (_blob, blobs)):
            if rows:
                connection.execute(sa.insert(side), [row | {"namespace": self.namespace} for row in rows])

    def _remove(self, keys: Sequence[str]) -> int:
        removed = 0
        for start in range(0, len(keys), _BATCH):  # in transactions of their own, so that no writer waits for long
            among = self.database.among(_entry.c.key, keys[start : start + _BATCH])
            mine = (_entry.c.namespace == self.namespace) & among
            with self.database.begin() as connection:
                lock_in_order(connection, mine)
                removed += connection.execute(sa.delete(_entry).where(mine)).rowcount
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


def _fence_of(item: tuple[Entry, bytes]) -> int:
    return item[0].fence


def _upsert_of(database: Database) -> Any:
    """Return the statement that stores rows, each unless a higher fence is there, and returns the keys stored."""
    statement = database.upsert(_entry)
    others = [column.name for column in _entry.columns if not column.primary_key]
    statement = statement.on_conflict_do_update(
        index_elements=["namespace", "key"],
        set_={name: statement.excluded[name] for name in others},
        where=_entry.c.fence <= statement.excluded.fence,
    )
    return statement.returning(_entry.c.key)


def lock_in_order(connection: Connection, condition: sa.ColumnElement[bool]) -> None:
    """Lock the entries that will be deleted in the order in which writers take theirs, so that neither deadlocks.

    PostgreSQL would take them in the order of its pages. SQLite has one writer at a time.
    """
    if connection.dialect.name == "postgresql":
        in_order = sa.select(_entry.c.key).where(condition).order_by(sa.collate(_entry.c.key, "C"))
        connection.execute(in_order.with_for_update())


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
        "task": _text(entry.manifest.get("task", ""), 255),
        "subject": _text(entry.manifest.get("subject", ""), 200),
        "main_input": main_input(entry.manifest)[:64],
        "usage": dict(entry.usage),
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


def _text(value: object, width: int) -> str:
    """Return text that both databases take, since names of tasks and files are anybody's."""
    return str(value).encode("utf-8", "replace").decode().replace("\x00", "\ufffd")[:width]
