"""Loudness by ITU-R BS.1770-4 measured on a stream, and a limiter that keeps every sample under a ceiling.

Written on numpy and FFmpeg's filters, which are loaded already. The usual library, pyloudnorm, wants the
whole recording in memory and brings 70 MB of SciPy with it; the tests compare with it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, cast

import av
import av.filter
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tasks.media.decode import Samples

STEP_SECONDS: Final = 0.02
"""Length of the steps that energies are kept for."""
_STEPS_PER_BLOCK: Final = 20
_STEPS_PER_HOP: Final = 5
_ABSOLUTE_GATE: Final = -70.0
_RELATIVE_GATE: Final = -10.0
_OFFSET: Final = -0.691

Biquad = tuple[float, float, float, float, float, float]
"""Coefficients b0, b1, b2, a0, a1, a2 of one second-order filter."""


def k_weighting(rate: int) -> tuple[Biquad, Biquad]:
    """Return the two filters of BS.1770-4, a shelf for the head and a high-pass, for any sampling rate.

    The Recommendation tabulates them for 48 kHz only. These are the analogue prototypes behind that table, as
    worked out by Brecht De Man ("Evaluation of Implementations of the EBU R128 Loudness Measurement", 2018),
    put through the bilinear transform.
    """
    gain, q, k = 3.999843853973347, 0.7071752369554196, math.tan(math.pi * 1681.974450955533 / rate)
    high = 10 ** (gain / 20)
    band = high**0.4996667741545416
    a0 = 1 + k / q + k * k
    shelf = (
        (high + band * k / q + k * k) / a0,
        2 * (k * k - high) / a0,
        (high - band * k / q + k * k) / a0,
        1.0,
        2 * (k * k - 1) / a0,
        (1 - k / q + k * k) / a0,
    )
    q, k = 0.5003270373238773, math.tan(math.pi * 38.13547087602444 / rate)
    a0 = 1 + k / q + k * k
    return shelf, (1.0, -2.0, 1.0, 1.0, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0)


class _Filter:
    """Second-order filters in a row, keeping their state from piece to piece."""

    def __init__(self, biquads: Iterable[Biquad], rate: int) -> None:
        self._rate = rate
        self._graph = av.filter.Graph()
        last = self._graph.add("abuffer", f"sample_rate={rate}:sample_fmt=dbl:channel_layout=mono")
        for biquad in biquads:
            values = {
                name: repr(value) for name, value in zip(("b0", "b1", "b2", "a0", "a1", "a2"), biquad, strict=True)
            }
            following = self._graph.add("biquad", precision="f64", **values)
            last.link_to(following)
            last = following
        last.link_to(self._graph.add("abuffersink"))
        self._graph.configure()

    def __call__(self, samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="dbl", layout="mono")
        frame.sample_rate = self._rate
        self._graph.push(frame)
        weighted = cast("av.AudioFrame", self._graph.pull())
        return cast("npt.NDArray[np.float64]", weighted.to_ndarray().reshape(-1))


class LoudnessMeter:
    """Integrated loudness of mono sound that comes in pieces.

    BS.1770-4: K-weighting, blocks of 400 ms that overlap by 75 %, an absolute gate at -70 LUFS and a relative
    one 10 LU below the mean. What is kept is one energy per 20 ms, 400 bytes a second.

    Args:
        rate: Samples per second.
    """

    def __init__(self, rate: int) -> None:
        self._weight = _Filter(k_weighting(rate), rate)
        self._step = round(rate * STEP_SECONDS)
        self._rest = np.empty(0)
        self._energies: list[npt.NDArray[np.float64]] = []

    def add(self, samples: Samples) -> None:
        """Take the next samples, at least one."""
        weighted = np.concatenate([self._rest, self._weight(samples.astype(np.float64))])
        whole = weighted.size - weighted.size % self._step
        self._energies.append(np.square(weighted[:whole]).reshape(-1, self._step).mean(axis=1))
        self._rest = weighted[whole:]

    def levels(self) -> npt.NDArray[np.float64]:
        """Return the loudness of each step of 20 ms, in LUFS, without gating; the last one may be shorter."""
        return _lufs(self._all_energies())

    def integrated(self) -> float | None:
        """Return the integrated loudness in LUFS, or None for silence.

        A clip shorter than one block counts as one block of its own length.
        """
        energies = self._all_energies()
        if energies.size == 0:
            return None
        if energies.size < _STEPS_PER_BLOCK:
            blocks = energies.mean(keepdims=True)
        else:
            blocks = np.lib.stride_tricks.sliding_window_view(energies, _STEPS_PER_BLOCK)[::_STEPS_PER_HOP].mean(axis=1)
        heard = blocks[_lufs(blocks) >= _ABSOLUTE_GATE]
        if heard.size == 0:
            return None
        threshold = float(_lufs(heard.mean(keepdims=True))[0]) + _RELATIVE_GATE
        return float(_lufs(heard[_lufs(heard) > threshold].mean(keepdims=True))[0])

    def _all_energies(self) -> npt.NDArray[np.float64]:
        rest = [np.square(self._rest).mean(keepdims=True)] if self._rest.size else []
        return np.concatenate([*self._energies, *rest]) if self._energies or rest else np.empty(0)


def _lufs(energies: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return _OFFSET + 10 * np.log10(np.maximum(energies, 1e-30))


def limited(pieces: Iterable[npt.NDArray[np.float64]], ceiling: float, rate: int) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the same number of samples with no magnitude above ``ceiling``.

    A look-ahead limiter: the gain that each sample needs is held (50 ms) as a running minimum and smoothed by
    a moving average (5 ms) that lies inside the minimum's window. So the average of gains is never larger
    than the one that the sample itself needs, and the gain never jumps. Where nothing is too loud, nothing
    changes.

    Args:
        pieces: Samples, already amplified.
        ceiling: Largest magnitude to let through, below 1.0.
        rate: Samples per second.
    """
    ahead = rate // 200
    behind = ahead - 1 + rate // 20
    buffer = np.zeros(behind)
    for piece in pieces:
        buffer = np.concatenate([buffer, piece])
        if buffer.size > behind + ahead - 1:
            yield _limit(buffer, ceiling, behind, ahead)
            buffer = buffer[-(behind + ahead - 1) :]
    if buffer.size > behind:
        yield _limit(np.concatenate([buffer, np.zeros(ahead - 1)]), ceiling, behind, ahead)


def _limit(buffer: npt.NDArray[np.float64], ceiling: float, behind: int, ahead: int) -> npt.NDArray[np.float64]:
    """Limit ``buffer[behind : -(ahead - 1)]``; the rest is its context."""
    magnitude = np.abs(buffer)
    end = buffer.size - (ahead - 1)
    if magnitude.max() <= ceiling:
        return buffer[behind:end]
    needed = np.minimum(1.0, ceiling / np.maximum(magnitude, ceiling))
    # Element j is the least gain needed in [j - (behind + 1 - ahead), j + ahead - 1].
    least = _running_minimum(np.concatenate([np.ones(behind + 1 - ahead), needed, np.ones(ahead - 1)]), behind + 1)
    smooth = np.convolve(least, np.full(ahead, 1 / ahead))[: buffer.size]
    return buffer[behind:end] * smooth[behind:end]


def _running_minimum(values: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    """Return the minimum of each ``window`` values in a row, by doubling what a value stands for."""
    width = 1
    while width < window:
        step = min(width, window - width)
        values = np.minimum(values[:-step], values[step:])
        width += step
    return values
