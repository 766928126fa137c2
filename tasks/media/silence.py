"""Where the sound of a recording begins and ends."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

_SHORTEST_SOUND_STEPS: Final = 3
"""A click of a switch is shorter than the 60 ms that these make; any syllable is longer."""


def sound_range(levels: npt.NDArray[np.float64], threshold: float) -> tuple[int, int] | None:
    """Return the first step of sound and the one after the last, or None when there is only silence.

    By energy, not by a speech model: the levels are there from measuring the loudness, it costs nothing, is
    the same on every machine, and cuts what is silent rather than what a model does not take for speech.

    Args:
        levels: Loudness of each step.
        threshold: Level from which on a step is sound, in the same unit.
    """
    loud = levels >= threshold
    if not loud.any():
        return None
    run = min(_SHORTEST_SOUND_STEPS, loud.size)
    starts = np.flatnonzero(np.lib.stride_tricks.sliding_window_view(loud, run).all(axis=1))
    if starts.size == 0:  # nothing but very short sounds: keep them all
        heard = np.flatnonzero(loud)
        return int(heard[0]), int(heard[-1]) + 1
    return int(starts[0]), int(starts[-1]) + run
