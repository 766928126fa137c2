"""An S3 server that is busy, breaks off or hangs: it is asked again within its time limit; nobody sees a half."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import BotoCoreError

from cache_blocks.tiers.objects import ObjectStore
from cache_blocks.tiers.s3_parts import CONCURRENCY, PART_BYTES
from tests.servers.s3_faults import S3Faults, Trouble, s3_faults

if TYPE_CHECKING:
    from tests.servers.s3 import S3Bucket

LARGE = PART_BYTES + 12_345
"""Bytes of an object that is sent in parts and fetched in ranges."""


@pytest.fixture
def faults(s3: S3Bucket) -> Generator[S3Faults]:
    with s3_faults(s3) as faults:
        yield faults


@pytest.fixture
def store(faults: S3Faults) -> ObjectStore:
    return ObjectStore(f"{faults.bucket.url}/cache", faults.bucket.options, timeout_seconds=20)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(LARGE))
    return path


def objects_of(bucket: S3Bucket) -> dict[str, int]:
    """What everybody sees in the bucket, by size."""
    with closing(bucket.client()) as client:
        return {each["Key"]: each["Size"] for each in client.list_objects_v2(Bucket=bucket.bucket).get("Contents", [])}


def always(faults: S3Faults, trouble: Trouble) -> None:
    for _ in range(1000):
        faults.troubles.append(trouble)


PASSING: list[Trouble] = ["busy", "reset", "reset after", "half"]


@pytest.mark.parametrize("trouble", PASSING)
def test_a_small_object_is_read_all_the_same(trouble: Trouble, faults: S3Faults, store: ObjectStore) -> None:
    path, data = store.path("entry"), os.urandom(100_000)
    store.write(path, data)
    faults.troubles.extend([trouble, trouble])
    assert store.read(path) == data
    assert not faults.troubles


@pytest.mark.parametrize("trouble", ["busy", "reset", "reset after"])  # the answer is empty, and has no half
def test_a_small_object_is_written_all_the_same(trouble: Trouble, faults: S3Faults, store: ObjectStore) -> None:
    path, data = store.path("entry"), os.urandom(100_000)
    faults.troubles.extend([trouble, trouble])
    store.write(path, data)
    assert not faults.troubles
    assert store.read(path) == data


@pytest.mark.parametrize("trouble", PASSING)
@pytest.mark.parametrize("step", ["?uploads", "partNumber=", "?uploadId="], ids=["begin", "parts", "end"])
def test_a_large_object_is_written_all_the_same(
    trouble: Trouble, step: str, faults: S3Faults, store: ObjectStore, large: Path, tmp_path: Path
) -> None:
    faults.on = lambda _, path: step in path
    faults.troubles.append(trouble)
    path = store.path("blob")
    assert store.write_file(path, large)
    assert not faults.troubles
    store.fetch_file(path, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == large.read_bytes()


@pytest.mark.parametrize("trouble", PASSING)
def test_a_large_object_is_fetched_all_the_same(
    trouble: Trouble, faults: S3Faults, store: ObjectStore, large: Path, tmp_path: Path
) -> None:
    path = store.path("blob")
    store.write_file(path, large)
    faults.troubles.extend([trouble, "", trouble, ""])
    store.fetch_file(path, tmp_path / "copy")
    assert not faults.troubles
    assert (tmp_path / "copy").read_bytes() == large.read_bytes()


@pytest.mark.parametrize("step", ["GET", "PUT", "POST"], ids=["a range", "a part", "the upload"])
@pytest.mark.promise("A transfer to the object store that fails leaves no half object, neither there nor here")
def test_what_does_not_work_leaves_no_half(
    step: str, faults: S3Faults, store: ObjectStore, s3: S3Bucket, large: Path, tmp_path: Path
) -> None:
    path, copy = store.path("blob"), tmp_path / "copy"
    if step == "GET":
        store.write_file(path, large)
    faults.on = lambda method, path: method == step and "uploads" not in path
    always(faults, "reset")
    with pytest.raises((OSError, BotoCoreError)):
        store.fetch_file(path, copy) if step == "GET" else store.write_file(path, large)
    faults.troubles.clear()
    if step == "GET":
        assert objects_of(s3) == {"cache/blob": LARGE}
    else:
        assert objects_of(s3) == {}
        assert store.exists(path) is None
        assert list(store.unfinished_uploads(store.path(), time.time() + 10)) == [], "what was sent has been removed"


@pytest.mark.parametrize(
    "operation, trouble",
    [
        *((operation, "stall") for operation in ("read", "fetch", "write", "send")),
        *((operation, "stall in the middle") for operation in ("read", "fetch")),  # to others the answer is short
    ],
)
@pytest.mark.promise("An S3 server that hangs, even in the middle of a transfer, costs its time limit once")
def test_what_hangs_is_left_after_the_time_limit(
    trouble: Trouble, operation: str, faults: S3Faults, store: ObjectStore, large: Path, tmp_path: Path
) -> None:
    """Without a clock: a request that hangs is repeated once at most, because each is given half of the limit."""
    path = store.path("blob")
    store.write_file(path, large)
    store = ObjectStore(f"{faults.bucket.url}/cache", faults.bucket.options, timeout_seconds=1)
    faults.seen.clear()
    always(faults, trouble)
    with pytest.raises((OSError, BotoCoreError)):
        {
            "read": lambda: store.read(path),
            "fetch": lambda: store.fetch_file(path, tmp_path / "copy"),
            "write": lambda: store.write(path, b"small"),
            "send": lambda: store.write_file(path, large),
        }[operation]()
    assert faults.count("GET") <= 2 * CONCURRENCY
    assert faults.count("PUT") + faults.count("POST") <= 2
