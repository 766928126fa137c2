"""What is measured: one module a piece.

Each has a docstring that says what it measures (the first line is its title), ``ORDER`` (its bar's number) and
``measure(bench) -> list[Bar]``.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Collection
from dataclasses import dataclass
from importlib import import_module
from inspect import cleandoc
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.measuring import Bar, Bench


@dataclass(frozen=True)
class Piece:
    """A piece of the benchmark.

    Attributes:
        name: Name of its module.
        order: Number of its bar.
        about: Its docstring.
    """

    name: str
    order: int
    about: str

    @property
    def title(self) -> str:
        """What it measures, in a line."""
        return self.about.splitlines()[0].rstrip(".")

    def measure(self, bench: Bench) -> list[Bar]:
        """Measure."""
        return _module(self.name).measure(bench)


def names() -> list[str]:
    """Return the names of all pieces."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def pieces(chosen: Collection[str]) -> list[Piece]:
    """Return the pieces of these names, in the order of the bars."""
    modules = {name: _module(name) for name in chosen}
    made = [Piece(name, each.ORDER, cleandoc(each.__doc__)) for name, each in modules.items()]
    return sorted(made, key=lambda piece: (piece.order, piece.name))


def _module(name: str) -> Any:
    return import_module(f"{__name__}.{name}")
