"""The policy in the documentation is enough for all that the cache asks of S3, and no right in it is too much."""

from __future__ import annotations

import re
import time
import urllib.request
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import boto3
import orjson
import pytest

from cache_blocks.tiers.objects import ObjectStore
from cache_blocks.tiers.s3_parts import PART_BYTES
from tests.servers.s3 import REGION, S3Account, moto_server

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "object-store.md"
POLICY: dict[str, Any] = orjson.loads(
    re.findall(r'```json title="policy.json"\n(.*?)```', PAGE.read_text(), re.DOTALL)[0]
)
ACTIONS: list[str] = sorted(action for statement in POLICY["Statement"] for action in statement["Action"])


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Generator[Callable[[str], ObjectStore]]:
    """An S3 server that asks for rights; gives the store of an account that has all of them but one."""
    with moto_server(tmp_path_factory.mktemp("moto")) as account:
        root = {"endpoint_url": account.endpoint, "region_name": REGION, "aws_access_key_id": "root"}
        client = cast("Any", boto3.client)
        with closing(account.client()) as s3, closing(client("iam", **root, aws_secret_access_key="root")) as iam:
            s3.create_bucket(Bucket="speech-cache")
            with_rights: dict[str, S3Account] = {}
            for left_out in ["", *ACTIONS]:
                name = left_out.partition(":")[2] or "all"
                iam.create_user(UserName=name)
                iam.put_user_policy(UserName=name, PolicyName="cache", PolicyDocument=without(left_out))
                key = iam.create_access_key(UserName=name)["AccessKey"]
                with_rights[left_out] = S3Account(account.endpoint, key["AccessKeyId"], key["SecretAccessKey"])
            upload = s3.create_multipart_upload(Bucket="speech-cache", Key="cache/default/old")["UploadId"]
            s3.upload_part(Bucket="speech-cache", Key="cache/default/old", UploadId=upload, PartNumber=1, Body=b"half")
        ask = urllib.request.Request(  # noqa: S310 - our own server; from here on it looks at rights
            f"{account.endpoint}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"}, method="POST"
        )
        urllib.request.urlopen(ask).close()  # noqa: S310
        yield lambda left_out: ObjectStore("s3://speech-cache/cache", with_rights[left_out].options, 30)


def without(action: str) -> str:
    statements = [
        statement | {"Action": [each for each in statement["Action"] if each != action]}
        for statement in POLICY["Statement"]
    ]
    return orjson.dumps(POLICY | {"Statement": statements}).decode()


def do_everything(store: ObjectStore, folder: Path) -> None:
    """All that the cache asks of S3."""
    large = [bytes(PART_BYTES), b"more"]
    store.write(store.path("small"), b"small")
    store.write_pieces(store.path("large"), large)
    assert not store.write_pieces(store.path("large"), large, only_new=True), "an upload that is aborted"
    store.fetch_file(store.path("large"), folder / "large")
    assert store.read(store.path("small")) == b"small"
    assert store.exists(store.path("nothing")) is None
    assert [path for path, _ in store.walk(store.path())]
    (old,) = store.unfinished_uploads(store.path("default"), time.time() + 60)
    assert old.bytes == 4
    assert store.delete([store.path("small"), store.path("large")]) == 2


def test_the_policy_is_enough(guarded: Callable[[str], ObjectStore], tmp_path: Path) -> None:
    do_everything(guarded(""), tmp_path)
    with pytest.raises(PermissionError):
        guarded("").write("speech-cache/elsewhere", b"")


@pytest.mark.parametrize("action", [action for action in ACTIONS if action != "s3:AbortMultipartUpload"])
def test_no_right_is_too_much(action: str, guarded: Callable[[str], ObjectStore], tmp_path: Path) -> None:
    with pytest.raises((PermissionError, ValueError)):
        do_everything(guarded(action), tmp_path)


def test_without_the_right_to_abort_uploads_stay(guarded: Callable[[str], ObjectStore], tmp_path: Path) -> None:
    store = guarded("s3:AbortMultipartUpload")
    with suppress(ValueError):
        do_everything(store, tmp_path)
    for upload in store.unfinished_uploads(store.path("default"), time.time() + 60):
        with pytest.raises(PermissionError):
            store.abort_upload(upload)
