"""Tables of the SQL tier. A change here needs a migration in `cache_blocks.migrations`."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from sqlalchemy import JSON, BigInteger, Column, Float, Index, LargeBinary, Table
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel


class CacheTable(SQLModel, registry=registry()):
    """Base of the cache's tables: metadata of their own, apart from a user's SQLModel tables."""


class EntryRow(CacheTable, table=True):
    """One entry; ``envelope`` is NULL when the payload is in the object store."""

    __tablename__: ClassVar[Any] = "cache_blocks_entry"  # SQLModel declares a function here
    __table_args__ = (
        Index("ix_cache_blocks_entry_expiry", "namespace", "expires_at"),
        Index("ix_cache_blocks_entry_kind", "namespace", "kind", "created_at"),
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
    envelope: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))


class TagRow(CacheTable, table=True):
    """A tag of an entry."""

    __tablename__: ClassVar[Any] = "cache_blocks_tag"  # SQLModel declares a function here
    __table_args__ = (Index("ix_cache_blocks_tag_key", "namespace", "key"),)

    namespace: str = Field(primary_key=True, max_length=64)
    tag: str = Field(primary_key=True, max_length=200)
    key: str = Field(primary_key=True, max_length=220)


class BlobRow(CacheTable, table=True):
    """A blob that an entry refers to: what keeps maintenance from collecting it."""

    __tablename__: ClassVar[Any] = "cache_blocks_blob"  # SQLModel declares a function here
    __table_args__ = (Index("ix_cache_blocks_blob_key", "namespace", "key"),)

    namespace: str = Field(primary_key=True, max_length=64)
    digest: str = Field(primary_key=True, max_length=64)
    key: str = Field(primary_key=True, max_length=220)


class GenerationRow(CacheTable, table=True):
    """The truth about invalidation: a number per scope. The row ``seeded`` says that the table is not new."""

    __tablename__: ClassVar[Any] = "cache_blocks_generation"  # SQLModel declares a function here

    namespace: str = Field(primary_key=True, max_length=64)
    scope: str = Field(primary_key=True, max_length=240)
    number: int = Field(sa_column=Column(BigInteger, nullable=False))


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
    flow_run_id: str = Field(default="", max_length=36)
    task_run_id: str = Field(default="", max_length=36)
    stored_bytes: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    seconds: float = Field(default=0.0, sa_column=Column(Float(53), nullable=False))
    seconds_saved: float = Field(default=0.0, sa_column=Column(Float(53), nullable=False))


def table(row: type[CacheTable]) -> Table:
    """Return the SQLAlchemy table of a row class."""
    return row.metadata.tables[cast("str", row.__tablename__)]
