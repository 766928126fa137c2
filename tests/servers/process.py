"""A server in a process of its own: start, stop, kill, freeze."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from secrets import SystemRandom
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

GUARD = [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py"))]
START_SECONDS = 60.0
STOP_SECONDS = 20.0


class ServerError(RuntimeError):
    """A server did not start; the message holds what it wrote."""


class ServerProcess:
    """One server, started as often as a test likes, that ends with this process at the latest.

    `log` receives what the server writes; the file begins anew with each start.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.command = list(command)
        self.log = log
        self._guard: subprocess.Popen[str] | None = None
        self._pid = 0

    def start(self, ready: str) -> re.Match[str]:
        """Start, wait until the log matches `ready`, and give the match.

        Raises ServerError when the server exits instead, or stays silent for too long.
        """
        with self.log.open("wb") as log:
            self._guard = subprocess.Popen(
                [*GUARD, "run", *self.command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for pytest, which then stops its servers in order
            )
        if self._guard.stdout is None:
            raise ServerError("the guard has no output to read")
        self._pid = int(self._guard.stdout.readline())
        return self._await(re.compile(ready))

    def stop(self) -> None:
        """Ask the server to end and wait until it has; fine when it is frozen or gone."""
        if self._guard:
            self._guard.communicate(timeout=STOP_SECONDS)
            self._guard = None

    def kill(self) -> None:
        """End the server as a crash would (SIGKILL) and wait until it is gone."""
        os.kill(self._running_pid(), signal.SIGKILL)
        self.stop()

    def freeze(self) -> None:
        """Stop the server's clock (SIGSTOP): connections stay open and nothing is answered."""
        os.kill(self._running_pid(), signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        os.kill(self._running_pid(), signal.SIGCONT)

    @property
    def running(self) -> bool:
        """Whether the server's process exists, frozen or not."""
        return self._guard is not None and self._guard.poll() is None

    def _running_pid(self) -> int:
        if not self.running:
            raise ServerError("the server is not running")
        return self._pid

    def _await(self, ready: re.Pattern[str]) -> re.Match[str]:
        deadline = time.monotonic() + START_SECONDS
        while self.running and time.monotonic() < deadline:
            if found := ready.search(self._text()):
                return found
            time.sleep(0.01)  # a log file has no event to wait for
        written = self._text()
        self.stop()
        raise ServerError(f"{self.command[0]} did not start:\n{written[-4000:]}")

    def _text(self) -> str:
        return self.log.read_text(errors="replace")


@contextmanager
def ends_with_us(pid: int) -> Generator[None]:
    """See to it that process `pid`, which another library has started, does not outlive this one."""
    guard = subprocess.Popen([*GUARD, "watch", str(pid)], stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        guard.kill()
        guard.communicate()


def free_port() -> int:
    """A TCP port on the loopback interface that nobody listens on.

    It lies below the range from which the system serves outgoing connections, so that a server which is
    restarted on it finds it free. The choice is the system's own, because pytest-randomly gives every worker
    the same seed.
    """
    random = SystemRandom()
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
