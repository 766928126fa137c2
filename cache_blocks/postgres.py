"""A PostgreSQL connection that does not wait for ever.

``statement_timeout`` is the server's own and ``tcp_user_timeout`` is the kernel's: neither ends when the machine
answers packets but its PostgreSQL hangs.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import psycopg


class PatientConnection(psycopg.Connection[Any]):
    """Gives up, and closes itself, when the server does not answer a statement in time.

    Attributes:
        patience: Seconds that one answer may take.
    """

    patience: float = 60.0

    def wait(self, gen: Generator[Any, Any, Any], interval: float = 0.1, *args: Any, **kwargs: Any) -> Any:
        """See `psycopg.Connection.wait`; raises `psycopg.OperationalError` when it takes too long."""
        try:
            return super().wait(self._until(gen, time.monotonic() + self.patience), interval, *args, **kwargs)
        except _SilentServerError:
            self.pgconn.finish()  # whatever it answers later belongs to nobody
            raise

    def _until(self, gen: Generator[Any, Any, Any], deadline: float) -> Generator[Any, Any, Any]:
        """Pass on what the driver asks for and is told; it is told nothing once an interval."""
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() >= deadline:
                    raise _SilentServerError(f"no answer within {self.patience:g} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value


class _SilentServerError(psycopg.OperationalError):
    """The server has accepted a statement and says nothing."""
