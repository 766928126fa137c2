"""Cutting long speech at its silences, a window at a time, with pydub.

pydub slices, measures and writes here. It never resamples (its `set_frame_rate` has no anti-alias filter) and
never decodes (that would need ffmpeg): the audio is 16 kHz mono PCM16 already.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from tasks.media.wav import SAMPLE_RATE, open_normalised

with warnings.catch_warnings():
    # pydub looks for an ffmpeg program when imported, and has invalid escapes in its regular expressions.
    warnings.simplefilter("ignore")
    import pydub
    import pydub.silence

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from pathlib import Path

    from tasks.media.options import ChunkOptions

_STEP_MS: Final = 20


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk on disk: where, and which part of the recording it is (seconds)."""

    path: Path
    offset_seconds: float
    duration_seconds: float


def split(audio: str | os.PathLike[str], folder: Path, options: ChunkOptions) -> Iterator[Piece]:
    """Write the chunks of a normalised recording one after another, each a WAV file in ``folder``.

    A chunk ends in the middle of the longest silence in the second half of its window, or, where nobody
    pauses, at the quietest moment there. Together the chunks are the recording: no sample is lost or doubled.

    Args:
        audio: 16 kHz mono PCM16 WAV, as `tasks.audio.normalise_audio` makes it.
        folder: Where to write.
        options: Window length and what counts as silence.

    Raises:
        DamagedMediaError: The audio has another form.
    """
    with open_normalised(audio) as recording:
        total, start = recording.getnframes(), 0
        window_frames = round(options.max_seconds * SAMPLE_RATE)
        while start < total:
            recording.setpos(start)
            window = _segment(recording.readframes(window_frames))
            if start + window_frames < total:
                window = window[: _cut(window, options)]
            path = folder / f"chunk-{start:012d}.wav"
            window.export(path, format="wav").close()
            frames = int(window.frame_count())
            yield Piece(path, start / SAMPLE_RATE, frames / SAMPLE_RATE)
            start += frames


def _segment(pcm: bytes) -> Any:
    return pydub.AudioSegment(pcm, sample_width=2, frame_rate=SAMPLE_RATE, channels=1)


def _cut(window: Any, options: ChunkOptions) -> int:
    """Return where to end the chunk, in ms from the start of the window."""
    half = len(window) // 2
    later = window[half:]
    detect_silence = cast("Any", pydub.silence).detect_silence
    silences: list[list[int]] = detect_silence(
        later,
        min_silence_len=round(options.min_silence_seconds * 1000),
        silence_thresh=options.silence_dbfs,
        seek_step=_STEP_MS,
    )
    if silences:
        begin, end = max(silences, key=lambda silence: silence[1] - silence[0])
        return half + (begin + end) // 2
    quietest = min(range(0, len(later) - 5 * _STEP_MS, _STEP_MS), key=lambda at: later[at : at + 5 * _STEP_MS].rms)
    return half + quietest + 5 * _STEP_MS // 2
