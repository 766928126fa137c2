"""What is stored where: bytes in Redis by sort of key, in PostgreSQL by table and index, in the object store."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from benchmarks.simulation.results import Sizes, Table, rounded
from benchmarks.simulation.servers import NAMESPACE, PREFIX
from cache_blocks.schema import EntryRow, table

if TYPE_CHECKING:
    from benchmarks.simulation.servers import Servers

_SAMPLE: Final = 5_000
_TABLES: Final = """
SELECT relname AS name, n_dead_tup AS dead, pg_table_size(relid) AS bytes, relid FROM pg_stat_user_tables
WHERE relname LIKE 'cache\\_blocks\\_%' ORDER BY relname
"""
_INDEXES: Final = """
SELECT indexrelname AS name, pg_relation_size(indexrelid) AS bytes FROM pg_stat_user_indexes
WHERE relid = {relid} ORDER BY indexrelname
"""
_COLUMNS: Final = " + ".join(f"pg_column_size({column.name})" for column in table(EntryRow).columns)
_KINDS: Final = f"""
SELECT kind, avg(stored_bytes) AS payload, avg({_COLUMNS}) AS columns FROM cache_blocks_entry
GROUP BY kind ORDER BY kind
"""  # noqa: S608 - constants


def sizes(servers: Servers) -> Sizes:
    """Measure what is stored; vacuums the tables, which is timed."""
    kinds = {str(row["kind"]): row for row in servers.postgres(_KINDS)}
    with servers.redis as client:
        used = int(client.info("memory")["used_memory"])
        keys = client.dbsize()
    objects, object_bytes = _stored(servers.store_folder / NAMESPACE / PREFIX / NAMESPACE)
    return Sizes(
        redis=_redis(servers, used, keys),
        redis_bytes=used,
        redis_keys=keys,
        tables={str(row["name"]): _table(servers, row) for row in servers.postgres(_TABLES)},
        objects=objects,
        object_bytes=object_bytes,
        column_bytes={kind: rounded(float(row["columns"])) for kind, row in kinds.items()},
        payload_bytes={kind: rounded(float(row["payload"])) for kind, row in kinds.items()},
    )


def _stored(folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Return how many objects there are, and how many bytes, of each sort."""
    count: Counter[str] = Counter()
    bytes_: Counter[str] = Counter()
    for path in folder.rglob("*"):
        if path.is_file():
            sort = path.relative_to(folder).parts[0]
            count[sort] += 1
            bytes_[sort] += path.stat().st_size
    return dict(count), dict(bytes_)


def _table(servers: Servers, row: dict[str, Any]) -> Table:
    indexes = {str(each["name"]): int(each["bytes"]) for each in servers.postgres(_INDEXES.format(relid=row["relid"]))}
    began = time.perf_counter()
    servers.postgres(f"VACUUM (ANALYZE) {row['name']}")
    return Table(
        rows=int(servers.postgres(f"SELECT count(*) AS rows FROM {row['name']}")[0]["rows"]),  # noqa: S608 - its own name
        bytes=int(row["bytes"]),
        indexes=indexes,
        vacuum_seconds=rounded(time.perf_counter() - began),
        dead_rows=int(row["dead"]),
    )


def _redis(servers: Servers, used: int, keys: int) -> dict[str, float]:
    """Return what a key of each sort takes in the mean of a sample, such that all add up to what Redis uses.

    Args:
        servers: The servers.
        used: Bytes that Redis uses.
        keys: How many keys it has.
    """
    with servers.redis as client:
        asked = client.pipeline(transaction=False)
        for _ in range(_SAMPLE):
            asked.randomkey()
        names = [name for name in cast("list[bytes | None]", asked.execute()) if name is not None]
        for name in names:
            asked.memory_usage(name)
        taken = cast("list[int | None]", asked.execute())
    by_sort: dict[str, list[int]] = {}
    for name, bytes_ in zip(names, taken, strict=True):
        if bytes_ is not None:
            by_sort.setdefault(_sort_of(name.decode()), []).append(bytes_)
    told = sum(sum(found) for found in by_sort.values()) / max(sum(len(found) for found in by_sort.values()), 1)
    more = used / max(keys * told, 1)  # its tables, and what its allocator cannot give out
    return {sort: rounded(more * sum(found) / len(found)) for sort, found in sorted(by_sort.items())}


def _sort_of(name: str) -> str:
    """Return what a key is about: ``entry transcript``, ``generation tag``."""
    what, _, rest = name.removeprefix(f"cache-blocks:{NAMESPACE}:").partition(":")
    return f"{what} {rest.partition(':')[0]}"
