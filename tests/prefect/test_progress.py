"""While a large batch runs, the UI shows how far it is; a batch that nobody could watch says nothing."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.runtime import flow_run

from cache_blocks import TRANSCRIPT, cached_map, cached_task
from cache_blocks.prefect import progress
from tests.prefect.observed import Gate

if TYPE_CHECKING:
    from prefect.client.schemas.objects import Artifact

ITEMS = progress.LEAST_ITEMS
gates: dict[str, Gate] = {}


@cached_task(kind=TRANSCRIPT)
def slow(number: int, batch: str) -> int:
    if number == 0:
        gates[batch].pass_through()
    return number


def shown(flow_run_id: str) -> list[Artifact]:
    """The progress artifacts of a flow run."""
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(flow_run_id)]))
    with get_client(sync_client=True) as client:
        return [artifact for artifact in client.read_artifacts(artifact_filter=wanted) if artifact.type == "progress"]


class Told:
    """What has been published, in order; `beyond` waits for a percentage."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.percents: list[float] = []
        self._changed = threading.Condition()
        publish = progress.Progress._publish  # pyright: ignore[reportPrivateUsage]

        def noted(of: progress.Progress, client: Any, done: int) -> None:
            publish(of, client, done)
            with self._changed:
                self.percents.append(100 * done / of._total)  # pyright: ignore[reportPrivateUsage]
                self._changed.notify_all()

        monkeypatch.setattr(progress.Progress, "_publish", noted)

    def beyond(self, percent: float) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: any(each >= percent for each in self.percents), 60)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """Updates come every few milliseconds, and are noted."""
    monkeypatch.setattr(progress.Progress.__init__, "__defaults__", (0.01,))
    return Told(monkeypatch)


def test_a_batch_shows_how_far_it_is_and_at_last_that_it_is_done(told: Told) -> None:
    gates["watched"] = gate = Gate()

    @flow
    def work() -> str:
        futures = cached_map(slow, range(ITEMS), batch="watched")
        told.beyond(100 * (ITEMS - 1) / ITEMS)
        (on_its_way,) = shown(str(flow_run.id))
        assert (on_its_way.key, on_its_way.data) == ("cache-progress-slow", 98.0)
        assert on_its_way.description == f"slow: {ITEMS - 1} of {ITEMS} items done"
        gate.release.set()
        futures.wait()
        return str(flow_run.id)

    (artifact,) = shown(work())
    assert artifact.data == 100.0


def test_a_batch_that_is_done_before_anybody_looks_shows_nothing() -> None:
    gates["quick"] = gate = Gate()
    gate.release.set()

    @flow
    def work(number: int) -> str:
        cached_map(slow, range(1, number + 1), batch="quick").wait()
        return str(flow_run.id)

    work(ITEMS)
    assert shown(work(ITEMS)) == []


@pytest.mark.usefixtures("told")
def test_a_small_batch_shows_nothing(told: Told) -> None:
    @flow
    def work() -> str:
        cached_map(slow, range(1, ITEMS), batch="small").wait()
        return str(flow_run.id)

    assert shown(work()) == []
    assert told.percents == []


def test_an_api_that_refuses_progress_does_not_disturb_the_batch(
    told: Told, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refused = threading.Event()

    def refuse(*_: object) -> None:
        refused.set()
        raise ConnectionError("refused")

    gates["refused"] = gate = Gate()
    monkeypatch.setattr(progress.Progress, "_publish", refuse)

    @flow
    def work() -> list[int]:
        futures = cached_map(slow, range(ITEMS), batch="refused")
        assert refused.wait(60)
        gate.release.set()
        return futures.result()

    assert work() == list(range(ITEMS))
    assert told.percents == []
    assert "progress of slow is not shown any more: refused" in caplog.text


def test_a_run_that_fails_leaves_its_progress_as_it_was_and_no_thread(told: Told) -> None:
    gates["failed"] = gate = Gate()
    runs: list[str] = []

    @flow
    def work() -> None:
        runs.append(str(flow_run.id))
        cached_map(slow, range(ITEMS), batch="failed")
        told.beyond(50)
        gate.release.set()
        raise ValueError("in the middle")

    assert work(return_state=True).is_failed()
    (artifact,) = shown(runs[0])
    assert 50 <= float(str(artifact.data)) <= 100
    assert "cache-progress" not in {thread.name for thread in threading.enumerate()}
