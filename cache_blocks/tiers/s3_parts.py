"""What requests to S3 are made of: parts of large objects, patience with what moves, several at a time."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Self, cast

if TYPE_CHECKING:
    from pathlib import Path

PART_BYTES: Final = 8 * 1024 * 1024
"""Of a part of an upload, and of a range of a download; objects up to this size take one request."""
MAX_PARTS: Final = 10_000
CONCURRENCY: Final = 4
"""Parts or ranges of one object at the same time."""


def parts_of(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in parts of full size, the last one excepted."""
    held: list[memoryview] = []
    size = 0
    for piece in pieces:
        rest = memoryview(piece)
        while size + len(rest) >= PART_BYTES:
            taken = PART_BYTES - size
            yield b"".join([*held, rest[:taken]])
            held, size, rest = [], 0, rest[taken:]
        held.append(rest)
        size += len(rest)
    if size:
        yield b"".join(held)


class Parts:
    """Parts with their numbers, for several at a time to take.

    The pieces are read, and whatever else it takes to make them, in one thread: its memory is used again.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._parts = enumerate(parts_of(pieces), 1)
        self._ahead: list[tuple[int, bytes]] = []
        self._turn = asyncio.Lock()
        self._reader = ThreadPoolExecutor(1, "cache-blocks-parts")

    async def next(self) -> tuple[int, bytes]:
        """Return number and bytes of a part; no bytes when there are no more."""
        async with self._turn:
            if self._ahead:
                return self._ahead.pop(0)
            return await asyncio.get_running_loop().run_in_executor(self._reader, next, self._parts, (0, b""))

    def put_back(self, *parts: tuple[int, bytes]) -> None:
        """Let these be the next ones."""
        self._ahead = [*parts, *self._ahead]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._reader.shutdown(wait=False)


def etag_of(source: Path) -> str:
    """Return the ETag that S3 gives to a file's bytes as they are sent here, unless it encrypts them with a key of KMS.

    That of an object in one piece is the MD5 of its bytes, that of one in parts the MD5 of the parts' MD5s and their
    number.
    """
    sums: list[bytes] = []
    with source.open("rb") as stream:
        while part := stream.read(PART_BYTES):
            sums.append(hashlib.md5(part, usedforsecurity=False).digest())
    if len(sums) > 1:
        return f"{hashlib.md5(b''.join(sums), usedforsecurity=False).hexdigest()}-{len(sums)}"
    return sums[0].hex() if sums else hashlib.md5(b"", usedforsecurity=False).hexdigest()


class Sent(io.BytesIO):
    """A body that tells when a piece of it is taken."""

    def __init__(self, data: bytes, moved: Callable[[], None]) -> None:
        super().__init__(data)
        self._moved = moved

    def read(self, size: int | None = -1, /) -> bytes:
        """See `io.BytesIO.read`."""
        self._moved()
        return super().read(size)


@contextlib.asynccontextmanager
async def patient(seconds: float) -> AsyncGenerator[Callable[[], None]]:
    """Raise OSError once nothing has moved for this long; what it gives is called, in any thread, when it has."""
    loop = asyncio.get_running_loop()

    def wait_on() -> None:
        with contextlib.suppress(RuntimeError):  # it is over
            limit.reschedule(loop.time() + seconds)

    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield lambda: cast("None", loop.call_soon_threadsafe(wait_on))
    except TimeoutError:
        if not limit.expired():
            raise
        raise OSError(f"nothing moved for {seconds:g} s") from None  # fsspec drops what a TimeoutError says


async def together(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run several of the same; when one fails, end the others and raise what it has raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(work())
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
