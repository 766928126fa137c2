"""The same on Ray, in small: three workers on this machine."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from tests.prefect.observed import artifacts_of, totals_of
from tests.runners.conftest import ROOT
from tests.runners.speech import batch
from tests.runners.test_dask import expected, record

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from tests.runners.speech import Notes

pytest.importorskip("prefect_ray", reason="the extra 'ray' is not installed")

pytestmark = pytest.mark.timeout(900)  # Ray starts half a dozen processes


@pytest.fixture
def quiet_ray(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Let Ray leave nothing behind and tell nobody; its sockets' paths have to be short."""
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        for name, value in (
            ("RAY_TMPDIR", folder),
            ("RAY_USAGE_STATS_ENABLED", "0"),
            ("RAY_AUTH_MODE", "disabled"),  # it would keep a token in the user's home
            ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"),  # today's default warns that tomorrow's will be this
            ("PYTHONPATH", str(ROOT)),
        ):
            monkeypatch.setenv(name, value)
        yield


@pytest.mark.usefixtures("cache", "quiet_ray")
@pytest.mark.promise("One computation per key over the workers of Ray", tries="3 workers, 6 recordings of 2 contents")
def test_each_key_is_computed_once_over_all_workers(notes: Notes, tmp_path: Path) -> None:
    contents = ("on ray's workers", "once as well")
    recordings = record(tmp_path / "recordings", *contents, copies=3)

    run_id, counted = batch(recordings, str(notes.folder), "ray")

    assert counted == expected(contents, copies=3)
    assert len(notes.of("prepare")) == len(notes.of("count")) == 2
    assert totals_of(run_id)[0] == 12, "every lookup of every worker is in the one report"
    assert {key: len(data) for key, data in artifacts_of(run_id).items()} == {"cache-hits": 1, "cache-report": 1}

    run_id, counted = batch(recordings, str(notes.folder), "ray://127.0.0.1:1")  # where no cluster is

    assert counted == expected(contents, copies=3)
    assert totals_of(run_id) == (12, 12, 0)
