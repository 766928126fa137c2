"""A Prefect server of the demo's own, on a free port, with its UI."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

START_SECONDS = 180
console = Console(highlight=False)


@contextmanager
def prefect_server(environment: dict[str, str], home: Path) -> Generator[str]:
    """Start a server and yield the address of its API; stop it at the end.

    Args:
        environment: Of the server's process.
        home: Folder for its log.

    Raises:
        SystemExit: It does not start; the message says where it says why.
    """
    port = _free_port()
    api_url = f"http://127.0.0.1:{port}/api"
    log = home / "server.log"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            env=environment | {"PREFECT_SERVER_UI_API_URL": api_url, "PREFECT_API_URL": api_url},
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    try:
        with console.status("starting a Prefect server; a first start makes its database"):
            _wait_until_healthy(f"{api_url}/health", process, log)
        yield api_url
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - our own address
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    sys.exit(f"The Prefect server did not start; what it said is in {log}.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
