"""S3: requests that are limited in time and counted, large objects in parts and ranges, writes under a condition.

s3fs does the rest. Retries are botocore's ("standard" mode: backoff with jitter, and a budget that a server which is
down uses up soon), for answers that say 5xx or SlowDown and for connections that break. They share one time limit with
the request that they repeat: a server that hangs costs `patience` once. A transfer may take as long as it likes while
bytes move.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from http.client import IncompleteRead
from itertools import count
from typing import TYPE_CHECKING, Any, Final, cast

from fsspec import asyn
from s3fs import S3FileSystem
from s3fs.core import S3_RETRYABLE_ERRORS

from cache_blocks.tiers.s3_parts import MAX_PARTS, PART_BYTES, Parts, Sent, patient, together

if TYPE_CHECKING:
    from cache_blocks.traffic import Traffic

ATTEMPTS: Final = 4
_PIECE: Final = 256 * 1024
_BROKEN_OFF: Final = cast("tuple[type[Exception], ...]", S3_RETRYABLE_ERRORS)
_NOT_NEW: Final = frozenset({"PreconditionFailed", "ConditionalRequestConflict"})
"""Answers to ``If-None-Match``: the object is there, or somebody else is just writing it."""


def open_s3(url: str, options: Mapping[str, Any], patience: float, traffic: Traffic | None = None) -> tuple[S3, str]:
    """Return the file system of an S3 URL, and the path in it.

    Args:
        url: ``s3://bucket/prefix``.
        options: Those of `s3fs.S3FileSystem`, which come before ours.
        patience: Seconds.
        traffic: Counts requests and bytes.
    """
    limits: dict[str, Any] = {
        "connect_timeout": patience / 2,  # two attempts fit, since servers cut idle connections
        "read_timeout": patience / 2,
        "retries": {"mode": "standard", "total_max_attempts": ATTEMPTS},
        "max_pool_connections": 50,
        # What is read here is verified by its own digest; and some servers send the sum of the whole with a range.
        "response_checksum_validation": "when_required",
    }
    limits |= options.get("config_kwargs", {})
    fs = S3(patience, traffic, **{"use_listings_cache": False, **options, "config_kwargs": limits})
    return fs, fs.root_of(url)


class S3(S3FileSystem):
    """s3fs with our limits.

    Args:
        patience: How long a request may take with its retries, or a transfer stand still, in seconds.
        traffic: Counts requests and bytes.
        options: Those of s3fs.
    """

    cachable = False
    retries = 1  # s3fs's own, on top of botocore's

    def __init__(self, patience: float, traffic: Traffic | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._patience = patience
        self._traffic = traffic
        self._counted: Any = None
        self._conditional = True

    def root_of(self, url: str) -> str:
        """Return the path that a URL names."""
        return cast("str", self._strip_protocol(url))

    async def set_session(self, refresh: bool = False, kwargs: Mapping[str, Any] | None = None) -> Any:  # noqa: FBT001, FBT002
        """See s3fs; the client's events are what is counted."""
        client = await cast("Any", super()).set_session(refresh, kwargs or {})
        if self._traffic is not None and client is not self._counted:
            self._counted = client
            client.meta.events.register("before-send.s3", self._count_request)
            client.meta.events.register("response-received.s3", self._count_answer)
        return client

    def _count_request(self, request: Any, event_name: str, **_: Any) -> None:
        headers = request.headers
        size = headers.get("Content-Length") or headers.get("X-Amz-Decoded-Content-Length") or 0
        cast("Traffic", self._traffic).count(event_name.rpartition(".")[2], up=int(size))

    def _count_answer(self, event_name: str, response_dict: Any = None, **_: Any) -> None:
        if response_dict is not None and not event_name.endswith(".HeadObject"):
            cast("Traffic", self._traffic).count(down=int(response_dict["headers"].get("content-length") or 0))

    async def _call_s3(self, method: str, *rest: Any, **arguments: Any) -> Any:
        await self.set_session()  # reading botocore's descriptions takes a while, which is not the server's fault
        async with patient(self._patience) as moved:
            if len(body := arguments.get("Body", b"")) > _PIECE:
                arguments["Body"] = Sent(body, moved)
            return cast("Any", await super()._call_s3(method, *rest, **arguments))

    def send(self, path: str, pieces: Iterator[bytes], *, only_new: bool = False) -> bool:
        """Write an object in constant memory; return whether it was, and not left alone because it was there."""
        return cast("bool", asyn.sync(self.loop, self._send, path, pieces, only_new=only_new))

    def details(self, path: str) -> dict[str, Any]:
        """Return size, ETag and time of an object; unlike `info` it does not list what may be below it."""
        return cast("dict[str, Any]", asyn.sync(self.loop, self._details, path))

    def request(self, method: str, path: str, **arguments: Any) -> Any:
        """Make any request of botocore's about an object, or about a prefix where that has no key."""
        bucket, key, _ = self.split_path(path)
        return asyn.sync(self.loop, self._call_s3, method, Bucket=bucket, **({"Key": key} if key else {}), **arguments)

    # Reading

    async def _cat_file(self, path: str, *rest: Any, **options: Any) -> bytes:
        if rest or any(value is not None for value in options.values()):
            return cast("bytes", await super()._cat_file(path, *rest, **options))
        pieces: list[bytes] = []
        await self._receive(path, 0, None, lambda _, piece: pieces.append(piece))
        return b"".join(pieces)

    async def _get_file(self, rpath: str, lpath: str, *_: Any, **__: Any) -> None:
        """Fetch an object in concurrent ranges into a file that has its full length from the beginning."""
        with open(lpath, "wb") as file:  # noqa: ASYNC230, PTH123 - opened and closed here, whatever becomes of the caller

            def keep(at: int, piece: bytes) -> None:
                os.pwrite(file.fileno(), piece, at)

            try:
                size = await self._receive(rpath, 0, PART_BYTES, keep)
            except OSError as error:
                if _code(error) == "InvalidRange":  # which is said of an empty object
                    return
                raise
            if size <= PART_BYTES:
                return
            _allocate(file.fileno(), size)
            starts = iter(range(PART_BYTES, size, PART_BYTES))

            async def work() -> None:
                for start in starts:
                    await self._receive(rpath, start, min(start + PART_BYTES, size), keep)

            await together(work)

    async def _receive(self, path: str, start: int, end: int | None, keep: Callable[[int, bytes], object]) -> int:
        """Hand over the bytes of an object as they come, each piece with its place; return the object's size.

        Where an answer breaks off in the middle, the rest is asked for: botocore repeats only what has no answer yet.
        """
        bucket, key, _ = self.split_path(path)
        at, stalls = start, 0
        async with patient(self._patience) as moved:
            for attempts in count(1):
                wanted = {"Range": f"bytes={at}-{'' if end is None else end - 1}"} if at or end else {}
                answer = await self._call_s3("get_object", Bucket=bucket, Key=key, **wanted)
                size = _size_of(answer, at)
                try:
                    async with answer["Body"] as body:
                        while piece := await body.read(_PIECE):
                            keep(at, piece)
                            at += len(piece)
                            moved()
                    if at < min(end or size, size):
                        raise IncompleteRead(b"")
                except _BROKEN_OFF as error:
                    stalls += isinstance(error, TimeoutError)
                    if attempts == ATTEMPTS or stalls > 1:
                        raise
                    await asyncio.sleep(0.05 * 2**attempts)
                else:
                    return size
        raise AssertionError  # count() has no end

    # Writing

    async def _send(self, path: str, pieces: Iterator[bytes], *, only_new: bool = False) -> bool:
        """See `send`. Nobody sees a half: S3 shows an object when all parts are there and the upload is completed."""
        bucket, key, _ = self.split_path(path)
        target = {"Bucket": bucket, "Key": key}
        with Parts(pieces) as parts:
            first, second = await parts.next(), await parts.next()
            if not second[1]:
                return await self._publish("put_object", only_new=only_new, **target, Body=first[1])
            parts.put_back(first, second)
            return await self._send_in_parts(path, target, parts, only_new=only_new)

    async def _send_in_parts(self, path: str, target: Mapping[str, str], parts: Parts, *, only_new: bool) -> bool:
        upload = {**target, "UploadId": (await self._call_s3("create_multipart_upload", **target))["UploadId"]}
        published = False
        try:
            tags, size = await self._send_parts(upload, parts)
            whole = {**upload, "MultipartUpload": {"Parts": tags}}
            published = await self._complete(path, whole, size, only_new=only_new)
        finally:
            if not published:
                with contextlib.suppress(Exception):  # maintenance collects it
                    await self._call_s3("abort_multipart_upload", **upload)
        return published

    async def _complete(self, path: str, upload: Mapping[str, Any], size: int, *, only_new: bool) -> bool:
        """Let an upload become the object. When its answer is lost and it is made again, the upload is gone: look."""
        try:
            return await self._publish("complete_multipart_upload", only_new=only_new, **upload)
        except FileNotFoundError as error:
            with contextlib.suppress(FileNotFoundError):
                if (await self._details(path))["size"] == size:
                    return True
            raise OSError("the upload was aborted before it was complete") from error

    async def _send_parts(self, upload: Mapping[str, str], parts: Parts) -> tuple[list[dict[str, Any]], int]:
        """Send parts, several at a time; return what names them, and the size of all."""
        sent: dict[int, tuple[str, int]] = {}

        async def work() -> None:
            while True:
                number, data = await parts.next()
                if not data:
                    return
                if number > MAX_PARTS:
                    raise OSError(errno.EFBIG, f"more than {MAX_PARTS} parts of {PART_BYTES} bytes")
                answer = await self._call_s3("upload_part", **upload, PartNumber=number, Body=data)
                sent[number] = answer["ETag"], len(data)

        await together(work)
        tags = [{"PartNumber": number, "ETag": tag} for number, (tag, _) in sorted(sent.items())]
        return tags, sum(size for _, size in sent.values())

    async def _publish(self, method: str, *, only_new: bool, **arguments: Any) -> bool:
        """Make the request that lets an object appear; return whether it has."""
        condition = {"IfNoneMatch": "*"} if only_new and self._conditional else {}
        try:
            await self._call_s3(method, **arguments, **condition)
        except OSError as error:
            if condition and _code(error) in _NOT_NEW:
                return False
            if condition and _code(error) == "NotImplemented":
                self._conditional = False
                return await self._publish(method, only_new=only_new, **arguments)
            raise
        return True

    async def _details(self, path: str) -> dict[str, Any]:
        bucket, key, _ = self.split_path(path)
        answer = await self._call_s3("head_object", Bucket=bucket, Key=key)
        return {"size": answer["ContentLength"], "ETag": answer.get("ETag", ""), "LastModified": answer["LastModified"]}


def _allocate(descriptor: int, size: int) -> None:
    """Give a file its length, and where the system can the room for it, so that a full disk is noticed now."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)


def _size_of(answer: Mapping[str, Any], at: int) -> int:
    """Return an object's size from the answer to a request for some of it.

    Raises:
        OSError: It is the answer to another request.
    """
    place, _, size = str(answer.get("ContentRange", "")).removeprefix("bytes ").partition("/")
    if not place:
        place, size = "0-", answer["ContentLength"]
    if int(place.partition("-")[0]) != at:
        raise OSError("the object store does not answer requests for ranges")
    return int(size)


def _code(error: BaseException) -> str:
    """Return S3's name of an error, which s3fs has translated."""
    response: dict[str, Any] = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
