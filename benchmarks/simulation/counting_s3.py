"""How many requests this process sends to an S3 server, of which sort, and with how many bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from aiobotocore.client import AioBaseClient


@contextmanager
def s3_requests() -> Generator[Counter[str]]:
    """Give a counter of operations by name, such as ``GetObject``, and of ``bytes sent`` and ``bytes received``.

    It stands where instrumentations of botocore do, so a request that botocore repeats is counted once.
    """
    counted: Counter[str] = Counter()
    call: Any = AioBaseClient._make_api_call  # noqa: SLF001  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType, reportUnknownVariableType]

    async def counting(client: Any, operation: str, given: dict[str, Any]) -> Any:
        counted[operation] += 1
        counted["bytes sent"] += len(given.get("Body") or b"")
        answer: dict[str, Any] = await call(client, operation, given)
        if operation == "GetObject":
            counted["bytes received"] += int(answer.get("ContentLength", 0))
        return answer

    with patch.object(AioBaseClient, "_make_api_call", counting):
        yield counted
