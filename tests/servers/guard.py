"""Keep a process alive no longer than the test run that wants it.

    guard.py run COMMAND...     start the command, print its process id, exit when it exits
    guard.py watch PID          the same for a process that somebody else has started

Standard input is a pipe whose other end only the test run holds. However that run ends, SIGKILL included, the
pipe closes, and the guard stops the process. This works on every POSIX system and does not depend on which
thread started the guard, as Linux's parent-death signal does.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

GRACE_SECONDS = 10.0


def run(command: list[str]) -> int:
    """Run `command` in a session of its own until it exits or standard input ends; give its exit code.

    What the command writes goes to standard error, because standard output tells its process id.
    """
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True)
    sys.stdout.write(f"{process.pid}\n")
    sys.stdout.flush()

    def stop() -> None:
        sys.stdin.buffer.read()
        _signal(os.killpg, process.pid, signal.SIGCONT, signal.SIGTERM)  # a frozen process does not hear SIGTERM
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            _signal(os.killpg, process.pid, signal.SIGKILL)

    threading.Thread(target=stop, daemon=True).start()
    return process.wait()


def watch(pid: int) -> None:
    """End process `pid` when standard input ends."""
    sys.stdin.buffer.read()
    _signal(os.kill, pid, signal.SIGTERM)


def _signal(send: Callable[[int, int], None], pid: int, *signals: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself, which is what was wanted
        for number in signals:
            send(pid, number)


def main() -> NoReturn:
    """Obey the command line."""
    verb, *rest = sys.argv[1:]
    if verb == "watch":
        sys.exit(watch(int(rest[0])))
    sys.exit(run(rest))


if __name__ == "__main__":
    main()
