"""Reading back the audio that `tasks.audio` writes: 16 kHz mono PCM16 WAV."""

from __future__ import annotations

import os
import wave
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from tasks.errors import DamagedMediaError

if TYPE_CHECKING:
    from collections.abc import Generator

SAMPLE_RATE: Final = 16_000
"""Hz; what Whisper and most speech models are trained on."""


@contextmanager
def open_normalised(audio: str | os.PathLike[str]) -> Generator[wave.Wave_read]:
    """Open normalised audio.

    Raises:
        DamagedMediaError: It is anything else, such as a recording as it came.
    """
    name = Path(audio).name
    try:
        recording = wave.open(os.fspath(audio), "rb")  # noqa: SIM115 - closed below
    except (wave.Error, EOFError) as error:
        raise DamagedMediaError(name, "it is no WAV file; normalise the recording first") from error
    with recording:
        if (recording.getframerate(), recording.getnchannels(), recording.getsampwidth()) != (
            SAMPLE_RATE,
            1,
            2,
        ):
            raise DamagedMediaError(name, "it is not 16 kHz mono PCM16; normalise the recording first")
        yield recording


def seconds_of(audio: str | os.PathLike[str]) -> float:
    """Return the length of normalised audio in seconds."""
    with open_normalised(audio) as recording:
        return recording.getnframes() / SAMPLE_RATE


def read_samples(audio: str | os.PathLike[str]) -> npt.NDArray[np.float32]:
    """Return all samples of normalised audio, full scale at 1.0."""
    with open_normalised(audio) as recording:
        pcm = np.frombuffer(recording.readframes(recording.getnframes()), dtype="<i2")
    return pcm.astype(np.float32) / np.float32(32_768)
