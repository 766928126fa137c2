"""The result store that an attempt leaves in its task run's context.

It answers for the attempt's own key and leaves everything else (tasks inside the task, exceptions that Prefect
persists) to the store that was there before.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import TYPE_CHECKING, Any, Final

from prefect._internal.result_records import ResultRecord, ResultRecordMetadata  # where Prefect defines them
from prefect.results import ResultStore
from prefect.transactions import get_transaction
from pydantic import Field

from cache_blocks.prefect.attempt import Attempt
from cache_blocks.prefect.saved_block import saved_block_id
from cache_blocks.prefect.serializer import TieredCacheSerializer, key_of, path_of

if TYPE_CHECKING:
    from prefect.types import DateTime


_METADATA: Final = ResultRecordMetadata(serializer=TieredCacheSerializer())
_RECORD: Final[ResultRecord[Any]] = ResultRecord(result=None, metadata=_METADATA)
_RECORD.mark_persisted()


class TieredResultStore(ResultStore):
    """Prefect's result store, with one key that the tiered cache answers for."""

    attempt: Attempt | None = Field(default=None, exclude=True, description="What this store answers for.")

    @classmethod
    def over(cls, store: ResultStore, attempt: Attempt) -> TieredResultStore:
        """Return a store that does as ``store`` does for every key but the attempt's."""
        # Copied rather than made, as the records below are: there is nothing to validate.
        return _STORE.model_copy(update={**store.__dict__, "attempt": attempt})

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
        attempt = self.attempt
        return attempt if attempt is not None and key is not None and attempt.key == key_of(key) else None

    def _record_of(self, attempt: Attempt) -> ResultRecord[Any]:
        found = attempt.hand_over()
        assert found.lookup.entry is not None  # noqa: S101 - Prefect reads only after exists() has said yes
        expiration = dt.datetime.fromtimestamp(found.lookup.entry.expires_at, dt.UTC)
        return _RECORD.model_copy(update={"result": found.value, "metadata": self._metadata(attempt, expiration)})

    @staticmethod
    def _metadata(attempt: Attempt, expiration: Any) -> ResultRecordMetadata:
        assert attempt.call is not None  # noqa: S101 - an attempt with a key has a call
        # Copied rather than made: nothing here needs the validation, which takes longer than unpacking an entry.
        return _METADATA.model_copy(
            update={
                "storage_key": path_of(attempt.call.key, attempt.call.annotation),
                "expiration": expiration,
                "storage_block_id": saved_block_id(attempt.cache.settings),
            }
        )


_STORE: Final = TieredResultStore.model_construct()
