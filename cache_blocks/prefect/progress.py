"""A progress artifact while a batch runs: how many of its items are done, seen in Prefect's UI.

Items only count; a thread of the batch's own tells the API, at most once in two seconds, and not at all of a batch that
is done by then. A batch never fails for it, nor waits.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import FlowRunContext

from cache_blocks import forking
from cache_blocks.wording import counted

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.futures import PrefectFuture

logger = logging.getLogger("cache_blocks")

KEY: Final = "cache-progress"
LEAST_ITEMS: Final = 50
"""Smaller batches have no artifact."""
TICK_SECONDS: Final = 2.0
_NO_LETTER: Final = re.compile(r"[^a-z0-9]+")
_ENDED_SECONDS: Final = 5.0

_lock = forking.lock()
_of_run: dict[UUID, list[Progress]] = {}


def show_progress(task: str, futures: Sequence[PrefectFuture[Any]]) -> None:
    """Show how a batch proceeds, if it is large enough and belongs to a flow run.

    Args:
        task: Name of its task.
        futures: Its items.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context is not None else None
    if run is None or len(futures) < LEAST_ITEMS:
        return
    progress = Progress(task, len(futures), run.id)
    with _lock:
        _of_run.setdefault(run.id, []).append(progress)
    for future in futures:
        future.add_done_callback(progress.count)
    progress.start()


def end_progress(flow_run_id: UUID) -> None:
    """Say how far the batches of a flow run have come, for the last time: the run has ended."""
    with _lock:
        ended = _of_run.pop(flow_run_id, [])
    for progress in ended:
        progress.end()


class Progress:
    """The progress of one batch.

    Args:
        task: Name of the task.
        total: Number of items.
        flow_run_id: The run that shows it.
        tick_seconds: How often it is told at most.
    """

    def __init__(self, task: str, total: int, flow_run_id: UUID, tick_seconds: float = TICK_SECONDS) -> None:
        self._task = task
        self._total = total
        self._flow_run_id = flow_run_id
        self._tick_seconds = tick_seconds
        self._done = 0
        self._lock = forking.lock()
        self._ended = threading.Event()
        self._artifact: UUID | None = None
        self._thread = threading.Thread(target=self._tell, name="cache-progress", daemon=True)

    def start(self) -> None:
        """Begin to tell."""
        self._thread.start()

    def count(self, future: object) -> None:
        """Count an item that is done."""
        del future
        with self._lock:
            self._done += 1
            last = self._done == self._total
        if last:
            self._ended.set()

    def end(self) -> None:
        """Tell for the last time what there is to tell."""
        self._ended.set()
        self._thread.join(_ENDED_SECONDS)

    def _tell(self) -> None:
        told = -1
        try:
            while not self._ended.wait(self._tick_seconds):
                if self._done != told:
                    told = self._done
                    with get_client(sync_client=True) as client:
                        self._publish(client, told)
            if self._artifact is not None and self._done != told:
                with get_client(sync_client=True) as client:
                    self._publish(client, self._done)
        except Exception as error:  # noqa: BLE001 - whatever it is, the batch goes on without
            logger.warning("progress of %s is not shown any more: %s", self._task, error)

    def _publish(self, client: SyncPrefectClient, done: int) -> None:
        percent = round(100 * done / self._total, 1)
        said = f"{self._task}: {done:,} of {counted(self._total, 'item')} done"
        if self._artifact is None:
            slug = _NO_LETTER.sub("-", self._task.lower()).strip("-")
            artifact = ArtifactCreate(
                key=f"{KEY}-{slug}".rstrip("-"),
                type="progress",
                data=percent,
                description=said,
                flow_run_id=self._flow_run_id,
            )
            self._artifact = client.create_artifact(artifact).id
        else:
            client.update_artifact(self._artifact, ArtifactUpdate(data=percent, description=said))
