"""`results.json`: what was measured, when and on what, piece by piece.

A piece keeps its figures until it is measured again, so each has a date and a machine of its own. Nothing in the file
names the machine or its folders.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from benchmarks.measuring import Bar

FILE: Final = Path(__file__).with_name("results.json")
_PACKAGES: Final = (
    "prefect",
    "prefect-redis",
    "dogpile.cache",
    "cashews",
    "diskcache",
    "joblib",
    "redis",
    "orjson",
    "lz4",
    "blake3",
    "av",
    "sqlalchemy",
)


class Figure(BaseModel):
    """One bar with what came out; fields as in `Bar`."""

    model_config = ConfigDict(extra="forbid")

    name: str
    figure: float
    limit: float
    better: Literal["lower", "higher"]
    unit: str
    met: bool
    detail: dict[str, Any]

    @classmethod
    def of(cls, bar: Bar) -> Figure:
        """Return a bar's figure, with no more digits than mean something."""
        detail = {name: _rounded(value) for name, value in bar.detail.items()}
        return cls(
            name=bar.name,
            figure=_rounded(bar.figure),
            limit=bar.limit,
            better=bar.better,
            unit=bar.unit,
            met=bar.met,
            detail=detail,
        )


class Machine(BaseModel):
    """Where a piece ran."""

    model_config = ConfigDict(extra="forbid")

    python: str
    system: str
    cpus: int
    cpu: str

    @classmethod
    def here(cls) -> Machine:
        """Return what this machine is, without its name."""
        return cls(
            python=platform.python_version(), system=platform.system(), cpus=os.cpu_count() or 1, cpu=_processor()
        )

    def __str__(self) -> str:
        return f"{self.cpus} × {self.cpu}, Python {self.python} on {self.system}"  # noqa: RUF001 - a multiplication sign


class Measured(BaseModel):
    """The figures of one piece.

    Attributes:
        order: Number of its bar.
        about: What it measures, in markdown: the first paragraph is a title.
        date: Day of the run.
        seconds: How long measuring took.
        machine: Where it ran.
        versions: Ours and the peers' packages.
        bars: What came out.
    """

    model_config = ConfigDict(extra="forbid")

    order: int
    about: str
    date: dt.date
    seconds: float
    machine: Machine
    versions: dict[str, str]
    bars: list[Figure]


class Results(BaseModel):
    """Everything measured, by the piece's name."""

    model_config = ConfigDict(extra="forbid")

    pieces: dict[str, Measured] = {}

    @classmethod
    def load(cls, path: Path = FILE) -> Results:
        """Return what was measured earlier; nothing when there is no such file."""
        return cls.model_validate_json(path.read_bytes()) if path.exists() else cls()

    def save(self, path: Path = FILE) -> None:
        """Write the file, which `load` reads."""
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def in_order(self) -> list[tuple[str, Measured]]:
        """Return the pieces in the order of their bars."""
        return sorted(self.pieces.items(), key=lambda item: (item[1].order, item[0]))


def versions() -> dict[str, str]:
    """Return the versions of ours, of the peers and of what they are built on, of those that are installed."""
    installed = {each.name: each.version for each in metadata.distributions()}
    return {name: installed[name] for name in ("prefect-cache-blocks", *_PACKAGES) if name in installed}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _rounded(value: Any) -> Any:
    """Return floats with five significant digits, in whatever holds them."""
    match value:
        case float():
            return float(f"{value:.5g}")
        case dict():
            return {str(name): _rounded(each) for name, each in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        case list() | tuple():
            return [_rounded(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
        case _:
            return value
