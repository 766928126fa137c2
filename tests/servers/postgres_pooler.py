"""PgBouncer before a PostgreSQL, each transaction in whichever of two sessions is free.

No wheel on PyPI brings it: it has to be on PATH (Debian's package is named pgbouncer).
"""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import URL, make_url

from tests.servers.process import ServerProcess, free_port

if TYPE_CHECKING:
    from collections.abc import Generator

SESSIONS = 2


def is_installed() -> bool:
    """Whether there is a pgbouncer on PATH."""
    return shutil.which("pgbouncer") is not None


@contextmanager
def pgbouncer(server_url: str) -> Generator[str]:
    """A PgBouncer with two sessions for each database of the server; gives the server's URL through it."""
    server = make_url(server_url)
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="pgbouncer-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # as root, it runs as another user
        config = Path(folder) / "pgbouncer.ini"
        config.write_text(_config(server, port))
        process = ServerProcess(["pgbouncer", *_as_user(server), str(config)], Path(folder) / "pgbouncer.log")
        process.start(r"process up")
        try:
            through = server.set(query={}, host="127.0.0.1", port=port, username="cache", password=None)
            yield through.render_as_string(hide_password=False)
        finally:
            process.stop()


def _config(server: URL, port: int) -> str:
    password = f" password={server.password}" if server.password else ""
    return f"""
[databases]
* = host={_host(server)} port={server.port or 5432} user={server.username}{password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {SESSIONS}
max_client_conn = 500
"""


def _host(server: URL) -> str:
    return server.host or str(server.query.get("host", "localhost"))


def _as_user(server: URL) -> list[str]:
    """Return options by which it runs as somebody who may use the server's socket, because it refuses to be root."""
    if os.geteuid() != 0:
        return []
    socket = Path(_host(server))
    return ["-u", pwd.getpwuid(socket.stat().st_uid).pw_name if socket.is_absolute() else "nobody"]
