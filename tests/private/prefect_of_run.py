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


def prefect_contents() -> Iterator[bytes]:
    """The database of the server in use, with its log, once what was sent to it has arrived."""
    APILogHandler().flush()
    EventsWorker.instance().wait_until_empty()
    time.sleep(3)
    address = get_current_settings().server.database.connection_url
    assert address is not None
    path = Path(str(make_url(address.get_secret_value()).database))
    with closing(sqlite3.connect(path)) as database:
        for table in ("flow_run", "task_run", "log", "events", "artifact"):
            assert database.execute(f"SELECT count(*) FROM {table}").fetchone()[0], f"{table}: nothing to look into"  # noqa: S608
    for file in path.parent.glob(f"{path.name}*"):
        yield file.read_bytes()
