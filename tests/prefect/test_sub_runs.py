"""The report of a run counts the lookups of all runs below it, each once, and of no others."""

import pytest
from prefect import flow
from prefect.runtime import flow_run

from cache_blocks import TRANSCRIPT, TieredCache, cached_task
from cache_blocks.prefect.report import report_when_run_ends
from tests.prefect.observed import artifacts_of, totals_of


@cached_task(kind=TRANSCRIPT)
def length(text: str) -> int:
    return len(text)


@flow(flow_run_name="innermost")
def innermost(text: str) -> str:
    length(text)
    return str(flow_run.id)


@flow(flow_run_name="between")
def between(text: str) -> tuple[str, str]:
    below = innermost(text)
    return str(flow_run.id), below


@flow(flow_run_name="failing")
def failing() -> None:
    length("abc")
    raise ValueError("after the lookup")


def test_runs_of_any_depth_count_once_in_each_run_above_them(cache: TieredCache) -> None:
    """Those above look nothing up themselves, and have a report because they ask for one."""

    @flow
    def outermost() -> tuple[str, list[tuple[str, str]]]:
        report_when_run_ends(cache)
        length("abcd")
        return str(flow_run.id), [between("abc"), between("abc"), between("de")]

    innermost("abc")
    above, runs = outermost()

    assert [totals_of(below) for _, below in runs] == [(1, 1, 0), (1, 1, 0), (1, 0, 0)]
    assert totals_of(above) == (4, 2, 0)
    assert all(artifacts_of(middle) == {} for middle, _ in runs), "nobody has asked for one"
    (report,) = artifacts_of(above)["cache-report"]
    assert "those of this run and of its 6 sub-runs together" in report
    for middle, below in runs:
        assert f"[between](/runs/flow-run/{middle})" in report
        assert f"[innermost](/runs/flow-run/{below})" in report


def test_a_run_that_only_starts_others_has_a_report_with_their_figures_in_the_history_of_its_flow(
    cache: TieredCache,
) -> None:
    @flow
    def starts_others() -> str:
        report_when_run_ends(cache)
        innermost("abc")
        return str(flow_run.id)

    first, second = starts_others(), starts_others()

    assert (totals_of(first), totals_of(second)) == ((1, 0, 0), (1, 1, 0))
    (report,) = artifacts_of(second)["cache-report"]
    assert f"/runs/flow-run/{first}): hit rate 0 % → **100 %**" in report, "compared with the last of its flow"


def test_a_sub_run_that_fails_is_a_warning_and_its_lookups_count(cache: TieredCache) -> None:
    @flow
    def careful() -> str:
        report_when_run_ends(cache)
        with pytest.raises(ValueError, match="after the lookup"):
            failing()
        return str(flow_run.id)

    run_id = careful()
    (report,) = artifacts_of(run_id)["cache-report"]
    assert totals_of(run_id) == (1, 0, 0)
    assert "- 1 sub-run did not complete: [failing](/runs/flow-run/" in report
