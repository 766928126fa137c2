"""Keys: everything that decides a result, hashed, and named in a manifest."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from cache_blocks.canonical import digest_value
from cache_blocks.entry import check_key, check_tags
from cache_blocks.manifests import file_of, shown
from cache_blocks.normalising import normalise_source
from cache_blocks.records import record

if TYPE_CHECKING:
    from cache_blocks.kinds import CacheKind

CacheTag = str | Callable[[dict[str, Any]], "str | Iterable[str]"]
"""A tag, or a function of the task's arguments that gives one or several."""


@record
class TaskIdentity:
    """What makes a task this task, wherever its file lies and however it was loaded.

    Attributes:
        name: The task's name.
        qualified_name: ``__qualname__`` of its function.
        version: ``cache_version`` if one is given, which then stands for the source.
        source: The function's source; None when Python cannot show it.
        helpers: Digests of the further sources that ``cache_source`` names, by name.
        function: What is run; a manifest says in which file it is, which is no part of the key.
    """

    name: str
    qualified_name: str
    version: str | None = None
    source: str | None = None
    helpers: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    function: Callable[..., Any] | None = None

    def parts(self) -> dict[str, str]:
        """Return the named parts that go into a key."""
        helpers = {f"source of helper {name}": digest for name, digest in self.helpers.items()}
        parts = {"task": self.name, "function": self.qualified_name} | helpers
        if self.version is not None:
            return parts | {"version": self.version}
        return parts | {"source": _source_digest(self.source or "")}


@functools.lru_cache(maxsize=1024)
def _source_digest(source: str) -> str:
    return blake3(normalise_source(source).encode()).hexdigest()


@record
class BuiltKey:
    """A key with what went into it.

    Attributes:
        key: ``kind:digest``.
        tags: Tags of the entry.
        task: Identity of the task.
        digests: Digest of each argument that decides the result.
        arguments: The arguments themselves.
        private: Those that are shown by their digest alone.
    """

    key: str
    tags: tuple[str, ...]
    task: TaskIdentity
    digests: Mapping[str, str]
    arguments: Mapping[str, Any]
    private: Sequence[str] = ()

    def manifest(self) -> dict[str, Any]:
        """Return the named parts: the task's, and per argument its digest and how it reads. A hit needs none."""
        inputs = {
            name: {"digest": digest, "shown": shown(self.arguments[name], private=name in self.private)}
            for name, digest in self.digests.items()
        }
        where = {"file": file} if (file := file_of(self.task.function)) else {}
        main = next((name for name in self.arguments if name in self.digests), "")
        return {**self.task.parts(), **where, "main": main, "inputs": inputs}


def build_key(
    kind: CacheKind,
    task: TaskIdentity,
    arguments: Mapping[str, Any],
    *,
    ignore: Sequence[str] = (),
    private: Sequence[str] = (),
    tags: Sequence[CacheTag] = (),
) -> BuiltKey:
    """Return the key of one call, and what its manifest is made of.

    Args:
        kind: Kind of the result.
        task: Identity of the task.
        arguments: Arguments by parameter name.
        ignore: Parameters that do not decide the result.
        private: Parameters whose values are never stored or shown in clear.
        tags: Tags, or functions of the arguments.

    Raises:
        UnhashableArgumentError: An argument has no deterministic digest.
        OSError: A file among the arguments cannot be read.
    """
    digests = {name: digest_value(value, name) for name, value in sorted(arguments.items()) if name not in ignore}
    key = check_key(f"{kind.name}:{digest_value({**task.parts(), 'inputs': digests}, 'key')}")
    return BuiltKey(key, resolve_tags(tags, arguments), task, digests, arguments, private)


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
