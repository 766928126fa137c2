"""A process that rekeys the cache of its environment, and tells of each step on its standard output."""

from __future__ import annotations

from cache_blocks import TieredCache
from cache_blocks.maintenance.rekeying import rekey


def main() -> None:
    """Rekey."""

    def tell(what: str, done: int) -> None:
        print(what, done, flush=True)  # noqa: T201 - read by the test

    rekey(TieredCache.from_settings(), on_progress=tell)


if __name__ == "__main__":
    main()
