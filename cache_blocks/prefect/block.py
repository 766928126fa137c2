"""`TieredCacheBlock`: the settings as a Prefect block, and the way back from a state to its cached result."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from prefect._internal.compatibility.async_dispatch import async_dispatch
from prefect.filesystems import WritableFileSystem
from pydantic import Field, HttpUrl, SecretStr

from cache_blocks.cache import TieredCache
from cache_blocks.errors import CacheError
from cache_blocks.prefect.serializer import key_of, mark
from cache_blocks.settings import CacheSettings, Mode

_DOCUMENTATION = "https://docs.prefect.io/v3/concepts/caching"
# The icon that Prefect shows for its own file system block, which this one is a kind of.
_LOGO = (
    "https://raw.githubusercontent.com/PrefectHQ/prefect/420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9/"
    "assets/block-logos/filesystem.png"
)


class TieredCacheBlock(WritableFileSystem):
    """Where a tiered cache keeps its entries. A field that is left empty is taken from the environment.

    Save one under the name that `cache-blocks init` uses, and results of cached tasks can be loaded from their
    states by later processes.

    Example:
        Load a saved block and use its cache:
        ```python
        from cache_blocks import TieredCacheBlock

        cache = TieredCacheBlock.load("BLOCK_NAME").cache()
        ```
    """

    _block_type_name: ClassVar[str | None] = "Tiered Cache"
    _block_type_slug: ClassVar[str | None] = "tiered-cache"
    _logo_url: ClassVar[HttpUrl | None] = HttpUrl(_LOGO)
    _documentation_url: ClassVar[HttpUrl | None] = HttpUrl(_DOCUMENTATION)

    redis_url: SecretStr | None = Field(default=None, description="Hot tier: a Redis URL or memory://.")
    database_url: SecretStr | None = Field(default=None, description="SQL tier as an SQLAlchemy URL.")
    object_store_url: SecretStr | None = Field(default=None, description="Object store as an fsspec URL.")
    object_store_options: SecretStr | None = Field(default=None, description="JSON handed to fsspec.")
    home: str | None = Field(default=None, description="Root of the embedded defaults.")
    namespace: str | None = Field(default=None, description="Keeps environments apart in shared servers.")
    lease_seconds: float | None = Field(default=None, gt=0, description="How long a dead worker blocks its key.")
    private: bool | None = Field(default=None, description="Treat every kind as private: encrypted, its names hidden.")
    private_keys: SecretStr | None = Field(default=None, description="Key ring of private kinds.")
    mode: Mode | None = Field(default=None, description="One of on, read-only (nothing is written) and off.")

    def settings(self) -> CacheSettings:
        """Return the settings: the block's fields over those of the environment."""
        names = type(self).model_fields.keys() & CacheSettings.model_fields.keys()
        given = {name: getattr(self, name) for name in names}
        return CacheSettings(**{name: value for name, value in given.items() if value is not None})

    def cache(self) -> TieredCache:
        """Return this process's cache for these settings."""
        return TieredCache.from_settings(self.settings())

    async def aread_path(self, path: str) -> bytes:
        """Return the result under a key, for Prefect; see `read_path`."""
        return await asyncio.to_thread(self._read, path)

    @async_dispatch(aread_path)
    def read_path(self, path: str) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride] - as Prefect's own blocks do
        """Return the result under a key, for Prefect.

        Raises:
            CacheError: It is no longer cached; the message says why.
        """
        return self._read(path)

    async def awrite_path(self, path: str, content: bytes) -> None:
        """Refuse; see `write_path`."""
        self._refuse(path, content)

    @async_dispatch(awrite_path)
    def write_path(self, path: str, content: bytes) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - the same
        """Refuse: entries need a kind and a lifetime, which a bare write does not have."""
        self._refuse(path, content)

    def _resolve_path(self, path: str) -> None:
        """Tell Prefect that keys are not paths."""
        del path

    def _read(self, path: str) -> bytes:
        key = key_of(path)
        found = self.cache().lookup(key)
        if found.entry is None:
            raise CacheError(f"the result {key} is no longer cached: {found.reason}")
        return mark(self.cache().reader.json_of(found.entry), path)

    @staticmethod
    def _refuse(path: str, content: bytes) -> None:
        raise CacheError(
            f"a tiered cache does not store {len(content)} bytes under {path!r} as a file system would; "
            "use @cached_task or TieredCachePolicy, which know the kind of the result"
        )
