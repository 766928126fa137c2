"""Large objects: constant memory, concurrent ranges, and a write that leaves alone what is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cache_blocks.fingerprint import digest_path
from cache_blocks.tiers.objects import ObjectStore
from cache_blocks.tiers.s3_parts import CONCURRENCY, PART_BYTES, etag_of
from tests.contract.blob_worker import pieces
from tests.servers.s3_faults import s3_faults

if TYPE_CHECKING:
    from tests.servers.s3 import S3Bucket

MIB = 1024 * 1024
LARGE = 320 * MIB
SEVERAL_PARTS = PART_BYTES * 2 + 77


def in_a_process_of_its_own(bucket: S3Bucket, what: str, file: Path) -> int:
    """Send or fetch 320 MiB; return by how much the process has grown."""
    command = [sys.executable, "-m", "tests.contract.blob_worker", f"{bucket.url}/cache", json.dumps(bucket.options)]
    done = subprocess.run([*command, what, str(LARGE), str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.promise("A blob of any size is stored and fetched in constant memory", tries="320 MiB")
def test_a_large_blob_is_sent_and_fetched_in_constant_memory(s3: S3Bucket, tmp_path: Path) -> None:
    file = tmp_path / "fetched"
    grown = in_a_process_of_its_own(s3, "send", file)
    assert grown < 160 * MIB, f"sending took {grown / MIB:.0f} MiB"
    grown = in_a_process_of_its_own(s3, "fetch", file)
    assert grown < 64 * MIB, f"fetching took {grown / MIB:.0f} MiB"
    expected = tmp_path / "expected"
    with expected.open("wb") as stream:
        stream.writelines(pieces(LARGE))
    assert digest_path(file) == digest_path(expected)


def test_a_large_blob_is_fetched_in_concurrent_ranges(s3: S3Bucket, tmp_path: Path) -> None:
    """Four ranges wait at the same time: the server gives none of them until it has been asked for all."""
    with s3_faults(s3) as faults:
        store = ObjectStore(f"{faults.bucket.url}/cache", faults.bucket.options, timeout_seconds=60)
        large = tmp_path / "large"
        large.write_bytes(os.urandom(PART_BYTES * (CONCURRENCY + 1)))
        store.write_file(store.path("large"), large)
        faults.gather(CONCURRENCY, lambda method, _: method == "GET", after=1)
        store.fetch_file(store.path("large"), tmp_path / "fetched")
        assert digest_path(tmp_path / "fetched") == digest_path(large)
        assert faults.count("GET") == CONCURRENCY + 1


@pytest.mark.parametrize("size", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, SEVERAL_PARTS])
@pytest.mark.parametrize("server", ["rclone", "moto"])
def test_every_size_comes_back(server: str, size: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    store: ObjectStore = request.getfixturevalue(server)
    source, copy, path = tmp_path / "source", tmp_path / "copy", store.path(f"size-{size}")
    source.write_bytes(os.urandom(size))
    assert store.write_file(path, source)
    assert store.exists(path) == size
    store.fetch_file(path, copy)
    assert copy.read_bytes() == source.read_bytes() == store.read(path)
    assert store.delete([path]) == 1


@pytest.mark.parametrize("size", [5, SEVERAL_PARTS])
def test_what_is_there_is_left_alone_where_the_server_can(moto: ObjectStore, size: int, tmp_path: Path) -> None:
    first, second, path = tmp_path / "first", tmp_path / "second", moto.path(f"conditional-{size}")
    first.write_bytes(os.urandom(size))
    second.write_bytes(os.urandom(size))
    assert moto.write_file(path, first, only_new=True)
    assert not moto.write_file(path, second, only_new=True)
    assert moto.read(path) == first.read_bytes()
    assert moto.details(path)["ETag"].strip('"') == etag_of(first), "so that it is known without being read"
    assert moto.write_file(path, second)
    assert moto.read(path) == second.read_bytes()
    assert list(moto.unfinished_uploads(moto.path(), 1e12)) == []


@pytest.mark.parametrize("size", [5, SEVERAL_PARTS])
def test_a_server_without_conditional_writes_takes_the_last_one(rclone: ObjectStore, size: int, tmp_path: Path) -> None:
    path = rclone.path(f"conditional-{size}")
    for name in ("first", "second"):
        source = tmp_path / name
        source.write_bytes(os.urandom(size))
        assert rclone.write_file(path, source, only_new=True)
        assert rclone.read(path) == source.read_bytes()
