"""The table of promises is that of the tests: no promise without a row, no row without a test, none broken."""

import os
import subprocess
import sys

from tests.docs.blocks import ROOT


def promised_tests() -> set[str]:
    """Return the tests that are marked with a promise, without their parameters."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "promise", "-p", "no:randomly", "tests"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    listed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=200)
    return {line.partition("[")[0] for line in listed.stdout.splitlines() if "::" in line}


def test_the_table_has_every_promise_and_every_promise_held() -> None:
    lines = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines()
    rows = {line.split("`")[1]: line for line in lines if line.startswith("| ") and "::" in line}
    assert rows.keys() == promised_tests(), "run `make reliability`"
    assert not [row for row in rows.values() if "broken" in row]
