"""S3: servers that speak it, and one bucket per test."""

from __future__ import annotations

import shutil
import sys
import sysconfig
import uuid
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import boto3
from botocore.exceptions import ClientError

from tests.servers.process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Generator

REGION = "us-east-1"


@dataclass(frozen=True)
class S3Account:
    """An S3 endpoint and the rights to use it."""

    endpoint: str
    key: str
    secret: str = field(repr=False)

    @property
    def options(self) -> dict[str, Any]:
        """What `fsspec.filesystem("s3", **options)` takes."""
        client = {"endpoint_url": self.endpoint, "region_name": REGION}
        return {"key": self.key, "secret": self.secret, "client_kwargs": client}

    def client(self) -> Any:
        """A boto3 client, whose class boto3 makes at run time; to be closed by the caller."""
        client = cast("Any", boto3.client)
        return client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
        )


@dataclass(frozen=True)
class S3Bucket(S3Account):
    """A bucket that is empty when a test begins."""

    bucket: str = ""

    @property
    def url(self) -> str:
        """The bucket as fsspec names it."""
        return f"s3://{self.bucket}"

    def with_secret(self, secret: str) -> S3Bucket:
        """The same bucket, asked for with another secret."""
        return replace(self, secret=secret)


@contextmanager
def rclone_server(directory: Path) -> Generator[S3Account]:
    """`rclone serve s3` over a folder: it checks signatures and writes what it is given."""
    binary = shutil.which("rclone") or str(Path(sysconfig.get_path("scripts")) / "rclone")
    account = S3Account("", "test-key", uuid.uuid4().hex)
    (directory / "data").mkdir()
    command = [binary, "serve", "s3", str(directory / "data"), "--config", "", "--addr", "127.0.0.1:0"]
    command += ["--auth-key", f"{account.key},{account.secret}"]
    process = ServerProcess(command, directory / "rclone.log")
    found = process.start(r"Starting s3 server on \[(http://[\d.:]+)/?\]")
    try:
        yield replace(account, endpoint=found[1])
    finally:
        process.stop()


@contextmanager
def moto_server(directory: Path) -> Generator[S3Account]:
    """Moto's server: it knows conditional writes (`If-None-Match`), and accepts any secret."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    process = ServerProcess(command, directory / "moto.log")
    found = process.start(r"Running on (http://[\d.:]+)")
    try:
        yield S3Account(found[1], "test-key", "test-secret")
    finally:
        process.stop()


@contextmanager
def fresh_bucket(account: S3Account) -> Generator[S3Bucket]:
    """An empty bucket, removed afterwards with what is in it."""
    name = f"test-{uuid.uuid4().hex}"
    with closing(account.client()) as client:
        client.create_bucket(Bucket=name)
        yield S3Bucket(account.endpoint, account.key, account.secret, name)
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
            for entry in page.get("Contents", ()):
                client.delete_object(Bucket=name, Key=entry["Key"])
        with suppress(ClientError):  # rclone keeps the folders of uploads that were never completed
            client.delete_bucket(Bucket=name)
