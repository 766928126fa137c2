"""The promises of the cache and the tests that try to break them, as a table made from a test run.

A test says what it tries to break: ``@pytest.mark.promise("A hit is never stale", tries="10,000 reads")``. What it
counts while it runs it may add with ``record_property("tries", …)``. ``make reliability`` runs these tests, and
writes ``docs/reliability.md``.
"""

from __future__ import annotations

import datetime as dt
import platform
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

_HEAD = """# Reliability

What the cache promises, the test that tries to break it, how often it tries, and how that ended. Made by
`make reliability` from a run on {day}, {machine}; a test makes sure that no row is missing.

| promise | test | tries | result |
| --- | --- | --- | --- |
"""

_TAIL = """
## What is beyond these promises

- **Remote blobs that decay without the store's knowing.** A lookup compares the store's own mark of a blob (its ETag)
  with the one that the entry carries, and reads what has another. Bytes that go bad while the mark stays are found
  when they come to a machine, before they are used: the task that wants them fails with `BlobMissingError`, and from
  then on every lookup of that file is a miss. Run the flow again; `cache-blocks verify` reads everything beforehand.
- **A Redis user that may not ask `INFO`.** Copies of generations name the replication history that they were taken
  in, so that a Redis that starts from an older snapshot, and a replica that becomes master, are not believed. Without
  `INFO` the server's address stands for its history, and a restart from an old snapshot, or another server taking over
  the address, is believed until the copies end, 30 hours at most: `cache-blocks invalidate` once more, or flush it.
- **Forgetting what a process holds that cannot reach SQL, or dies in the middle of a write.** It is never served, and
  goes with a later collection: entries with the next one, files after an hour.
- **The result of a killed computation within the lease plus 1 s** supposes that the second computation itself is
  short, and a machine that gives the waiters their turn.
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability", metavar="FILE", help="write the table of promises to this file")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "promise(text, tries): what the test tries to break")
    target = config.getoption("--reliability")
    if target and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Table(Path(target)), "promises-table")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    """Send the promise with the report, since the table is written by another process than the test's."""
    marker = item.get_closest_marker("promise")
    if marker is not None and call.when == "call":
        item.user_properties.append(("promise", marker.args[0]))
        if "tries" in marker.kwargs:
            item.user_properties.append(("tries", marker.kwargs["tries"]))
    return (yield)


class _Table:
    """Collects what became of the promises, and writes it down."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._outcomes: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        self._tries: dict[tuple[str, str], str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties)
        if report.when != "call" or "promise" not in properties:
            return
        row = (str(properties["promise"]), report.nodeid.partition("[")[0])
        self._outcomes[row].append(report.outcome)
        if "tries" in properties:
            self._tries[row] = str(properties["tries"])

    def pytest_sessionfinish(self) -> None:
        day = dt.datetime.now(dt.UTC).date().isoformat()
        machine = f"Python {platform.python_version()} on {platform.system()}"
        lines = [
            f"| {promise} | `{test}` | {self._count(promise, test)} | {_verdict(self._outcomes[promise, test])} |\n"
            for promise, test in sorted(self._outcomes)
        ]
        self._target.write_text(_HEAD.format(day=day, machine=machine) + "".join(lines) + _TAIL, encoding="utf-8")

    def _count(self, promise: str, test: str) -> str:
        cases = len(self._outcomes[promise, test])
        tries = self._tries.get((promise, test), "")
        return f"{tries}, {cases} ways" if tries and cases > 1 else tries or str(cases)


def _verdict(outcomes: list[str]) -> str:
    broken = sum(outcome == "failed" for outcome in outcomes)
    skipped = sum(outcome == "skipped" for outcome in outcomes)
    if broken:
        return f"broken in {broken} of {len(outcomes)}"
    return f"held, {skipped} not run" if skipped else "held"
