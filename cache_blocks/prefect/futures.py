"""Futures of a batch: hits, task runs, and what is derived from either have one interface."""

from __future__ import annotations

import logging
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast
from uuid import UUID, uuid4

from prefect._internal.result_records import ResultRecord, ResultRecordMetadata
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, PrefectFutureList, PrefectTaskRunFuture
from prefect.states import Completed, Failed, Pending
from prefect.utilities.engine import resolve_to_final_result

from cache_blocks.errors import CacheError
from cache_blocks.prefect.serializer import TieredCacheSerializer

logger = logging.getLogger("cache_blocks")

R = TypeVar("R")
Callback = Callable[[PrefectFuture[Any]], None]


@dataclass(frozen=True, slots=True)
class StoredHit:
    """A hit whose payload is in the batch's spool.

    Attributes:
        key: Key of the result.
        size: Bytes of the payload before compression.
        offset: Where the payload begins in the spool.
        length: Its length there.
    """

    key: str
    size: int
    offset: int
    length: int


class Batch(Protocol):
    """What a future asks of its batch."""

    settled: threading.Condition

    def load(self, hit: StoredHit) -> Any:
        """Return a hit's value, new for every caller; raises `CacheError`."""
        ...

    def compute(self, index: int) -> PrefectFuture[Any] | State[Any]:
        """Make a task run of an item, or say what stands in its place."""
        ...


class BatchFuture(PrefectTaskRunFuture[R]):
    """A future of `cached_map`, whether it is a hit or a task run."""

    def then(self, function: Callable[[Any], Any]) -> DerivedFuture:
        """Return a future of ``function(result)``, to be an input of the next stage.

        Args:
            function: Cheap, such as taking one field; it runs wherever the result is asked for, each time.
        """
        return DerivedFuture(self, function)

    def exception(self, timeout: float | None = None) -> Exception | None:
        """Return what the run, or something before it, has raised; None when there is a result.

        Args:
            timeout: Seconds to wait; None waits until it is done.

        Raises:
            TimeoutError: It is not done in time.
        """
        try:
            self.wait(timeout)
            if is_done := self._final_state is not None:
                self.result()
        except Exception as error:  # noqa: BLE001 - this is what was asked for
            return error
        if not is_done:
            raise TimeoutError("the task run is not done")
        return None

    @property
    @abstractmethod
    def is_hit(self) -> bool:
        """Whether the result comes from the cache, without a task run."""

    @property
    @abstractmethod
    def state(self) -> State[Any]:
        """The state of the task run; that of a hit is named Cached."""

    @property
    @abstractmethod
    def task_run_id(self) -> UUID:
        """Id of the task run; of a hit, which has none, an id of its own."""


class MappedFuture(BatchFuture[Any]):
    """One item of a batch: first open, then a hit, a task run, or a state without a run.

    Args:
        batch: Where its payload is, and what computes it.
        index: Number of the item in the batch.
    """

    def __init__(self, batch: Batch, index: int) -> None:
        self._batch = batch
        self._index = index
        self._answer: StoredHit | PrefectFuture[Any] | State[Any] | None = None
        self._callbacks: list[Callback] | None = None  # made when needed: there may be a hundred thousand of these
        self._id: UUID | None = None

    def settle(self, answer: StoredHit | PrefectFuture[Any] | State[Any]) -> None:
        """Say what the item is; whoever waits goes on."""
        with self._batch.settled:
            self._answer = answer
            callbacks, self._callbacks = self._callbacks or [], None
            self._batch.settled.notify_all()
        for callback in callbacks:
            try:
                self.add_done_callback(callback)
            except Exception:  # as in `concurrent.futures`: neither the others nor who settles this are to blame
                logger.exception("a callback of an item of a batch failed")

    @property
    def is_open(self) -> bool:
        """Whether nobody has said yet what the item is."""
        return self._answer is None

    @property
    def is_hit(self) -> bool:
        """Whether the item is a hit."""
        return isinstance(self._answer, StoredHit)

    @property
    def run(self) -> PrefectFuture[Any] | None:
        """The task run's own future, if there is one."""
        return self._answer if isinstance(self._answer, PrefectFuture) else None

    @property
    def task_run_id(self) -> UUID:
        """Id of the task run; of a hit, which has none, an id of its own."""
        if isinstance(self._answer, PrefectTaskRunFuture):
            return self._answer.task_run_id
        self._id = self._id or uuid4()
        return self._id

    @property
    def state(self) -> State[Any]:
        """The state of the task run; that of a hit is named Cached."""
        answer = self._answer
        if isinstance(answer, StoredHit):
            # In a record: Prefect takes a state without data for one whose result is lost, and None is a result.
            metadata = ResultRecordMetadata(storage_key=answer.key, serializer=TieredCacheSerializer())
            return Completed(name="Cached", data=ResultRecord(result=self.result(), metadata=metadata))
        if isinstance(answer, PrefectFuture):
            return answer.state
        return answer or Pending()

    @property
    def _final_state(self) -> State[Any] | None:  # pyright: ignore[reportIncompatibleVariableOverride] - Prefect asks whether there is one
        answer = self._answer
        if isinstance(answer, PrefectFuture):
            return answer._final_state  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - as Prefect does
        return _CACHED if isinstance(answer, StoredHit) else answer

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the item is done, for ``timeout`` seconds at most."""
        began = time.monotonic()
        answer = self._settled(timeout)
        if isinstance(answer, PrefectFuture):
            answer.wait(_remaining(timeout, began))

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:  # noqa: FBT001, FBT002 - Prefect's signature
        """Return the result, decoded anew each time, so that no caller changes another's.

        Raises:
            TimeoutError: It is not there in time.
        """
        began = time.monotonic()
        answer = self._settled(timeout)
        if isinstance(answer, StoredHit):
            try:
                return self._batch.load(answer)
            except CacheError:  # the task run looks again, says why, and computes
                self.settle(answer := self._batch.compute(self._index))
        if isinstance(answer, PrefectFuture):
            return answer.result(_remaining(timeout, began), raise_on_failure)
        if answer is None:
            raise TimeoutError(f"item {self._index} was not done within {timeout} seconds")
        return _result_of(answer, raise_on_failure=raise_on_failure)

    def exception(self, timeout: float | None = None) -> Exception | None:
        """See `BatchFuture.exception`; a hit is not decoded for this."""
        began = time.monotonic()
        hit = isinstance(self._settled(timeout), StoredHit)
        return None if hit else super().exception(_remaining(timeout, began))

    def add_done_callback(self, fn: Callback) -> None:
        """Call back when the item is done; at once if it is."""
        with self._batch.settled:
            answer = self._answer
            if answer is None:
                self._callbacks = self._callbacks or []
                self._callbacks.append(fn)
                return
        if isinstance(answer, PrefectFuture):
            answer.add_done_callback(lambda _: fn(self))
        else:
            fn(self)

    def _settled(self, timeout: float | None) -> StoredHit | PrefectFuture[Any] | State[Any] | None:
        if self._answer is None:
            with self._batch.settled:
                self._batch.settled.wait_for(lambda: self._answer is not None, timeout)
        return self._answer


class BatchFutures(PrefectFutureList[Any]):
    """The futures of a batch, in the order of its items."""

    @property
    def futures(self) -> list[BatchFuture[Any]]:
        """The futures by their own type."""
        return cast("list[BatchFuture[Any]]", list(self))

    def then(self, function: Callable[[Any], Any]) -> BatchFutures:
        """Return what `BatchFuture.then` makes of each."""
        return BatchFutures([future.then(function) for future in self.futures])  # pyright: ignore[reportAbstractUsage] - so does Prefect


class DerivedFuture(BatchFuture[Any]):
    """What a function makes of a future's result.

    Args:
        base: The future.
        function: Takes its result. What it raises is the derived future's failure.
    """

    def __init__(self, base: BatchFuture[Any], function: Callable[[Any], Any]) -> None:
        self._base = base
        self._function = function

    @property
    def task_run_id(self) -> UUID:
        """Id of the task run that the result comes from."""
        return self._base.task_run_id

    @property
    def is_hit(self) -> bool:
        """Whether what it is derived from is a hit."""
        return self._base.is_hit

    @property
    def run(self) -> PrefectFuture[Any] | None:
        """The future of the task run that the result comes from, if there is one."""
        base = self._base
        return base.run if isinstance(base, MappedFuture | DerivedFuture) else None

    @property
    def state(self) -> State[Any]:
        """The state of the run; a failed one if the function fails."""
        state = self._final_state or self._base.state  # the first, where there is one, without decoding a result
        if not state.is_completed():
            return state
        try:
            value = self._function(self._base.result())
        except Exception as error:  # noqa: BLE001 - somebody's function
            return failed(error)
        metadata = ResultRecordMetadata(storage_key="derived", serializer=TieredCacheSerializer())
        return Completed(data=ResultRecord(result=value, metadata=metadata))

    @property
    def _final_state(self) -> State[Any] | None:  # pyright: ignore[reportIncompatibleVariableOverride] - as above
        return self._base._final_state  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the result that it is derived from."""
        self._base.wait(timeout)

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:  # noqa: FBT001, FBT002 - Prefect's signature
        """Return what the function makes of the result; raises what either raises."""
        began = time.monotonic()
        self._base.wait(timeout)
        value = self._base.result(_remaining(timeout, began), raise_on_failure)
        if raise_on_failure:
            return self._function(value)
        return _result_of(self.state, raise_on_failure=False)

    def add_done_callback(self, fn: Callback) -> None:
        """Call back when the result is there."""
        self._base.add_done_callback(lambda _: fn(self))


def final_result(future: PrefectFuture[Any], parameter: str = "") -> Any:
    """Return the result of a future that is done, as Prefect's engine puts it in the place of the future.

    That of a hit is taken as it is: by way of a state, Prefect asks its event loop for each, which takes a millisecond.

    Args:
        future: The future.
        parameter: What it is passed as.

    Raises:
        UpstreamTaskError: It has no result, and what depends on it is not run.
    """
    if isinstance(future, BatchFuture) and future.is_hit:
        with suppress(Exception):  # the state tells what that means
            return future.result()
    return resolve_to_final_result(future, {"parameter_name": parameter} if parameter else {})


def failed(error: BaseException) -> State[Any]:
    """Return the state of what cannot be had because of an error, which asking for its result raises."""
    return Failed(message=f"{type(error).__name__}: {error}", data=error)


def not_ready(error: Exception) -> State[Any]:
    """Return the state that Prefect gives what cannot run because something before it has failed."""
    return Pending(name="NotReady", message=str(error))


def _result_of(state: State[Any], *, raise_on_failure: bool) -> Any:
    return cast("Any", state).result(raise_on_failure=raise_on_failure, _sync=True)  # as Prefect's futures ask


def _remaining(timeout: float | None, began: float) -> float | None:
    return None if timeout is None else max(timeout - (time.monotonic() - began), 0.0)


_CACHED = Completed(name="Cached")
