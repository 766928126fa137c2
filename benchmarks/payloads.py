"""Payloads as speech recognition gives them: what all contestants keep and give back."""

from __future__ import annotations

import random
from itertools import accumulate
from typing import Any, Final

import orjson

_WORDS: Final = 5_000
_WORDS_A_SEGMENT: Final = 12
_BYTES_A_WORD: Final = 85
_ONSETS: Final = ("", "b", "br", "c", "d", "f", "g", "h", "l", "m", "n", "p", "pr", "r", "s", "st", "t", "th", "v", "w")
_NUCLEI: Final = ("a", "e", "ea", "i", "o", "ou", "u")
_CODAS: Final = ("", "", "l", "m", "n", "nd", "r", "s", "st", "t")


def transcript(size: int, seed: int = 0) -> dict[str, Any]:
    """Return a transcript whose JSON has about ``size`` bytes: segments of words with times and probabilities.

    The words follow Zipf's law over a vocabulary of 5,000, the times and probabilities are random, so that it
    compresses as a real one does. Equal arguments give equal transcripts.
    """
    rng = random.Random(seed)  # noqa: S311 - not a secret
    vocabulary, weights = _vocabulary(rng), list(accumulate(1 / rank for rank in range(1, _WORDS + 1)))
    made: dict[str, Any] = {"text": "", "language": "en", "duration_seconds": 0.0, "segments": []}
    made |= {"engine": "faster-whisper", "model": "large-v3"}
    clock, left = 0.0, size - len(orjson.dumps(made))
    while left > 0:
        words = min(_WORDS_A_SEGMENT, max(1, left // _BYTES_A_WORD))
        segment, clock = _segment(rng, rng.choices(vocabulary, cum_weights=weights, k=words), clock)
        left -= len(orjson.dumps(segment)) + len(segment["text"]) + 2
        made["segments"].append(segment)
    made["text"] = " ".join(segment["text"] for segment in made["segments"])
    made["duration_seconds"] = round(clock, 3)
    return made


def _vocabulary(rng: random.Random) -> list[str]:
    """Words of one to four syllables, the frequent ones short."""
    words: dict[str, None] = {}
    while len(words) < _WORDS:
        syllables = 1 + min(3, int(len(words) ** 0.5 / 25 + rng.random() * 1.5))
        words["".join(rng.choice(part) for _ in range(syllables) for part in (_ONSETS, _NUCLEI, _CODAS))] = None
    return list(words)


def _segment(rng: random.Random, words: list[str], clock: float) -> tuple[dict[str, Any], float]:
    timed: list[dict[str, Any]] = []
    for word in words:
        start = clock + rng.choice((0.0, 0.0, 0.02, 0.1, 0.36))
        clock = start + 0.08 * len(word) * rng.uniform(0.5, 1.5)
        timed.append({"start": round(start, 2), "end": round(clock, 2), "word": word})
        timed[-1]["probability"] = round(1 - rng.random() ** 4 / 2, 4)
    text = " ".join(words).capitalize() + "."
    return {"start": timed[0]["start"], "end": timed[-1]["end"], "text": text, "words": timed}, clock
