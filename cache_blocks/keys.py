"""Keys: everything that decides a result, hashed, and named in a manifest."""

from __future__ import annotations

import dataclasses
import enum
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import pydantic
from blake3 import blake3
from fsspec.core import OpenFile

from cache_blocks.canonical import digest_value
from cache_blocks.entry import check_key, check_tags
from cache_blocks.files import CachedFile
from cache_blocks.normalising import normalise_source

if TYPE_CHECKING:
    from cache_blocks.kinds import CacheKind

CacheTag = str | Callable[[dict[str, Any]], "str | Iterable[str]"]
"""A tag, or a function of the task's arguments that gives one or several."""

_SHOWN_CHARACTERS: Final = 80


@dataclasses.dataclass(frozen=True, slots=True)
class TaskIdentity:
    """What makes a task this task, wherever its file lies and however it was loaded.

    Attributes:
        name: The task's name.
        qualified_name: ``__qualname__`` of its function.
        version: ``cache_version`` if one is given, which then stands for the source.
        source: The function's source; None when Python cannot show it.
        helpers: Digests of the further sources that ``cache_source`` names, by name.
    """

    name: str
    qualified_name: str
    version: str | None = None
    source: str | None = None
    helpers: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])

    def parts(self) -> dict[str, str]:
        """Return the named parts that go into a key."""
        helpers = {f"source of helper {name}": digest for name, digest in self.helpers.items()}
        parts = {"task": self.name, "function": self.qualified_name} | helpers
        if self.version is not None:
            return parts | {"version": self.version}
        return parts | {"source": blake3(normalise_source(self.source or "").encode()).hexdigest()}


@dataclasses.dataclass(frozen=True, slots=True)
class BuiltKey:
    """A key with the manifest of its parts.

    Attributes:
        key: ``kind:digest``.
        tags: Tags of the entry.
        manifest: Named parts: the task's, and per argument its digest and how it reads.
    """

    key: str
    tags: tuple[str, ...]
    manifest: dict[str, Any]


def build_key(
    kind: CacheKind,
    task: TaskIdentity,
    arguments: Mapping[str, Any],
    *,
    ignore: Sequence[str] = (),
    tags: Sequence[CacheTag] = (),
) -> BuiltKey:
    """Return the key and manifest of one call.

    Args:
        kind: Kind of the result.
        task: Identity of the task.
        arguments: Arguments by parameter name.
        ignore: Parameters that do not decide the result.
        tags: Tags, or functions of the arguments.

    Raises:
        UnhashableArgumentError: An argument has no deterministic digest.
        OSError: A file among the arguments cannot be read.
    """
    inputs = {
        name: {"digest": digest_value(value, name), "shown": shown(value)}
        for name, value in sorted(arguments.items())
        if name not in ignore
    }
    parts = task.parts()
    decisive = {**parts, "inputs": {name: part["digest"] for name, part in inputs.items()}}
    return BuiltKey(
        key=check_key(f"{kind.name}:{digest_value(decisive, 'key')}"),
        tags=resolve_tags(tags, arguments),
        manifest={**parts, "inputs": inputs},
    )


def make_key(kind: CacheKind, *parts: Any) -> str:
    """Return a key for use without a task: ``kind`` and the digest of ``parts``."""
    return check_key(f"{kind.name}:{digest_value(list(parts), 'parts')}")


def resolve_tags(tags: Sequence[CacheTag], arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the tags of one call, the functions among them applied to its arguments."""
    resolved: list[str] = []
    for tag in tags:
        answer = tag if isinstance(tag, str) else tag(dict(arguments))
        resolved.extend([answer] if isinstance(answer, str) else answer)
    return check_tags(resolved)


def shown(value: Any) -> str:
    """Return how a value reads in a manifest: short, and a secret or large one never in clear."""
    # A file name that is no UTF-8 comes as text with lone surrogates, which JSON does not have.
    return _shown(value).encode("utf-8", "replace").decode()


def _shown(value: Any) -> str:
    match value:
        case pydantic.SecretStr() | pydantic.SecretBytes():
            return "**********"
        case CachedFile() | pathlib.PurePath():
            return value.name
        case OpenFile():
            return cast("str", value.path).rpartition("/")[2]
        case None | bool() | int() | float() | enum.Enum():
            return str(value)[:_SHOWN_CHARACTERS]
        case str() if len(value) <= _SHOWN_CHARACTERS:
            return value
        case _:
            return type(value).__name__


def named_files(values: Iterable[Any]) -> list[str]:
    """Return the names of the files among some arguments."""
    files = (CachedFile, pathlib.PurePath, OpenFile)
    return [shown(value) for value in values if isinstance(value, files)]
