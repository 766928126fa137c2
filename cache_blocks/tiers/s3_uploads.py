"""Uploads to S3 that nobody finishes: whoever dies while it sends a large object leaves the parts, and they cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cache_blocks.tiers.s3 import S3


@dataclass(frozen=True, slots=True)
class UnfinishedUpload:
    """An upload in parts that was begun and neither completed nor aborted.

    Attributes:
        path: The object that it was to become.
        upload_id: S3's name of it.
        bytes: Of the parts that have been sent.
    """

    path: str
    upload_id: str
    bytes: int


def unfinished_uploads(fs: S3, prefix: str, before: float) -> Iterator[UnfinishedUpload]:
    """Yield the uploads that nobody has begun or added to since a time.

    Args:
        fs: Where.
        prefix: Path of a folder; what is beside it is somebody else's.
        before: Seconds since the epoch.
    """
    bucket, key, _ = fs.split_path(f"{prefix}/")
    for each in _listed(fs, "list_multipart_uploads", "Uploads", ("KeyMarker", "UploadIdMarker"), bucket, Prefix=key):
        if not str(each["Key"]).startswith(key) or each["Initiated"].timestamp() > before:
            continue
        path, upload_id = f"{bucket}/{each['Key']}", str(each["UploadId"])
        parts = _listed(fs, "list_parts", "Parts", ("PartNumberMarker",), path, UploadId=upload_id)
        if all(part["LastModified"].timestamp() <= before for part in parts):
            yield UnfinishedUpload(path, upload_id, sum(int(part["Size"]) for part in parts))


def abort_upload(fs: S3, upload: UnfinishedUpload) -> bool:
    """Remove the parts of an upload; return whether it was still there."""
    try:
        fs.request("abort_multipart_upload", upload.path, UploadId=upload.upload_id)
    except FileNotFoundError:
        return False
    return True


def _listed(fs: S3, method: str, name: str, markers: tuple[str, ...], path: str, **arguments: Any) -> list[Any]:
    """Return what all pages of a listing list; pages go on at markers."""
    found: list[Any] = []
    more: dict[str, Any] = {}
    while True:
        try:
            page: dict[str, Any] = fs.request(method, path, **arguments, **more)
        except (
            FileNotFoundError
        ):  # an upload that has just been finished; and rclone, where there are none, says so too
            return found
        found += page.get(name, ())
        more = {marker: page[f"Next{marker}"] for marker in markers if page.get(f"Next{marker}")}
        if not page.get("IsTruncated") or not more:
            return found
