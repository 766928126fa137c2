"""Prefect's own caching of tasks, as its documentation says: a saved block as storage, JSON, keys from the inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import uuid4

from prefect import task
from prefect.cache_policies import INPUTS
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore
from prefect.serializers import JSONSerializer

if TYPE_CHECKING:
    from pathlib import Path

    from prefect.filesystems import WritableFileSystem

# Prefect keeps what a process has read in its memory and gives it back unread. A later run, which is what a cache is
# for, does not have it there, so it is turned off: every hit here is one of the storage.
IN_MEMORY: Final = False


def redis_storage(redis_url: str) -> WritableFileSystem:
    """Return a saved block of prefect-redis."""
    return _saved(import_module("prefect_redis").RedisDatabase.from_connection_string(redis_url))


def file_storage(folder: Path) -> WritableFileSystem:
    """Return a saved block of a folder."""
    return _saved(LocalFileSystem(basepath=str(folder)))


def _saved(block: Any) -> WritableFileSystem:
    block.save(f"bench-{uuid4().hex[:12]}")
    return block


def cached_by_prefect(function: Callable[..., Any], storage: WritableFileSystem, **options: Any) -> Any:
    """Return the function as a task that Prefect caches in this storage."""
    made: Any = task(
        cache_policy=INPUTS,
        result_storage=cast("Any", storage),  # its type names the storages of Prefect's own packages only
        result_serializer=JSONSerializer(),
        cache_result_in_memory=IN_MEMORY,
        persist_result=True,
        **options,
    )
    return made(function)


def plant(storage: WritableFileSystem, results: Iterable[tuple[Mapping[str, Any], Any]]) -> None:
    """Store results under the keys that calls with these arguments, by parameter, will have."""
    store = ResultStore(result_storage=storage, serializer=JSONSerializer(), cache_result_in_memory=IN_MEMORY)
    nothing: Any = None  # the policy looks at the inputs alone
    for arguments, value in results:
        store.write(value, INPUTS.compute_key(nothing, dict(arguments), {}))
