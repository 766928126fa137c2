"""Two passes over the sound: decode and measure, then trim, amplify, limit and write.

Between the passes the samples wait in a temporary file, so memory does not grow with the length.
"""

from __future__ import annotations

import itertools
import tempfile
import wave
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from tasks.media.decode import Samples, decode
from tasks.media.loudness import STEP_SECONDS, LoudnessMeter, limited
from tasks.media.silence import sound_range
from tasks.media.source import open_media
from tasks.media.wav import SAMPLE_RATE

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from fsspec.core import OpenFile

    from tasks.media.options import AudioOptions

_BLOCK: Final = SAMPLE_RATE * 4
"""Sound is worked on in blocks of 4 s, however the container cut it: equal sound gives equal arithmetic."""
_STEP: Final = round(SAMPLE_RATE * STEP_SECONDS)
_FULL_SCALE: Final = 32_767
_BYTES_PER_SAMPLE: Final = 4


@dataclass(frozen=True, slots=True)
class Measured:
    """What the first pass learnt.

    Attributes:
        samples: Number of samples at `SAMPLE_RATE`.
        lufs: Integrated loudness, None for silence.
        start: First sample to keep.
        end: The one after the last to keep; equal to ``start`` when nothing but silence was there.
    """

    samples: int
    lufs: float | None
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Written:
    """What the second pass did: the amplification in dB and the largest magnitude written."""

    gain_db: float
    peak: float


def normalise(
    source: str | os.PathLike[str] | OpenFile, target: Path, options: AudioOptions
) -> tuple[Measured, Written]:
    """Write the sound of ``source`` to ``target`` as 16 kHz mono PCM16 WAV, normalised and trimmed.

    The output depends on the sound alone: no name, time or tag of the source gets into it.

    Raises:
        MediaError: The source cannot become audio.
    """
    with tempfile.TemporaryFile(prefix="pipeline-") as spool:
        with open_media(source) as reader:
            pieces = decode(reader, max_seconds=options.max_duration_seconds, max_bytes=options.max_decoded_bytes)
            measured = _measure(pieces, spool, options)
        written = _write(_kept(spool, measured), target, measured, options)
    return measured, written


def _measure(pieces: Iterable[Samples], spool: IO[bytes], options: AudioOptions) -> Measured:
    meter = LoudnessMeter(SAMPLE_RATE)
    samples = 0
    for block in _blocks(pieces):
        meter.add(block)
        spool.write(block.tobytes())
        samples += block.size
    lufs = meter.integrated()
    start, end = 0, samples
    if options.trim_silence:
        start, end = _trimmed(meter.levels(), lufs, samples, options)
    return Measured(samples, lufs, start, end)


def _trimmed(
    levels: npt.NDArray[np.float64], lufs: float | None, samples: int, options: AudioOptions
) -> tuple[int, int]:
    sound = None if lufs is None else sound_range(levels, lufs - options.silence_below_lu)
    if sound is None:
        return 0, 0
    margin = round(options.keep_silence_seconds * SAMPLE_RATE)
    return max(0, sound[0] * _STEP - margin), min(samples, sound[1] * _STEP + margin)


def _write(blocks: Iterable[Samples], target: Path, measured: Measured, options: AudioOptions) -> Written:
    gain_db = 0.0 if measured.lufs is None else min(options.target_lufs - measured.lufs, options.max_gain_db)
    gain = 10 ** (gain_db / 20)
    peak = 0
    with wave.open(str(target), "wb") as output:
        output.setnchannels(1)
        output.setsampwidth(2)
        output.setframerate(SAMPLE_RATE)
        amplified = (block * np.float64(gain) for block in blocks)
        for block in limited(amplified, 10 ** (options.ceiling_dbfs / 20), SAMPLE_RATE):
            pcm = np.rint(block * _FULL_SCALE).astype("<i2")
            peak = max(peak, int(np.abs(pcm.astype(np.int32)).max()))
            output.writeframes(pcm.tobytes())
    return Written(gain_db, peak / _FULL_SCALE)


def _blocks(pieces: Iterable[Samples]) -> Iterator[Samples]:
    """Regroup into blocks of equal size; samples that are no finite number count as silence."""
    waiting: list[Samples] = []
    size = 0
    for piece in itertools.chain(pieces, [None]):
        if piece is not None:
            waiting.append(piece)
            size += piece.size
        if size >= _BLOCK or (piece is None and size):
            joined = np.nan_to_num(np.concatenate(waiting), nan=0.0, posinf=1.0, neginf=-1.0)
            whole = size if piece is None else size - size % _BLOCK
            yield from (joined[at : min(at + _BLOCK, whole)] for at in range(0, whole, _BLOCK))
            waiting, size = [joined[whole:]], size - whole


def _kept(spool: IO[bytes], measured: Measured) -> Iterator[Samples]:
    """Read back what is left after trimming."""
    spool.seek(measured.start * _BYTES_PER_SAMPLE)
    for start in range(measured.start, measured.end, _BLOCK):
        count = min(_BLOCK, measured.end - start)
        yield np.frombuffer(spool.read(count * _BYTES_PER_SAMPLE), dtype=np.float32)
