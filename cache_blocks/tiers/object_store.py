"""The far tier: any fsspec file system. Entries here survive a lost database; blobs live nowhere else.

Layout under the configured URL::

    NAMESPACE/entries/KIND/ab/DIGEST      envelopes
    NAMESPACE/blobs/ab/DIGEST             contents of files
    NAMESPACE/generations/DIGEST/NUMBER   mirror of invalidations; the highest number counts

An object appears whole or not at all.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, cast

import orjson
from fsspec.implementations.local import LocalFileSystem

from cache_blocks.entry import Entry, is_key
from cache_blocks.errors import ConfigurationError, TierUnavailableError
from cache_blocks.fingerprint import digest_bytes, open_file_system
from cache_blocks.tiers.base import BackendTier, describe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fsspec import AbstractFileSystem

_ATOMIC_PROTOCOLS: Final = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "az", "memory"})
_TEMPORARY: Final = ".tmp-"
_MIRROR_ATTEMPTS: Final = 20


class ObjectStore:
    """A folder of a file system in which objects appear whole or not at all.

    Args:
        url: fsspec URL of the root.
        options: Handed to fsspec.
        timeout_seconds: Limit of one request, where the file system knows one.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None, timeout_seconds: float = 5.0) -> None:
        self._url = url
        self._options = dict(options or {})
        self._timeout = timeout_seconds
        self._lock = threading.Lock()
        self._opened: tuple[int, AbstractFileSystem, str] | None = None
        self._parents: list[Any] = []

    @property
    def label(self) -> str:
        """The URL, for people: without user, password and query, which may be secrets."""
        scheme, separator, rest = self._url.partition("://")
        return f"{scheme}{separator}{rest.partition('?')[0].rpartition('@')[2]}"

    @property
    def fs(self) -> AbstractFileSystem:
        """The file system of this process; a fork opens its own."""
        return self._open()[0]

    @property
    def local_root(self) -> Path | None:
        """The root as a local folder, if it is one."""
        fs, root = self._open()
        return Path(root) if isinstance(fs, LocalFileSystem) else None

    def path(self, *parts: str) -> str:
        """Return the path of an object in the file system's own form."""
        return "/".join((self._open()[1], *parts))

    def read(self, path: str) -> bytes | None:
        """Return an object's bytes, or None when there is none."""
        try:
            return cast("bytes", self.fs.cat_file(path))
        except FileNotFoundError:
            return None

    def read_many(self, paths: Sequence[str]) -> dict[str, bytes]:
        """Return the objects that exist, fetched concurrently where the file system can."""
        if len(paths) == 1:
            data = self.read(paths[0])
            return {} if data is None else {paths[0]: data}
        answers = cast("dict[str, bytes | Exception]", self.fs.cat(list(paths), on_error="return")) if paths else {}
        for answer in answers.values():
            if isinstance(answer, Exception) and not isinstance(answer, FileNotFoundError):
                raise answer
        return {path: answer for path, answer in answers.items() if isinstance(answer, bytes)}

    def write(self, path: str, data: bytes) -> None:
        """Publish an object."""
        with self._publishing(path) as target:
            if self.local_root is not None:
                Path(target.name).write_bytes(data)
            else:
                self.fs.pipe_file(target.name, data)

    def write_file(self, path: str, source: Path) -> None:
        """Publish a local file's bytes, in constant memory."""
        with self._publishing(path) as target:
            if self.local_root is not None:
                shutil.copyfile(source, target.name)
            else:
                self.fs.put_file(str(source), target.name)

    def fetch_file(self, path: str, target: Path) -> None:
        """Copy an object to a local file, in constant memory; FileNotFoundError when there is none."""
        self.fs.get_file(path, str(target))

    def exists(self, path: str) -> int | None:
        """Return an object's size, or None when there is none."""
        try:
            self.fs.invalidate_cache()
            return int(self.details(path)["size"])
        except FileNotFoundError:
            return None

    def details(self, path: str) -> dict[str, Any]:
        """Return what the file system says of an object, such as its size and times."""
        return cast("dict[str, Any]", self.fs.info(path))

    def delete(self, paths: Sequence[str]) -> int:
        """Remove objects; return how many there were."""
        removed = 0
        for path in paths:
            try:
                if self.exists(path) is not None:
                    self.fs.rm_file(path)
                    removed += 1
            except FileNotFoundError:
                continue
        return removed

    def walk(self, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield path and details (size, times) of every object under a prefix, unfinished ones too."""
        self.fs.invalidate_cache()
        try:
            found = cast("dict[str, dict[str, Any]]", self.fs.find(prefix, detail=True))
        except FileNotFoundError:
            return
        yield from found.items()

    def _publishing(self, path: str) -> _Publication:
        fs, _ = self._open()
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        return _Publication(fs, path, in_one_step=bool(protocols & _ATOMIC_PROTOCOLS))

    def _open(self) -> Any:
        opened = self._opened
        if opened is None or opened[0] != os.getpid():
            with self._lock:
                self._parents.append(opened)  # let go of in a child, it would disturb the parent's connections
                opened = (os.getpid(), *self._connect())
                self._opened = opened
        return opened[1:]

    def _connect(self) -> tuple[AbstractFileSystem, str]:
        options = dict(self._options)
        if self._url.startswith(("s3:", "s3a:")):
            each = self._timeout / 2  # two attempts, since servers cut idle connections; s3fs alone would make 15
            limits = {"connect_timeout": each, "read_timeout": each, "retries": {"total_max_attempts": 2}}
            options["config_kwargs"] = limits | dict(options.get("config_kwargs", {}))
            options.setdefault("use_listings_cache", False)
        try:
            fs, root = open_file_system(self._url, skip_instance_cache=True, **options)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(f"object store {self.label}: {error}") from error
        cast("Any", fs).retries = 1  # s3fs's own, on top of botocore's; others have none
        return fs, root.rstrip("/")


class _Publication:
    """Writes go to ``name``; leaving without an error makes them the object, leaving with one removes them."""

    def __init__(self, fs: AbstractFileSystem, path: str, *, in_one_step: bool) -> None:
        self._fs = fs
        self._path = path
        parent, _, last = path.rpartition("/")
        self.name = path if in_one_step else f"{parent}/{_TEMPORARY}{secrets.token_hex(8)}-{last}"
        if not in_one_step:
            fs.makedirs(parent, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if self.name == self._path:
            return
        if error_type is not None:
            if self._fs.exists(self.name):
                self._fs.rm_file(self.name)
        elif isinstance(self._fs, LocalFileSystem):
            Path(self.name).replace(self._path)
        else:
            self._fs.mv(self.name, self._path)


class ObjectStoreTier(BackendTier):
    """Keeps entries as objects, and the mirror of the generations.

    Args:
        store: Where the objects are.
        namespace: Environment that the entries belong to.
    """

    name: ClassVar[str] = "object_store"
    outages: ClassVar[tuple[type[BaseException], ...]] = (Exception,)  # fsspec backends raise what they please

    def __init__(self, store: ObjectStore, namespace: str = "default") -> None:
        super().__init__(namespace)
        self.store = store

    def mirror_generations(self, generations: Mapping[str, int]) -> None:
        """Keep a copy of these numbers, from which an emptied database is seeded.

        Each is an object of its own, so that of two invalidations at once the slower does not lower the number.
        """
        with self._outage():
            for scope, number in generations.items():
                content = orjson.dumps({"scope": scope, "number": number})
                self.store.write(self._generation_path(scope, number), content)
                folder = self._generation_path(scope)
                kept = {path: _number_in(path) for path, _ in self.store.walk(folder) if _TEMPORARY not in path}
                self.store.delete([path for path, other in kept.items() if other < max(kept.values())])

    def mirrored_generations(self) -> dict[str, int]:
        """Return all numbers of the mirror.

        Raises:
            TierUnavailableError: The mirror cannot be read whole; an unknown number must not count as zero.
        """
        numbers: dict[str, int] = {}
        with self._outage():
            for path, data in self._mirror().items():
                try:
                    content: dict[str, Any] = orjson.loads(data)
                    scope, number = str(content["scope"]), int(content["number"])
                except (ValueError, KeyError, TypeError) as error:
                    raise TierUnavailableError(self.name, f"mirror of generations: {describe(error)}") from error
                if self._generation_path(scope, number) != path:
                    raise TierUnavailableError(self.name, f"mirror of generations: {path} holds another scope")
                numbers[scope] = max(number, numbers.get(scope, 0))
        return numbers

    def _mirror(self) -> dict[str, bytes]:
        """Return all objects of the mirror. One that goes while it is read gave way to a higher number: look again."""
        prefix = self.store.path(self.namespace, "generations")
        for _ in range(_MIRROR_ATTEMPTS):
            paths = [path for path, _ in self.store.walk(prefix) if _TEMPORARY not in path]
            found = self.store.read_many(paths)
            if len(found) == len(paths):
                return found
        raise TierUnavailableError(self.name, "mirror of generations: it changes faster than it can be read")

    def _fetch(
        self, keys: Sequence[str], scopes: Sequence[str]
    ) -> tuple[dict[str, bytes], dict[str, int], dict[str, int]]:
        del scopes
        by_path = {self._entry_path(key): key for key in keys}
        found = self.store.read_many(list(by_path))
        return {by_path[path]: data for path, data in found.items()}, {}, {}

    def _store(self, items: Sequence[tuple[Entry, bytes]]) -> set[str]:
        for entry, envelope in items:
            self.store.write(self._entry_path(entry.key), envelope)
        return {entry.key for entry, _ in items}

    def _remove(self, keys: Sequence[str]) -> int:
        return self.store.delete([self._entry_path(key) for key in keys])

    def _scan(self) -> Iterator[str]:
        prefix = self.store.path(self.namespace, "entries")
        for path, _ in self.store.walk(prefix):
            *_, kind, _, digest = path.split("/")
            if is_key(key := f"{kind}:{digest}") and self._entry_path(key) == path:  # somebody's stray file is none
                yield key

    def _describe(self) -> str:
        self.store.exists(self.store.path(self.namespace, "entries"))
        return self.store.label

    def _entry_path(self, key: str) -> str:
        kind, _, digest = key.partition(":")
        return self.store.path(self.namespace, "entries", kind, f"{digest_bytes(digest.encode())[:2]}", digest)

    def _generation_path(self, scope: str, *number: int) -> str:
        return self.store.path(self.namespace, "generations", digest_bytes(scope.encode()), *map(str, number))


def _number_in(path: str) -> int:
    """Return the number that an object of the mirror is named after; a stray file's is the lowest."""
    name = path.rpartition("/")[2]
    return int(name) if name.isdecimal() else -1
