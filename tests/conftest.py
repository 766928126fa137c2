"""What holds for every test: settings of its own, servers on request, nothing from the environment."""

from __future__ import annotations

import atexit
import os
import tempfile
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ["tests.servers.fixtures", "tests.servers.redis_fixtures", "tests.promises"]

# Prefect reads these when it is imported, and the processes that tests start inherit them.
_prefect_home = tempfile.TemporaryDirectory(prefix="cache-blocks-tests-", ignore_cleanup_errors=True)
atexit.register(_prefect_home.cleanup)
for _name in [name for name in os.environ if name.startswith(("PREFECT_", "CACHE_BLOCKS_"))]:
    del os.environ[_name]
os.environ["PREFECT_HOME"] = _prefect_home.name
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
# Many tests run a task outside of a flow; Prefect warns once per log line that it belongs to no flow run.
os.environ["PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW"] = "ignore"

# No deadline, and no health check of speed: how long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile(
    "ours", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("ours")


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own for the embedded defaults, and no other setting from the environment."""
    for name in [name for name in os.environ if name.startswith("CACHE_BLOCKS_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "cache-blocks"
    monkeypatch.setenv("CACHE_BLOCKS_HOME", str(home))
    return home
