"""A process that uses copies: ``python -m tests.unit.local_files_worker FOLDER BUDGET LOG ROUNDS SEED``.

It says ``ready``, begins when it is told to, and ends with what went wrong, as JSON. With no rounds it holds one copy
until it is killed, and with fewer it dies while it fetches.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path

from cache_blocks.fingerprint import digest_bytes
from cache_blocks.local_files import LocalFiles

BLOBS = 12
SIZE = 10_000


def content(number: int) -> bytes:
    """The bytes of a blob."""
    return bytes([number]) * SIZE


def fetch(number: int, log: Path, target: Path) -> None:
    """Write a blob in two halves, and note that it was fetched."""
    with log.open("a") as lines:
        lines.write(f"{number}\n")
    data = content(number)
    with target.open("wb") as stream:
        stream.write(data[: SIZE // 2])
        stream.flush()
        stream.write(data[SIZE // 2 :])


def main(folder: str, budget: str, log: str, rounds: str, seed: str) -> None:
    """Do what the module says."""
    files = LocalFiles(Path(folder), int(budget))
    if int(rounds) < 0:
        files.copy_of(digest_bytes(content(0)), "0.wav", die_halfway)
    if int(rounds) == 0:
        _copy = files.copy_of(digest_bytes(content(0)), "0.wav", lambda target: fetch(0, Path(log), target))
    print("ready", flush=True)  # noqa: T201 - standard output is how it answers
    sys.stdin.readline()
    print(json.dumps(use(files, Path(log), int(rounds), int(seed))), flush=True)  # noqa: T201


def use(files: LocalFiles, log: Path, rounds: int, seed: int) -> list[str]:
    """Take copies in any order, hold some of them, and read them by their path; return what was not as it should be."""
    wrong: list[str] = []
    numbers = random.Random(seed)  # noqa: S311 - no secret
    held: list[tuple[int, Path, object]] = []
    for _ in range(rounds):
        number = numbers.randrange(BLOBS)
        copy = files.copy_of(
            digest_bytes(content(number)),
            f"{number}.wav",
            lambda target, number=number: fetch(number, log, target),
        )
        held = [*held[-2:], (number, copy.path, copy)]
        for one, path, _ in held:
            try:
                if path.read_bytes() != content(one):
                    wrong.append(f"{path} has other bytes")
            except FileNotFoundError:
                wrong.append(f"{path} is gone")
    return wrong


def die_halfway(target: Path) -> None:
    """Be killed while fetching."""
    target.write_bytes(content(0)[: SIZE // 2])
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
