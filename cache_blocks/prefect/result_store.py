"""The result store that an attempt leaves in its task run's context.

It answers for the attempt's own key and leaves everything else (tasks inside the task, exceptions that Prefect
persists) to the store that was there before.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import TYPE_CHECKING, Any

from prefect._internal.result_records import ResultRecord, ResultRecordMetadata  # where Prefect defines them
from prefect.results import ResultStore
from prefect.transactions import get_transaction
from pydantic import PrivateAttr

from cache_blocks.prefect.attempt import Attempt
from cache_blocks.prefect.saved_block import saved_block_id
from cache_blocks.prefect.serializer import TieredCacheSerializer, key_of, path_of

if TYPE_CHECKING:
    from prefect.types import DateTime


class TieredResultStore(ResultStore):
    """Prefect's result store, with one key that the tiered cache answers for."""

    _attempt: Attempt | None = PrivateAttr(default=None)

    @classmethod
    def over(cls, store: ResultStore, attempt: Attempt) -> TieredResultStore:
        """Return a store that does as ``store`` does for every key but the attempt's."""
        fields = {name: getattr(store, name) for name in ResultStore.model_fields}
        new = cls.model_construct(**fields)
        new._attempt = attempt  # noqa: SLF001 - the same class
        return new

    @property
    def attempt(self) -> Attempt | None:
        """The attempt that this store answers for."""
        return self._attempt

    def exists(self, key: str) -> bool:
        """Look up; see `ResultStore.exists`."""
        attempt = self._own(key)
        return attempt.look() if attempt else super().exists(key)

    async def aexists(self, key: str) -> bool:
        """Look up in a thread; see `ResultStore.aexists`."""
        attempt = self._own(key)
        return await asyncio.to_thread(attempt.look) if attempt else await super().aexists(key)

    def read(self, key: str, holder: str | None = None) -> ResultRecord[Any]:
        """Hand over what `exists` has found and decoded."""
        attempt = self._own(key)
        return self._record_of(attempt) if attempt else super().read(key, holder)

    async def aread(self, key: str, holder: str | None = None) -> ResultRecord[Any]:
        """Hand over what `aexists` has found and decoded."""
        attempt = self._own(key)
        return self._record_of(attempt) if attempt else await super().aread(key, holder)

    def create_result_record(
        self, obj: Any, key: str | None = None, expiration: DateTime | None = None
    ) -> ResultRecord[Any]:
        """Describe a result: ours by its key in the cache."""
        attempt = self._own(key)
        if attempt is None:
            return super().create_result_record(obj, key, expiration)
        transaction = get_transaction()
        attempt.computed(obj, stored_later=transaction is not None and transaction.get_parent() is not None)
        return ResultRecord(result=obj, metadata=self._metadata(attempt, expiration))

    def persist_result_record(self, result_record: ResultRecord[Any], holder: str | None = None) -> None:
        """Store ours in the tiers unless our wrapper has done so."""
        attempt = self._own(result_record.metadata.storage_key)
        if attempt is None:
            return super().persist_result_record(result_record, holder)
        attempt.store()
        return result_record.mark_persisted()

    async def apersist_result_record(self, result_record: ResultRecord[Any], holder: str | None = None) -> None:
        """Do as `persist_result_record` does, in a thread."""
        attempt = self._own(result_record.metadata.storage_key)
        if attempt is None:
            return await super().apersist_result_record(result_record, holder)
        await asyncio.to_thread(attempt.store)
        return result_record.mark_persisted()

    def _own(self, key: str | None) -> Attempt | None:
        attempt = self._attempt
        return attempt if attempt is not None and key is not None and attempt.key == key_of(key) else None

    def _record_of(self, attempt: Attempt) -> ResultRecord[Any]:
        assert attempt.found is not None  # noqa: S101 - Prefect reads only after exists() has said yes
        entry = attempt.found.lookup.entry
        assert entry is not None  # noqa: S101 - likewise
        expiration = dt.datetime.fromtimestamp(entry.expires_at, dt.UTC)
        record: ResultRecord[Any] = ResultRecord(
            result=attempt.found.value, metadata=self._metadata(attempt, expiration)
        )
        record.mark_persisted()
        return record

    @staticmethod
    def _metadata(attempt: Attempt, expiration: Any) -> ResultRecordMetadata:
        assert attempt.call is not None  # noqa: S101 - an attempt with a key has a call
        return ResultRecordMetadata(
            storage_key=path_of(attempt.call.key, attempt.call.annotation),
            expiration=expiration,
            serializer=TieredCacheSerializer(),
            storage_block_id=saved_block_id(attempt.cache.settings),
        )
