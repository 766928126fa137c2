"""Tables of the SQL tier. A change here needs a migration in `cache_blocks.migrations`."""

from __future__ import annotations

from typing import Any, ClassVar, Final, cast

from sqlalchemy import JSON, BigInteger, Column, ColumnElement, Float, Index, LargeBinary, Table, literal_column, text
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

LARGE_BYTES: Final = 65536
"""From which size on entries can be listed by their size: payload and files."""
_IS_LARGE: Final = f"stored_bytes + blob_bytes >= {LARGE_BYTES}"


class CacheTable(SQLModel, registry=registry()):
    """Base of the cache's tables: metadata of their own, apart from a user's SQLModel tables."""


class EntryRow(CacheTable, table=True):
    """One entry; ``envelope`` is NULL when the payload is in the object store."""

    __tablename__: ClassVar[Any] = "cache_blocks_entry"  # SQLModel declares a function here
    __table_args__ = (
        Index("ix_cache_blocks_entry_expiry", "namespace", "kind", "expires_at", "key"),
        # Listings walk one of these, and tell by its last column which entries are large without reading their rows.
        Index("ix_cache_blocks_entry_time", "namespace", "created_at", "key", text("(stored_bytes + blob_bytes)")),
        # Sizes are in no order that anything else is in, so that most writes would touch a page of their own for it.
        Index(
            "ix_cache_blocks_entry_large",
            "namespace",
            text("(stored_bytes + blob_bytes)"),
            "key",
            sqlite_where=text(_IS_LARGE),
            postgresql_where=text(_IS_LARGE),
        ),
        Index(
            "ix_cache_blocks_entry_kind", "namespace", "kind", "created_at", "key", text("(stored_bytes + blob_bytes)")
        ),
        Index(
            "ix_cache_blocks_entry_task", "namespace", "task", "created_at", "key", text("(stored_bytes + blob_bytes)")
        ),
        # By these two the same work is known again when its key has changed.
        Index("ix_cache_blocks_entry_subject", "namespace", "task", "subject", "created_at"),
        Index("ix_cache_blocks_entry_input", "namespace", "task", "main_input", "created_at"),
    )

    namespace: str = Field(primary_key=True, max_length=64)
    key: str = Field(primary_key=True, max_length=220)
    kind: str = Field(max_length=48)
    task: str = Field(default="", max_length=255)
    fence: int = Field(sa_column=Column(BigInteger, nullable=False))
    created_at: float = Field(sa_column=Column(Float(53), nullable=False))
    expires_at: float = Field(sa_column=Column(Float(53), nullable=False))
    compute_seconds: float = Field(sa_column=Column(Float(53), nullable=False))
    stored_bytes: int = Field(sa_column=Column(BigInteger, nullable=False))
    blob_bytes: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    placement: str = Field(max_length=64)
    generations: list[int] = Field(sa_column=Column(JSON, nullable=False))
    manifest: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    subject: str = Field(default="", max_length=200, sa_column_kwargs={"server_default": ""})
    main_input: str = Field(default="", max_length=64, sa_column_kwargs={"server_default": ""})
    usage: dict[str, float] = Field(sa_column=Column(JSON, nullable=False, server_default="{}"))
    envelope: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))


class TagRow(CacheTable, table=True):
    """A tag of an entry; it goes with its entry, by a trigger. ``created_at`` is the entry's, for listings by tag."""

    __tablename__: ClassVar[Any] = "cache_blocks_tag"  # SQLModel declares a function here
    __table_args__ = (
        Index("ix_cache_blocks_tag_time", "namespace", "tag", "created_at", "key"),
        {"sqlite_with_rowid": False},  # all that there is of a tag is in its key: one tree to write instead of two
    )

    namespace: str = Field(primary_key=True, max_length=64)
    key: str = Field(primary_key=True, max_length=220)
    tag: str = Field(primary_key=True, max_length=200)
    created_at: float = Field(sa_column=Column(Float(53), nullable=False, server_default="0"))


class BlobRow(CacheTable, table=True):
    """A blob that an entry refers to: what keeps maintenance from collecting it. Like a tag it goes with its entry."""

    __tablename__: ClassVar[Any] = "cache_blocks_blob"  # SQLModel declares a function here
    __table_args__ = (Index("ix_cache_blocks_blob_key", "namespace", "key", "digest"),)

    namespace: str = Field(primary_key=True, max_length=64)
    digest: str = Field(primary_key=True, max_length=64)
    key: str = Field(primary_key=True, max_length=220)


class GenerationRow(CacheTable, table=True):
    """The truth about invalidation: a number per scope. The row ``seeded`` says that the table is not new.

    ``swept`` is the number up to which a collection has looked for the scope's invalidated entries, ``settled`` the one
    up to which two have: what a writer in the middle of it still stored has been found by the second.
    """

    __tablename__: ClassVar[Any] = "cache_blocks_generation"  # SQLModel declares a function here

    namespace: str = Field(primary_key=True, max_length=64)
    scope: str = Field(primary_key=True, max_length=240)
    number: int = Field(sa_column=Column(BigInteger, nullable=False))
    raised_at: float = Field(sa_column=Column(Float(53), nullable=False, server_default="0"))
    swept: int = Field(sa_column=Column(BigInteger, nullable=False, server_default="0"))
    settled: int = Field(sa_column=Column(BigInteger, nullable=False, server_default="0"))


class UntoldRow(CacheTable, table=True):
    """A generation that a tier has not been told yet."""

    __tablename__: ClassVar[Any] = "cache_blocks_untold"  # SQLModel declares a function here

    namespace: str = Field(primary_key=True, max_length=64)
    tier: str = Field(primary_key=True, max_length=16)
    scope: str = Field(primary_key=True, max_length=240)
    number: int = Field(sa_column=Column(BigInteger, nullable=False))


class FenceRow(CacheTable, table=True):
    """The sequence of fencing numbers of a namespace."""

    __tablename__: ClassVar[Any] = "cache_blocks_fence"  # SQLModel declares a function here

    namespace: str = Field(primary_key=True, max_length=64)
    number: int = Field(sa_column=Column(BigInteger, nullable=False))


class LeaseRow(CacheTable, table=True):
    """The right to compute a key, where no Redis is configured."""

    __tablename__: ClassVar[Any] = "cache_blocks_lease"  # SQLModel declares a function here

    namespace: str = Field(primary_key=True, max_length=64)
    key: str = Field(primary_key=True, max_length=220)
    token: str = Field(max_length=64)
    failed: bool = Field(default=False)
    expires_at: float = Field(sa_column=Column(Float(53), nullable=False))


class EventRow(CacheTable, table=True):
    """One event: a lookup, a write, a tier that went or came back."""

    __tablename__: ClassVar[Any] = "cache_blocks_event"  # SQLModel declares a function here
    __table_args__ = (
        Index("ix_cache_blocks_event_run", "namespace", "flow_run_id"),
        Index("ix_cache_blocks_event_time", "namespace", "at"),
        Index("ix_cache_blocks_event_key", "namespace", "key"),
    )

    id: str = Field(primary_key=True, max_length=32)
    namespace: str = Field(max_length=64)
    at: float = Field(sa_column=Column(Float(53), nullable=False))
    action: str = Field(max_length=16)
    kind: str = Field(default="", max_length=48)
    key: str = Field(default="", max_length=220)
    outcome: str = Field(default="", max_length=16)
    tier: str = Field(default="", max_length=16)
    reason: str = Field(default="", max_length=400)
    subject: str = Field(default="", max_length=200)
    task: str = Field(default="", max_length=255)
    flow: str = Field(default="", max_length=255, sa_column_kwargs={"server_default": ""})
    flow_run_id: str = Field(default="", max_length=36)
    task_run_id: str = Field(default="", max_length=36)
    stored_bytes: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    seconds: float = Field(default=0.0, sa_column=Column(Float(53), nullable=False))
    seconds_saved: float = Field(default=0.0, sa_column=Column(Float(53), nullable=False))
    money: float = Field(default=0.0, sa_column=Column(Float(53), nullable=False, server_default="0"))
    money_saved: float = Field(default=0.0, sa_column=Column(Float(53), nullable=False, server_default="0"))
    cause: str = Field(default="", max_length=120, sa_column_kwargs={"server_default": ""})


class EntryTallyRow(CacheTable, table=True):
    """What the entries of a kind add up to, kept by triggers; see `cache_blocks.tallies`.

    Each PostgreSQL connection adds to a row of its own, named by ``shard``, so that no writer waits for another.
    """

    __tablename__: ClassVar[Any] = "cache_blocks_entry_tally"  # SQLModel declares a function here

    namespace: str = Field(primary_key=True, max_length=64)
    kind: str = Field(primary_key=True, max_length=48)
    shard: int = Field(primary_key=True)
    entries: int = Field(sa_column=Column(BigInteger, nullable=False))
    stored_bytes: int = Field(sa_column=Column(BigInteger, nullable=False))
    blob_bytes: int = Field(sa_column=Column(BigInteger, nullable=False))
    compute_seconds: float = Field(sa_column=Column(Float(53), nullable=False))


class EventTallyRow(CacheTable, table=True):
    """What the events of a day add up to, kept by a trigger; it outlives them. ``day`` is in UTC, since the epoch."""

    __tablename__: ClassVar[Any] = "cache_blocks_event_tally"  # SQLModel declares a function here

    namespace: str = Field(primary_key=True, max_length=64)
    day: int = Field(primary_key=True)
    action: str = Field(primary_key=True, max_length=16)
    kind: str = Field(primary_key=True, max_length=48)
    outcome: str = Field(primary_key=True, max_length=16)
    tier: str = Field(primary_key=True, max_length=16)
    task: str = Field(primary_key=True, max_length=255)
    flow: str = Field(primary_key=True, max_length=255)
    cause: str = Field(primary_key=True, max_length=120)
    shard: int = Field(primary_key=True)
    events: int = Field(sa_column=Column(BigInteger, nullable=False))
    stored_bytes: int = Field(sa_column=Column(BigInteger, nullable=False))
    seconds: float = Field(sa_column=Column(Float(53), nullable=False))
    seconds_saved: float = Field(sa_column=Column(Float(53), nullable=False))
    money: float = Field(sa_column=Column(Float(53), nullable=False))
    money_saved: float = Field(sa_column=Column(Float(53), nullable=False))


class RunRow(CacheTable, table=True):
    """What the events of a flow run add up to, as its report has it; it outlives them."""

    __tablename__: ClassVar[Any] = "cache_blocks_run"  # SQLModel declares a function here
    __table_args__ = (Index("ix_cache_blocks_run_flow", "namespace", "flow", "at"),)

    namespace: str = Field(primary_key=True, max_length=64)
    flow_run_id: str = Field(primary_key=True, max_length=36)
    flow: str = Field(max_length=255)
    at: float = Field(sa_column=Column(Float(53), nullable=False))
    lookups: int = Field(sa_column=Column(BigInteger, nullable=False))
    hits: int = Field(sa_column=Column(BigInteger, nullable=False))
    seconds_saved: float = Field(sa_column=Column(Float(53), nullable=False))
    money_saved: float = Field(sa_column=Column(Float(53), nullable=False))
    compute_seconds: float = Field(sa_column=Column(Float(53), nullable=False))
    money_spent: float = Field(sa_column=Column(Float(53), nullable=False))


class PlanRow(CacheTable, table=True):
    """What a run was expected to do, so that the report of the run can tell how well that was foreseen."""

    __tablename__: ClassVar[Any] = "cache_blocks_plan"  # SQLModel declares a function here
    __table_args__ = (Index("ix_cache_blocks_plan_flow", "namespace", "flow", "made_at"),)

    id: str = Field(primary_key=True, max_length=32)
    namespace: str = Field(max_length=64)
    flow: str = Field(max_length=255)
    made_at: float = Field(sa_column=Column(Float(53), nullable=False))
    parameters: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    stages: list[dict[str, Any]] = Field(sa_column=Column(JSON, nullable=False))


def is_large() -> ColumnElement[bool]:
    """Return whether an entry is in the index by size; the limit is no parameter, or no database would know it."""
    entry = table(EntryRow).c
    return entry.stored_bytes + entry.blob_bytes >= literal_column(str(LARGE_BYTES), BigInteger)


def table(row: type[CacheTable]) -> Table:
    """Return the SQLAlchemy table of a row class."""
    return row.metadata.tables[cast("str", row.__tablename__)]
