"""Uploads that nobody finishes: collected after a grace time, and nobody else's are."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from cache_blocks import TieredCache
from cache_blocks.blobs import GRACE_SECONDS
from cache_blocks.maintenance import collect
from cache_blocks.settings import CacheSettings
from cache_blocks.tiers.s3_parts import PART_BYTES
from tests.faults.conftest import until

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.servers.s3 import S3Bucket

AFTER_GRACE = GRACE_SECONDS + 60

SENDING = """
import json, sys, time
from cache_blocks.tiers.objects import ObjectStore
from cache_blocks.tiers.s3_parts import PART_BYTES

def pieces():
    for _ in range(2):
        yield bytes(PART_BYTES)
    yield b"and"
    time.sleep(600)

store = ObjectStore(sys.argv[1], json.loads(sys.argv[2]))
store.write_pieces(store.path("default", "blobs", "ab", "never"), pieces())
"""


@pytest.fixture(params=["s3", "s3_conditional"])
def bucket(request: pytest.FixtureRequest) -> S3Bucket:
    """A bucket on each of the servers."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def client(bucket: S3Bucket) -> Generator[Any]:
    with closing(bucket.client()) as client:
        yield client


@pytest.fixture
def cache(bucket: S3Bucket) -> Generator[TieredCache]:
    values: dict[str, Any] = {
        "object_store_url": f"{bucket.url}/cache",
        "object_store_options": orjson.dumps(bucket.options).decode(),
        "object_store_timeout_seconds": 30,
    }
    cache = TieredCache(CacheSettings(**values))
    yield cache
    cache.close()


def begin(client: Any, bucket: S3Bucket, key: str, size: int = PART_BYTES) -> str:
    upload: str = client.create_multipart_upload(Bucket=bucket.bucket, Key=key)["UploadId"]
    client.upload_part(Bucket=bucket.bucket, Key=key, UploadId=upload, PartNumber=1, Body=bytes(size))
    return upload


def uploads_of(client: Any, bucket: S3Bucket) -> set[str]:
    try:
        return {each["Key"] for each in client.list_multipart_uploads(Bucket=bucket.bucket).get("Uploads", [])}
    except client.exceptions.ClientError:  # rclone, where there are none
        return set()


@pytest.mark.promise("What was begun to be stored and never finished is collected after a grace time, and nothing else")
def test_unfinished_uploads_go_after_their_grace_time(cache: TieredCache, client: Any, bucket: S3Bucket) -> None:
    others = {"cache/other-namespace/blobs/ab/x", "cache/defaultish/blobs/ab/x", "elsewhere/x"}
    for key in ("cache/default/blobs/ab/first", "cache/default/entries/transcript/ab/second", *others):
        begin(client, bucket, key)
    early = collect(cache)
    assert (early.unfinished, early.errors) == (0, []), "somebody may still be sending"
    dry = collect(cache, now=time.time() + AFTER_GRACE, dry_run=True)
    late = collect(cache, now=time.time() + AFTER_GRACE)
    assert dry.unfinished == late.unfinished == 2
    assert late.bytes_freed == 2 * PART_BYTES
    assert late.errors == []
    assert uploads_of(client, bucket) == others
    assert collect(cache, now=time.time() + AFTER_GRACE).unfinished == 0


def test_a_process_that_dies_while_it_sends_leaves_what_maintenance_takes(
    cache: TieredCache, client: Any, bucket: S3Bucket
) -> None:
    arguments = [f"{bucket.url}/cache", orjson.dumps(bucket.options).decode()]
    with subprocess.Popen([sys.executable, "-c", SENDING, *arguments]) as sender:
        until(lambda: uploads_of(client, bucket) == {"cache/default/blobs/ab/never"})
        sender.send_signal(signal.SIGKILL)
    assert collect(cache, now=time.time() + AFTER_GRACE).unfinished == 1
    assert uploads_of(client, bucket) == set()
