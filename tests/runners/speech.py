"""Two stages, as small as can be: a file is made of a recording, and its bytes are counted. Workers import this."""

from __future__ import annotations

import os
import time
from pathlib import Path

from prefect import flow, unmapped
from prefect.runtime import flow_run

from cache_blocks import AUDIO_PREPROCESSING, TRANSCRIPT, CachedFile, CacheSettings, cached_map, cached_task
from flows.runners import runner_of


class Notes:
    """What computations have written down, in a folder that all of this machine's processes see.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def note(self, stage: str, what: str) -> None:
        """Write down that a computation has begun, by which process, and with which home."""
        line = f"{stage} {what} {os.getpid()} {CacheSettings().home.name}\n"
        with (self.folder / "notes").open("a") as notes:  # one write is whole, whoever else writes
            notes.write(line)

    def of(self, stage: str) -> list[tuple[str, int, str]]:
        """What was computed in a stage: of what, by which process, with which home."""
        notes = self.folder / "notes"
        lines = [line.split() for line in notes.read_text().splitlines()] if notes.exists() else []
        return [(what, int(process), home) for at, what, process, home in lines if at == stage]

    def wait(self, stage: str, count: int) -> None:
        """Wait until so many computations of a stage have begun; no event reaches from one machine to another."""
        deadline = time.monotonic() + 240
        while len(self.of(stage)) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.of(stage)} is all that has begun of {stage}")
            time.sleep(0.02)


@cached_task(kind=AUDIO_PREPROCESSING, cache_version="1", cache_ignore=("notes",))
def prepare(recording: Path, notes: str) -> CachedFile:
    """Make a file of a recording, in a folder that only this worker knows."""
    Notes(notes).note("prepare", recording.stem)
    produced = CacheSettings().home / f"{recording.stem}.wav"
    produced.parent.mkdir(parents=True, exist_ok=True)
    produced.write_bytes(recording.read_bytes() * 100)
    return CachedFile.from_path(produced)


@cached_task(kind=TRANSCRIPT, cache_version="1", cache_ignore=("notes",))
def count(sound: CachedFile, notes: str) -> dict[str, int]:
    """Count the bytes of a file, wherever it was made."""
    home = CacheSettings().home
    assert sound.local_path is None or sound.local_path.is_relative_to(home), "the file came along"
    content = sound.path.read_bytes()
    assert sound.path.is_relative_to(home)
    Notes(notes).note("count", sound.digest[:12])
    return {chr(letter): content.count(letter) for letter in sorted(set(content))}


@cached_task(kind=TRANSCRIPT, cache_version="1", cache_ignore=("notes", "together"))
def meet(number: int, notes: str, together: int) -> int:
    """Return when so many computations have begun, each on a worker of its own."""
    Notes(notes).note("meet", str(number))
    Notes(notes).wait("meet", together)
    return number**2


@cached_task(kind=TRANSCRIPT, cache_version="1", cache_ignore=("notes",))
def survive(number: int, notes: str) -> int:
    """Number 0 waits for ever the first time, so that its worker can be killed."""
    before = [what for what, *_ in Notes(notes).of("survive")]
    Notes(notes).note("survive", str(number))
    if number == 0 and "0" not in before:
        Notes(notes).wait("never", 1)
    return number**2


@flow
def batch(recordings: list[Path], notes: str, runner: str) -> tuple[str, list[dict[str, int]]]:
    """Take recordings through both stages; the id of the run, and what was counted."""
    with runner_of(runner, workers=3) as started:
        prepared = cached_map(prepare, recordings, unmapped(notes), task_runner=started)
        counted = cached_map(count, prepared, unmapped(notes), task_runner=started)
        return str(flow_run.id), counted.result()


@flow
def meeting(notes: str, runner: str, workers: int) -> tuple[str, list[int]]:
    """Let that many workers meet; each has to be there."""
    with runner_of(runner, workers) as started:
        met = cached_map(
            meet, list(range(workers)), notes=unmapped(notes), together=unmapped(workers), task_runner=started
        )
        return str(flow_run.id), met.result()


@flow
def surviving(notes: str, runner: str, items: int) -> tuple[str, list[int]]:
    """Compute while a worker is killed."""
    with runner_of(runner, workers=3) as started:
        return str(flow_run.id), cached_map(survive, range(items), unmapped(notes), task_runner=started).result()
