"""A plain installation into an empty environment gives a Prefect that starts, and a cache that works."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

FLOW = """
from prefect import flow
from cache_blocks import SEARCH_RESULTS, cached_task

@cached_task(kind=SEARCH_RESULTS)
def double(x: int) -> int:
    return 2 * x

@flow
def twice() -> list[str]:
    return [double(21, return_state=True).name for _ in range(2)]

if __name__ == "__main__":
    print(twice())
"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_wheel_in_an_empty_environment(tmp_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "CACHE_BLOCKS_"))
    } | {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "CACHE_BLOCKS_HOME": str(tmp_path / "cache"),
    }

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=800, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", ".", str(ROOT))
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "empty", with_pip=True)
    python = str(tmp_path / "empty" / "bin" / "python")
    run(python, "-m", "pip", "install", "--quiet", str(wheel))
    (tmp_path / "flow.py").write_text(FLOW)
    assert "['Completed', 'Cached']" in run(python, "flow.py")
    assert "cache_blocks" in run(python, "-c", "import prefect.plugins, cache_blocks.prefect; print(cache_blocks)")
    assert run(str(tmp_path / "empty" / "bin" / "cache-blocks"), "--version").strip()
