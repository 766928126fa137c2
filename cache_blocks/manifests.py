"""What a manifest shows of arguments, and what differs between two manifests. Nothing here decides a key.

A manifest names the parts that went into a key: the task's own, and for each argument its digest and how it reads.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, cast

import pydantic
from fsspec.core import OpenFile

from cache_blocks.canonical import digest_value
from cache_blocks.errors import CacheError
from cache_blocks.files import CachedFile

SECRET: Final = "**********"  # noqa: S105 - it stands for one
_CHARACTERS: Final = 80
_LEAVES: Final = 40
_DEPTH: Final = 4
_ABSENT: Final = "(absent)"
_LABELS: Final = {"version": "cache_version"}
_NO_PARTS: Final = frozenset({"inputs", "main", "subject", "file", "sealed"})
"""What a manifest holds besides parts of the key."""
_SENSITIVE: Final = re.compile(
    r"passw|secret|token(?!s)|api_?key|credential|authori[sz]ation|private_?key", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One part that differs.

    Attributes:
        part: Which, such as ``engine.model``, ``audio``, ``cache_version``.
        old: How it read; empty where only its digest is known to differ.
        new: How it reads.
    """

    part: str
    old: str = ""
    new: str = ""

    def __str__(self) -> str:
        return f"{self.part}: {self.old} -> {self.new}" if self.old != self.new else f"{self.part} changed"


def shown(value: Any, *, private: bool = False) -> str | dict[str, str]:
    """Return how an argument reads: short, and a secret or large one never in clear.

    Args:
        value: The argument.
        private: Show its digest alone.

    Returns:
        A line; for a model, dataclass or mapping its leaves by dotted name.
    """
    if private:
        return _digest_of(value)
    leaves = dict(_leaves(value, "", _DEPTH)) if _is_structure(value) else {}
    if leaves and len(leaves) <= _LEAVES:
        return {
            _clean(name): SECRET if _SENSITIVE.search(name) else _clean(_line(leaf)) for name, leaf in leaves.items()
        }
    return _clean(_line(value))


def file_of(function: Callable[..., Any] | None) -> str:
    """Return where a function is written, for people: the file and its folder; nothing when it has none."""
    code = getattr(inspect.unwrap(function), "__code__", None) if function is not None else None
    return "/".join(pathlib.PurePath(code.co_filename).parts[-2:]) if code else ""


def named_files(values: Iterable[Any]) -> list[str]:
    """Return the names of the files among some arguments."""
    files = (CachedFile, pathlib.PurePath, OpenFile)
    # Most arguments are text, and asking abstract classes takes longer than all else that is done for it.
    return [_clean(_line(value)) for value in values if type(value) is not str and isinstance(value, files)]


def changes_between(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Change, ...]:
    """Return what differs between the manifests of two calls of one task, the task's own parts first.

    Args:
        old: Manifest of the earlier call; anything in it may be missing or malformed, it comes from a tier.
        new: Manifest of the later one.
    """
    return (*_task_changes(old, new), *_input_changes(_inputs(old), _inputs(new)))


def main_input(manifest: Mapping[str, Any]) -> str:
    """Return the digest of the first argument, by which the work is known again under another name; or nothing."""
    digest = _part(_inputs(manifest).get(str(manifest.get("main", "")))).get("digest")
    return digest if isinstance(digest, str) else ""


def _task_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for name in sorted((old.keys() | new.keys()) - _NO_PARTS):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if name == "source":
            if before and after:  # otherwise a version took its place, or gave way to it
                yield Change(
                    " ".join(filter(None, ("source:", _text(new.get("file", "")), _text(new.get("function", "")))))
                )
        elif name.startswith("source of "):
            yield Change(name)
        else:
            yield Change(_LABELS.get(name, name), _text(before), _text(after))


def _input_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for name in sorted(old.keys() | new.keys()):
        before, after = _part(old.get(name)), _part(new.get(name))
        if before.get("digest") != after.get("digest"):
            yield from _changes_of(name, before.get("shown", _ABSENT), after.get("shown", _ABSENT))


def _changes_of(name: str, before: Any, after: Any) -> Iterator[Change]:
    """Yield what differs between how an argument read and reads; when that is equal, it is what it does not show."""
    if isinstance(before, dict) and isinstance(after, dict):
        leaves = sorted(before.keys() | after.keys())  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType, reportUnknownMemberType]
        found = [
            Change(f"{name}.{leaf}", _text(before.get(leaf)), _text(after.get(leaf)))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
            for leaf in cast("list[str]", leaves)
            if before.get(leaf) != after.get(leaf)  # pyright: ignore[reportUnknownMemberType]
        ]
        yield from found or [Change(f"{name}: content")]
    elif before == after or isinstance(before, dict) or isinstance(after, dict):
        yield Change(f"{name}: content")
    else:
        yield Change(name, _text(before), _text(after))


def _inputs(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    inputs: Any = manifest.get("inputs")
    return cast("dict[str, Any]", inputs) if isinstance(inputs, dict) else {}


def _part(value: Any) -> Mapping[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return _ABSENT if value is None else str(value)[:_CHARACTERS]


def _is_structure(value: Any) -> bool:
    return isinstance(value, pydantic.BaseModel | Mapping) or _is_record(value)


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type | OpenFile)


def _leaves(value: Any, name: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a structure by dotted name; one that is too deep is a leaf itself."""
    if depth == 0 or not _is_structure(value):
        yield name, value
        return
    for part, inner in _fields(value):
        yield from _leaves(inner, f"{name}.{part}" if name else part, depth - 1)


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, pydantic.BaseModel):
        names: Iterable[str] = type(value).model_fields
        yield from ((name, getattr(value, name)) for name in names)
    elif _is_record(value):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    else:
        yield from ((str(key), inner) for key, inner in cast("Mapping[Any, Any]", value).items())


def _line(value: Any) -> str:
    match value:
        case pydantic.SecretStr() | pydantic.SecretBytes():
            return SECRET
        case CachedFile() | pathlib.PurePath():
            return value.name
        case OpenFile():
            return cast("str", value.path).rpartition("/")[2]
        case None | bool() | int() | float():
            return str(value)[:_CHARACTERS]
        case enum.Enum():
            return value.name
        case str() if len(value) <= _CHARACTERS:
            return value
        case _:
            return _digest_of(value)


def _digest_of(value: Any) -> str:
    """Return what stands for a value that is not shown: its type and the beginning of its digest."""
    try:
        return f"{type(value).__name__} #{digest_value(value, 'shown')[:12]}"
    except (CacheError, OSError):
        return type(value).__name__


def _clean(text: str) -> str:
    """Return text that JSON can hold: a file name that is no UTF-8 comes with lone surrogates."""
    return text.encode("utf-8", "replace").decode()
