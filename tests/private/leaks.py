"""Looking for what should not be there: in bytes as they are, and in the LZ4 frames among them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lz4.frame
from redis import Redis
from sqlalchemy import LargeBinary, MetaData, NullPool, create_engine, select, text
from sqlalchemy.exc import SAWarning

from tests.servers.s3 import S3Bucket

_FRAME = b"\x04\x22\x4d\x18"


@dataclass(frozen=True)
class Needles:
    """Texts that are looked for, in any case of letters."""

    texts: frozenset[str]

    def within(self, contents: Iterable[bytes]) -> set[str]:
        """Those of them that some contents have, as they are or in an LZ4 frame; compressed, none would be found."""
        found: set[str] = set()
        pattern = re.compile(b"|".join(re.escape(needle.lower().encode()) for needle in sorted(self.texts)))
        for content in contents:
            for data in (content, *frames_in(content)):
                found.update(match.decode() for match in pattern.findall(data.lower()))
        return found


def frames_in(data: bytes) -> Iterator[bytes]:
    """What the LZ4 frames hold that begin anywhere in some bytes."""
    start = data.find(_FRAME)
    while start >= 0:
        with suppress(RuntimeError, EOFError):  # bytes that only look like the beginning of one
            yield cast("bytes", lz4.frame.LZ4FrameDecompressor().decompress(data[start:]))
        start = data.find(_FRAME, start + 1)


def words_of(texts: Iterable[str], letters: int) -> frozenset[str]:
    """The words of some texts that have so many letters, and are no words of programs as well."""
    return frozenset(word for said in texts for word in re.findall(rf"[a-z]{{{letters},}}", said.lower()))


def files_in(folder: Path) -> Iterator[bytes]:
    """Names and contents of all files under a folder."""
    for path in folder.rglob("*"):
        yield str(path.relative_to(folder)).encode()
        if path.is_file():
            yield path.read_bytes()


def redis_contents(client: Redis) -> Iterator[bytes]:
    """Every key, value and DUMP, the snapshot, and the append-only file."""
    for key in cast("Iterator[bytes]", client.scan_iter(count=1000)):
        yield key
        yield cast("bytes", client.dump(key))
        if client.type(key) == b"string":
            yield cast("bytes", client.get(key))
    client.save()
    yield from files_in(Path(cast("dict[str, str]", client.config_get("dir"))["dir"]))


def sql_contents(url: str) -> Iterator[bytes]:
    """Every value of every table, and the database's files, its log among them; what they compress is in the values."""
    engine = create_engine(url, poolclass=NullPool)
    tables = MetaData()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SAWarning)  # of indexes on expressions, which hold what the columns do
        tables.reflect(engine)
    with engine.connect() as connection:
        for table in tables.sorted_tables:
            for row in connection.execute(select(table)).mappings():
                for name, value in row.items():
                    is_bytes = isinstance(table.c[name].type, LargeBinary)
                    if value is not None:
                        yield bytes(value) if is_bytes else str(value).encode()
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("CHECKPOINT"))
            folder = Path(str(connection.execute(text("SHOW data_directory")).scalar_one()))
        assert list((folder / "pg_wal").iterdir())
        yield from files_in(folder)
    else:
        file = Path(str(engine.url.database))
        for path in file.parent.glob(f"{file.name}*"):
            yield path.read_bytes()
    engine.dispose()


def s3_contents(bucket: S3Bucket) -> Iterator[bytes]:
    """Name and bytes of every object."""
    client = bucket.client()
    try:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket.bucket):
            listed: list[dict[str, Any]] = page.get("Contents", [])
            for one in listed:
                yield str(one["Key"]).encode()
                yield cast("bytes", client.get_object(Bucket=bucket.bucket, Key=one["Key"])["Body"].read())
    finally:
        client.close()
