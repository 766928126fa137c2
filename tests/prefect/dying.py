"""A flow for tests that end it: ``python -m tests.prefect.dying STEP FOLDER``. A worker runs it as a deployment.

It keeps one file, and then another; on the way to the second it stops at STEP, notes that in FOLDER, and waits.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

from prefect import flow

from cache_blocks import AUDIO_PREPROCESSING, cached_task
from cache_blocks.tiers import objects
from cache_blocks.tiers.chain import Chain

SOUND = b"RIFF" + b"a sound that is long enough to be cut in half " * 1000


class Stop:
    """Where the flow stops: nowhere until it is told."""

    step = ""
    folder = Path()

    @classmethod
    def at(cls, step: str) -> None:
        """Stop here for good, if this is where to."""
        if cls.step == step:
            note = cls.folder / f"at {step}"
            note.with_suffix(".new").write_text(str(os.getpid()))
            note.with_suffix(".new").replace(note)
            threading.Event().wait()


@cached_task(kind=AUDIO_PREPROCESSING, cache_version="1")
def produce(name: str, folder: str) -> Path:
    """Produce a file whose bytes tell its name."""
    path = Path(folder) / f"{name}.wav"
    path.write_bytes(SOUND[: len(SOUND) // 2])
    Stop.at("computing")
    path.write_bytes(SOUND + name.encode())
    return path


@flow(name="dying")
def dying(step: str, folder: str) -> None:
    """Keep ``first``, and die on the way to ``second``."""
    produce("first", folder)
    Stop.step, Stop.folder = step, Path(folder)
    produce("second", folder)


def stopping_in_the_middle(real: Any) -> Any:
    """Copy half of a file; that is where ``uploading`` stops."""

    def copy(source: Path, target: str) -> None:
        if Stop.step == "uploading":
            Path(target).write_bytes(Path(source).read_bytes()[: len(SOUND) // 2])
            Stop.at("uploading")
        real(source, target)

    return copy


def stopping_before(real: Any) -> Any:
    """Do nothing yet; the blob is there, its entry is not, and that is where ``publishing`` stops."""

    def write_through(*arguments: Any, **options: Any) -> Any:
        Stop.at("publishing")
        return real(*arguments, **options)

    return write_through


if __name__ == "__main__":
    library: Any = objects
    library.shutil.copyfile = stopping_in_the_middle(library.shutil.copyfile)
    Chain.write_through = stopping_before(Chain.write_through)
    dying(*sys.argv[1:])
