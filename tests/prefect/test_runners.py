"""Counts are right whoever runs the tasks: threads, processes, with a server, without one."""

import json
import threading
from pathlib import Path
from typing import Any, cast

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

from cache_blocks import TRANSCRIPT, TieredCache, cached_map, cached_task
from tests.prefect.observed import HIT, artifacts_of, outcomes, run_python, totals_of

NUMBERS = [1, 2, 3, 4, 1, 2, 3, 4]


@cached_task(kind=TRANSCRIPT, cache_ignore=("log",))
def square(number: int, log: str) -> int:
    """Note each computation as a line in ``log``."""
    if number < 0:
        raise ValueError(f"{number} is negative")
    with Path(log).open("a") as lines:
        lines.write(f"{number}\n")
    return number**2


def squares(log: str) -> tuple[str, list[int]]:
    return str(flow_run.id), square.map(NUMBERS, log=log).result()


def test_with_several_threads_each_key_is_computed_once_and_every_lookup_counts(tmp_path: Path) -> None:
    run = flow(task_runner=cast("Any", ThreadPoolTaskRunner(max_workers=4)))(squares)

    (first_id, first), (second_id, second) = run(str(tmp_path / "computed")), run(str(tmp_path / "computed"))

    assert first == second == [1, 4, 9, 16] * 2
    assert sorted((tmp_path / "computed").read_text().split()) == ["1", "2", "3", "4"]
    assert totals_of(first_id)[0] == 8
    assert totals_of(second_id) == (8, 8, 0)


def test_with_several_processes_too_and_the_parent_reports_though_only_the_children_look(
    tmp_path: Path, cache: TieredCache
) -> None:
    run_ids: list[str] = []
    log = str(tmp_path / "computed")

    @flow(task_runner=cast("Any", ProcessPoolTaskRunner(max_workers=2)))
    def work() -> None:
        run_ids.append(str(flow_run.id))
        assert square.map(NUMBERS, log=log).result() == [1, 4, 9, 16] * 2
        assert square.with_options(name="square").map(NUMBERS, log=log).result() == [1, 4, 9, 16] * 2
        assert cache.metrics.total == 0  # this process has looked nothing up
        assert cached_map(square, [*NUMBERS, 5], log=log).result() == [1, 4, 9, 16, 1, 4, 9, 16, 25]
        square.submit(-1, log).result()

    state: State[Any] = work(return_state=True)

    assert state.is_failed()
    assert "-1 is negative" in str(state.message)
    assert sorted(Path(log).read_text().split()) == ["1", "2", "3", "4", "5"]
    assert totals_of(run_ids[0])[0] == 8 + 8 + 9 + 1
    assert outcomes(cache)[-10:].count(HIT) == 8
    assert {key: len(data) for key, data in artifacts_of(run_ids[0]).items()} == {"cache-hits": 1, "cache-report": 1}


def test_runs_of_one_flow_at_the_same_time_are_reported_apart(tmp_path: Path) -> None:
    both_began = threading.Barrier(2)

    @flow
    def work(number: int) -> str:
        both_began.wait(60)
        for repeated in range(number):
            square(number + 10 * min(repeated, 1), str(tmp_path / "computed"))
        return str(flow_run.id)

    run_ids: dict[int, str] = {}

    def run(number: int) -> None:
        run_ids[number] = work(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert totals_of(run_ids[2]) == (2, 0, 0)
    assert totals_of(run_ids[3]) == (3, 1, 0)


WITHOUT_A_SERVER = """
import json
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from cache_blocks import TRANSCRIPT, cached_task
from tests.prefect.observed import totals_of

@cached_task(kind=TRANSCRIPT)
def length(text: str) -> int:
    return len(text)

@flow
def work() -> str:
    length.map(["abc", "abcd"]).wait()
    return str(flow_run.id)

if __name__ == "__main__":
    run_ids = [work(), work()]
    print(json.dumps([totals_of(run_id) for run_id in run_ids]))
"""


def test_a_flow_without_a_server_is_cached_and_reported(tmp_path: Path, child_environment: dict[str, str]) -> None:
    script = tmp_path / "without_a_server.py"
    script.write_text(WITHOUT_A_SERVER)
    ephemeral = {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # a new database, on a machine that may be busy
    }
    environment = {name: value for name, value in child_environment.items() if name != "PREFECT_API_URL"}

    output = run_python(script, environment=environment | ephemeral)

    assert json.loads(output.splitlines()[-1]) == [[2, 0, 0], [2, 2, 0]]
