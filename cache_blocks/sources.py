"""`cache_source`: helper functions, classes and modules whose source decides a task's result as well.

Their source is read at the first key, not at import, and its digests travel with a pickled task into processes that
may not have it.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from blake3 import blake3

from cache_blocks import forking
from cache_blocks.canonical import digest_value
from cache_blocks.errors import CacheError, ConfigurationError
from cache_blocks.normalising import normalise_source

Source = Callable[..., Any] | type | ModuleType
"""A function, a class or a module."""


class Sources:
    """The sources that `cache_source` names.

    A function counts by its source and what it closes over, a class by its source, a module by the text of its file
    (a package by that of its ``__init__``). Comments, formatting, docstrings and decorators do not count.

    Args:
        objects: Functions, classes and modules.

    Raises:
        ConfigurationError: One of them is something else.
    """

    def __init__(self, objects: Sequence[Source] = ()) -> None:
        self._objects = tuple(_unwrapped(one) for one in objects)
        self._declared = time.time()
        self._digests: dict[str, str] | None = None if self._objects else {}
        self._unreadable = ""
        self._lock = forking.lock()

    def digests(self) -> dict[str, str]:
        """Return the digest of each source by its name; read once.

        Raises:
            ConfigurationError: Python cannot show a source, or it has changed since it was loaded.
            UnhashableArgumentError: A function closes over a value that has no deterministic digest.
        """
        with self._lock:
            if self._unreadable:
                raise ConfigurationError(self._unreadable)
            if self._digests is None:
                self._digests = dict(_numbered((_name(one), self._digest(one, set())) for one in self._objects))
            return self._digests

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sources):
            return NotImplemented
        if self._objects and other._objects:
            return self._objects == other._objects
        return (self._digests, self._unreadable) == (other._digests, other._unreadable)

    __hash__ = None  # type: ignore[assignment]  # what is equal here may be read or unread

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as digests; what cannot be read is told where the key is made, and does not stop the task."""
        try:
            return _restored, (self.digests(), "")
        except CacheError as error:
            return _restored, (None, str(error))

    def _digest(self, source: Source, seen: set[int]) -> str:
        """Return the digest of a source and of what it closes over; what closes over itself counts once."""
        seen.add(id(source))
        hasher = blake3(normalise_source(self._text(source)).encode("utf-8", "surrogatepass"))
        for name, value in _closed_over(source):
            if isinstance(value, FunctionType | type | ModuleType):
                part = "" if id(value) in seen else self._digest(_unwrapped(value), seen)
            else:
                part = digest_value(value, f"cache_source {_name(source)}, its variable {name}")
            hasher.update(f"{name}:{part};".encode())
        return hasher.hexdigest()

    def _text(self, source: Source) -> str:
        """Return a source that is what this process runs: one edited since may be newer than the code in memory."""
        try:
            text = inspect.getsource(source)
            file = Path(inspect.getsourcefile(source) or "")
            changed = file.is_file() and file.stat().st_mtime > self._declared
        except (OSError, TypeError) as error:
            raise ConfigurationError(
                f"cache_source: Python cannot show the source of {_name(source)}; leave it out, and raise "
                "cache_version when it changes"
            ) from error
        if changed:
            raise ConfigurationError(
                f"cache_source: the file of {_name(source)} has changed since this process loaded it; start it again"
            )
        return text


def _restored(digests: dict[str, str] | None, unreadable: str) -> Sources:
    sources = Sources()
    sources._digests, sources._unreadable = digests, unreadable  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return sources


def _unwrapped(source: Any) -> Source:
    """Return what a decorator, a Prefect task among them, was put around."""
    inner: Any = inspect.unwrap(source) if callable(source) else source
    if isinstance(inner, FunctionType | type | ModuleType):
        return inner
    raise ConfigurationError(
        f"cache_source takes functions, classes and modules that are written in Python, not {source!r:.80}"
    )


def _name(source: Source) -> str:
    """Return the name without the place that it was loaded from, which decides nothing."""
    if isinstance(source, ModuleType):
        return source.__name__.rpartition(".")[2]
    return source.__qualname__.rpartition("<locals>.")[2]


def _numbered(digests: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Tell apart what has the same name."""
    used: dict[str, int] = {}
    for name, digest in digests:
        used[name] = used.get(name, 0) + 1
        yield (name if used[name] == 1 else f"{name} ({used[name]})"), digest


def _closed_over(source: Source) -> Iterator[tuple[str, Any]]:
    """Yield names and values of a function's free variables; one that is not set yet has none."""
    if isinstance(source, FunctionType):
        for name, cell in zip(source.__code__.co_freevars, source.__closure__ or (), strict=True):
            try:
                yield name, cell.cell_contents
            except ValueError:  # an empty cell
                yield name, None
