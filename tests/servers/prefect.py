"""Prefect's own API server."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness

from tests.servers.process import ServerError, ends_with_us

if TYPE_CHECKING:
    from collections.abc import Generator

# The first start creates the database, migration by migration, while other test processes do the same.
START_SECONDS = 180


@contextmanager
def prefect_server() -> Generator[str]:
    """An API server over a new database, which flows and clients of this process use; gives its address."""
    with prefect_test_harness(server_startup_timeout=START_SECONDS):
        server = SubprocessASGIServer()  # gives the one that the harness has registered
        if server.server_process is None:
            raise ServerError("Prefect's test server has no process")
        with ends_with_us(server.server_process.pid):
            yield PREFECT_API_URL.value()
