"""Settings, read from ``CACHE_BLOCKS_*`` when a cache is made and never at import."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, PositiveFloat, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from cache_blocks.entry import check_namespace

_READ: Final = ("CACHE_BLOCKS_", "HOME", "USERPROFILE")

Mode = Literal["on", "read-only", "off"]


class CacheSettings(BaseSettings):
    """Where the tiers are and how the cache behaves.

    Every field can be given here, or as an environment variable with the prefix ``CACHE_BLOCKS_``. URLs and
    options may carry credentials: they are `SecretStr` and never shown.
    """

    model_config = SettingsConfigDict(env_prefix="CACHE_BLOCKS_", frozen=True, extra="ignore")

    home: Path = Field(default=Path("~/.cache-blocks"), description="Root of the embedded defaults.")
    redis_url: SecretStr = Field(
        default=SecretStr("memory://"),
        description="Hot tier: redis:// or rediss://; memory:// keeps it in this process.",
    )
    database_url: SecretStr = Field(
        default=SecretStr(""), description="SQL tier as an SQLAlchemy URL; a SQLite file under home by default."
    )
    object_store_url: SecretStr = Field(
        default=SecretStr(""), description="Object store as an fsspec URL; a folder under home by default."
    )
    object_store_options: SecretStr = Field(
        default=SecretStr("{}"), description="JSON handed to fsspec: endpoint, key, secret."
    )
    namespace: Annotated[str, AfterValidator(check_namespace)] = Field(
        default="default", description="Keeps environments apart in shared servers."
    )
    lease_seconds: PositiveFloat = Field(default=30.0, description="How long a dead worker blocks its key.")
    mode: Mode = Field(default="on", description="on, read-only (no entry is written) or off.")
    redis_timeout_seconds: PositiveFloat = Field(default=0.5, description="Per call, before the breaker opens.")
    database_timeout_seconds: PositiveFloat = Field(default=2.0, description="Per call, before the breaker opens.")
    object_store_timeout_seconds: PositiveFloat = Field(default=5.0, description="Per call, before the breaker opens.")
    breaker_seconds: PositiveFloat = Field(
        default=5.0, description="How long a tier that failed is skipped before it is probed again."
    )
    memory_max_bytes: int = Field(default=64 * 1024 * 1024, gt=0, description="Budget of the in-process hot tier.")
    block: str = Field(
        default="default", description="Name of the saved Prefect block through which results are loaded later."
    )
    strict: bool = Field(
        default=False, description="Raise, rather than report, when an argument has no deterministic digest."
    )

    @model_validator(mode="after")
    def _fill_defaults(self) -> Self:
        home = self.home.expanduser().absolute()
        derived: dict[str, Any] = {"home": home}
        if not self.database_url.get_secret_value():
            derived["database_url"] = SecretStr(_sqlite_url(home / "cache.db"))
        if not self.object_store_url.get_secret_value():
            derived["object_store_url"] = SecretStr(f"file://{home / 'objects'}")  # fsspec decodes no URI
        for name, value in derived.items():
            object.__setattr__(self, name, value)  # frozen for everybody else
        return self

    @property
    def hot_tier_is_local(self) -> bool:
        """Whether the hot tier lives in this process only."""
        return self.redis_url.get_secret_value().startswith("memory:")

    @property
    def fingerprint(self) -> tuple[str, ...]:
        """Values that decide which cache this is; equal settings share one cache per process."""
        return tuple(
            str(value.get_secret_value() if isinstance(value, SecretStr) else value)
            for _, value in sorted(self.__dict__.items())
        )


def settings_environment() -> tuple[tuple[str, str], ...]:
    """Return the environment variables that settings are read from: while they stay, so do the settings."""
    return tuple((name, value) for name, value in os.environ.items() if name.upper().startswith(_READ))


def _sqlite_url(path: Path) -> str:
    """Return the SQLAlchemy URL of a file, whatever its name."""
    from sqlalchemy import URL  # a fifth of a second, which `cache-blocks --version` can do without

    return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)
