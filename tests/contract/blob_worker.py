"""Send a large object to S3, or fetch it, and tell by how many bytes the process has grown at most.

Usage: URL OPTIONS send|fetch BYTES FILE, the options in JSON.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from cache_blocks.tiers.objects import ObjectStore

_PIECE = 1024 * 1024


def pieces(size: int) -> Iterator[bytes]:
    """Bytes that are different everywhere, and the same in each process."""
    for number in range(size // _PIECE):
        yield blake3(number.to_bytes(8, "big")).digest(length=_PIECE)


def peak() -> int:
    """Most bytes of memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    url, options, what, size, file = sys.argv[1:]
    store = ObjectStore(url, json.loads(options), timeout_seconds=60)
    store.write(store.path("small"), b"so that the connection and what it takes is there")
    store.read(store.path("small"))
    before = peak()
    if what == "send":
        store.write_pieces(store.path("large"), pieces(int(size)))
    else:
        store.fetch_file(store.path("large"), Path(file))
    sys.stdout.write(str(peak() - before))


if __name__ == "__main__":
    main()
