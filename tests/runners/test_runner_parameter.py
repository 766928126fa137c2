"""``runner``: which there are, and what somebody is told who asks for another one, or for one that is not there."""

from __future__ import annotations

import importlib.util
import pickle
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
from prefect.exceptions import ParameterTypeError
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from cache_blocks import CachedFile
from cache_blocks.values import return_annotation
from flows import runners
from flows.batch_transcription import batch_transcription
from flows.runners import RunnerError, RunnerOnDemand, known_runner, runner_of
from tests.pipeline.batches import SAMPLES
from tests.prefect.observed import totals_of
from tests.runners.speech import batch, prepare

if TYPE_CHECKING:
    from pathlib import Path

    from tests.runners.speech import Notes


@pytest.mark.parametrize(
    "name", ["thread", "process", "dask", "tcp://scheduler:8786", "tls://[::1]:8786", "ray", "ray://head.example:10001"]
)
def test_these_are_known(name: str) -> None:
    assert known_runner(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "threads",
        "Dask",
        "dask://scheduler",
        "tcp://",
        "tcp://scheduler",
        "tcp://:8786",
        "ray://head:x",
        "http://a:1",
    ],
)
def test_any_other_is_refused_before_a_run_begins(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        ParameterTypeError, match=r"no task runner; give thread, process, dask or ray .* tcp://HOST:PORT"
    ):
        batch_transcription(str(SAMPLES), str(tmp_path), runner=name)


@pytest.mark.parametrize(
    "name, module, extra",
    [
        ("dask", "prefect_dask", "dask"),
        ("tcp://scheduler:8786", "prefect_dask", "dask"),
        ("ray", "prefect_ray", "ray"),
        ("ray://head:10001", "prefect_ray", "ray"),
    ],
)
def test_who_lacks_an_extra_is_told_its_name(
    name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_spec(name: str) -> Any:
        return None if name == module else importlib.util.find_spec(name)

    monkeypatch.setattr(runners, "find_spec", find_spec)
    with pytest.raises(RunnerError, match=rf"needs the extra '{extra}': pip install 'prefect-cache-blocks\[{extra}\]'"):
        runner_of(name, 2)


def test_nothing_is_started_that_is_not_needed() -> None:
    def make() -> TaskRunner[Any]:
        pytest.fail("nobody has asked for it")

    with RunnerOnDemand("none", make):
        pass


def test_what_does_not_start_is_tried_once() -> None:
    tries: list[int] = []

    def make() -> TaskRunner[Any]:
        tries.append(1)
        raise ConnectionRefusedError("nobody is there")

    with RunnerOnDemand("tcp://scheduler:8786", make) as runner:
        for _ in range(3):
            with pytest.raises(RunnerError, match="tcp://scheduler:8786 does not start: nobody is there"):
                runner.submit(batch, {})  # pyright: ignore[reportArgumentType]
    assert len(tries) == 1


def test_a_duplicate_starts_anew() -> None:
    with RunnerOnDemand("thread", lambda: ThreadPoolTaskRunner[Any](max_workers=1)) as runner:
        assert runner.duplicate() is not runner


def test_a_task_that_is_sent_to_another_process_knows_there_what_it_returns() -> None:
    sent = cloudpickle.dumps(prepare)  # by value, with those globals that its code names: Path is none of them
    there = pickle.loads(sent)  # noqa: S301 - our own bytes
    assert "Path" not in there.fn.__wrapped__.__globals__
    assert return_annotation(there.fn) is CachedFile


@pytest.mark.usefixtures("embedded")
@pytest.mark.parametrize("name", ["thread", "process"])
def test_the_runners_of_this_machine_give_the_same(name: str, notes: Notes, tmp_path: Path) -> None:
    recordings = [tmp_path / f"{number}.txt" for number in range(4)]
    for recording in recordings:
        recording.write_text("two" if recording.stem in "02" else "contents")

    _, counted = batch(recordings, str(notes.folder), name)
    run_id, again = batch(recordings, str(notes.folder), name)

    assert counted == again
    assert totals_of(run_id) == (8, 8, 0)
    assert counted[0] == counted[2] == {"o": 100, "t": 100, "w": 100}
    assert len(notes.of("prepare")) == len(notes.of("count")) == 2
