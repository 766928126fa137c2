"""What is asked for in a simulated night: each key once, dealt out from a seed, the same in every process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

Numbers = NDArray[np.int64]

REDIS, SQL, OBJECT_STORE, NOWHERE = range(4)
PLACES: Final = ("redis", "sql", "object_store", "nowhere")
TRANSCRIPTS, ENHANCEMENTS, AUDIO = range(3)
KINDS: Final = ("transcript", "ai-enhancement", "audio-preprocessing")
_ONE: Final = 1e-9


class Shape(BaseModel):
    """A night, as it is dealt out.

    Attributes:
        keys: Keys that are asked for, each once.
        processes: Processes that ask side by side, each as fast as it is answered.
        seed: Decides which key is where, of which kind and size, and in which order keys are asked for.
        page: Keys of one bulk lookup, as `cached_map` has them: 250 at first, 1,000 at most.
        single: Share of the keys that are asked for one by one, as a task run does.
        again: Share of the keys that are asked for once more when all have been answered.
        places: Shares of the keys that Redis, SQL, the object store and nobody has, when the night begins.
        kinds: Shares of transcripts, enhancements and descriptors of audio.
        sizes: Bytes of a transcript's JSON, the enhancement's being that of its text.
        size_shares: Shares of these.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: int = Field(default=1_000_000, ge=1)
    processes: int = Field(default=8, ge=1)
    seed: int = 6
    page: int = Field(default=500, ge=1)
    single: float = Field(default=0.02, ge=0, le=1)
    again: float = Field(default=0.05, ge=0, le=1)
    places: tuple[float, ...] = (0.865, 0.10, 0.005, 0.03)
    kinds: tuple[float, ...] = (0.475, 0.475, 0.05)
    sizes: tuple[int, ...] = (2_000, 12_000, 46_000)
    size_shares: tuple[float, ...] = (0.75, 0.20, 0.05)

    @model_validator(mode="after")
    def _check_shares(self) -> Shape:
        for name, count in (("places", len(PLACES)), ("kinds", len(KINDS)), ("size_shares", len(self.sizes))):
            shares: tuple[float, ...] = getattr(self, name)
            if len(shares) != count or abs(sum(shares) - 1) > _ONE or min(shares) < 0:
                msg = f"{name} must be {count} shares that add up to 1, and not {shares}"
                raise ValueError(msg)
        return self


@dataclass(frozen=True, slots=True)
class Step:
    """Keys of one kind that are asked for at once."""

    numbers: tuple[int, ...]
    kind: int
    single: bool


class Night:
    """Where each key is, of which kind and size it is, and who asks for it when.

    Args:
        shape: How it is dealt out. Shares hold to the key, but that what only the object store has is transcripts.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        order = np.random.default_rng(shape.seed)
        self.places = _dealt(shape.places, shape.keys, order)
        self.kinds = _dealt(shape.kinds, shape.keys, order)
        self.sizes = _dealt(shape.size_shares, shape.keys, order)
        self.singles = _dealt((shape.single, 1 - shape.single), shape.keys, order) == 0
        self.agains = _dealt((shape.again, 1 - shape.again), shape.keys, order) == 0
        self.kinds[self.places == OBJECT_STORE] = TRANSCRIPTS  # the kind of which the object store has copies

    def place(self, number: int) -> int:
        """Return where a key's entry is when the night begins."""
        return int(self.places[number])

    def kind(self, number: int) -> int:
        """Return of which kind a key is."""
        return int(self.kinds[number])

    def size(self, number: int) -> int:
        """Return the bytes of the transcript that a key is about."""
        return self.shape.sizes[int(self.sizes[number])]

    def of_process(self, process: int) -> Numbers:
        """Return the numbers of the keys that a process asks for; with those of the others, each number once."""
        return np.arange(process, self.shape.keys, self.shape.processes)

    def steps(self, process: int) -> list[Step]:
        """Return what a process asks for, in its order."""
        return self._steps(self.of_process(process), process)

    def steps_again(self, process: int) -> list[Step]:
        """Return what a process asks for once more."""
        mine = self.of_process(process)
        return self._steps(mine[self.agains[mine]], process)

    def _steps(self, numbers: Numbers, process: int) -> list[Step]:
        order = np.random.default_rng((self.shape.seed, process))
        made = [
            step
            for kind in range(len(KINDS))
            for single in (False, True)
            for step in self._steps_of(order.permutation(numbers), kind, single=single)
        ]
        return [made[place] for place in order.permutation(len(made))]

    def _steps_of(self, numbers: Numbers, kind: int, *, single: bool) -> Iterator[Step]:
        wanted = numbers[(self.kinds[numbers] == kind) & (self.singles[numbers] == single)]
        size = 1 if single else self.shape.page
        for start in range(0, len(wanted), size):
            yield Step(tuple(int(number) for number in wanted[start : start + size]), kind, single)


def _dealt(shares: Sequence[float], count: int, order: np.random.Generator) -> NDArray[np.int8]:
    """Return as many small numbers as there are keys, each with its share, in any order."""
    ends = np.rint(np.cumsum(shares) * count).astype(np.int64)
    return order.permutation(np.searchsorted(ends, np.arange(count), side="right").astype(np.int8))
