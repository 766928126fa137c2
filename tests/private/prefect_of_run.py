"""A Prefect server and database of one run's own, so that whatever is found there is that run's."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, get_current_settings, temporary_settings
from sqlalchemy import make_url

from tests.servers.prefect import prefect_server

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


@contextmanager
def prefect_of_its_own() -> Generator[None]:
    """A new server that gets the runs, events and logs of this process meanwhile, whatever other tests have set."""
    EventsWorker.drain_all()  # Prefect has one sender of events in a process, bound to the server it first met
    with_logs: dict[Any, Any] = {PREFECT_LOGGING_TO_API_ENABLED: True}
    with prefect_server(), temporary_settings(with_logs):
        yield


def _wait_until_all_is_there(path: Path) -> None:
    """Wait until every table has something, and no more has come for some seconds: the server writes when it can."""
    deadline = time.monotonic() + 120
    before: dict[str, int] = {}
    while (counts := _rows(path)) != before or not all(counts.values()):
        assert time.monotonic() < deadline, f"nothing to look into, or ever more: {counts}"
        before = counts
        time.sleep(3)


def _rows(path: Path) -> dict[str, int]:
    with closing(sqlite3.connect(path)) as database:
        tables = ("flow_run", "task_run", "log", "events", "artifact")
        return {table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}  # noqa: S608


def prefect_contents() -> Iterator[bytes]:
    """The database of the server in use, with its log, once what was sent to it has arrived."""
    APILogHandler().flush()
    EventsWorker.instance().wait_until_empty()
    address = get_current_settings().server.database.connection_url
    assert address is not None
    path = Path(str(make_url(address.get_secret_value()).database))
    _wait_until_all_is_there(path)
    for file in path.parent.glob(f"{path.name}*"):
        yield file.read_bytes()
