"""Settings, read from ``CACHE_BLOCKS_*`` when a cache is made and never at import."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, PositiveFloat, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from cache_blocks.costs import FREE, Prices
from cache_blocks.entry import check_namespace

_READ: Final = ("CACHE_BLOCKS_", "HOME", "USERPROFILE")

Mode = Literal["on", "read-only", "off"]

_seen: tuple[dict[Any, Any], tuple[tuple[str, str], ...]] | None = None


class CacheSettings(BaseSettings):
    """Where the tiers are and how the cache behaves.

    Every field can be given here, or as an environment variable with the prefix ``CACHE_BLOCKS_``. URLs and
    options may carry credentials: they are `SecretStr` and never shown.
    """

    model_config = SettingsConfigDict(env_prefix="CACHE_BLOCKS_", frozen=True, extra="ignore")

    home: Path = Field(default=Path("~/.cache-blocks"), description="Root of the embedded defaults.")
    redis_url: SecretStr = Field(
        default=SecretStr("memory://"),
        description="Hot tier: redis://, rediss://, redis+sentinel:// or redis+cluster://; memory:// is this process.",
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
    database_connections: int = Field(
        default=4, gt=0, description="Most connections of one process to PostgreSQL; it keeps two when idle."
    )
    breaker_seconds: PositiveFloat = Field(
        default=5.0, description="How long a tier that failed is skipped before it is probed again."
    )
    memory_max_bytes: int = Field(default=64 * 1024 * 1024, gt=0, description="Budget of the in-process hot tier.")
    local_files_max_bytes: int = Field(
        default=10 * 1024**3, gt=0, description="Budget of the local copies of files; the least recently used go."
    )
    event_days: PositiveFloat = Field(
        default=30.0, description="How long single events are kept; what a day adds up to is known for 400."
    )
    block: str = Field(
        default="", description="Name of the saved Prefect block for loading results later; by default the namespace's."
    )
    prefect_events: bool = Field(default=True, description="Whether hits, misses and outages become Prefect events.")
    hit_rate_alert: float = Field(
        default=0.0, ge=0, le=1, description="A flow run that hits less than this emits cache-blocks.hit-rate-low."
    )
    costs: dict[str, Prices] = Field(
        default_factory=dict, description="JSON: by kind, prices of audio_minute, tokens_in, tokens_out, compute_hour."
    )
    currency: str = Field(default="USD", max_length=8, description="Of the prices, for people.")
    private: bool = Field(default=False, description="Treat every kind as private: encrypted, its names hidden.")
    private_keys: SecretStr = Field(
        default=SecretStr(""), description="Key ring of private kinds; `cache-blocks keys new` prints one."
    )
    private_keys_block: str = Field(default="", description="Prefect Secret block that holds the key ring instead.")
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
        if not self.block:  # in the letters that Prefect allows
            derived["block"] = self.namespace.lower().replace("_", "-")
        for name, value in derived.items():
            object.__setattr__(self, name, value)  # frozen for everybody else
        return self

    @property
    def hot_tier_is_local(self) -> bool:
        """Whether the hot tier lives in this process only."""
        return self.redis_url.get_secret_value().startswith("memory:")

    @property
    def local_files(self) -> Path:
        """Where this machine keeps copies of the namespace's blobs."""
        return self.home / "files" / self.namespace

    def prices_of(self, kind: str) -> Prices:
        """Return what results of a kind cost to compute; nothing where no price is set."""
        return self.costs.get(kind, FREE)

    @property
    def fingerprint(self) -> tuple[str, ...]:
        """Values that decide which cache this is; equal settings share one cache per process."""
        return tuple(
            str(value.get_secret_value() if isinstance(value, SecretStr) else value)
            for _, value in sorted(self.__dict__.items())
        )


def settings_environment() -> tuple[tuple[str, str], ...]:
    """Return the environment variables that settings are read from: while they stay, so do the settings."""
    global _seen  # noqa: PLW0603 - one tuple, replaced as a whole
    # Every call of a task asks. What `os.environ` decodes is compared undecoded, which takes a fiftieth of the time.
    raw = getattr(os.environ, "_data", os.environ)
    if _seen is None or _seen[0] != raw:
        read = tuple((name, value) for name, value in os.environ.items() if name.upper().startswith(_READ))
        _seen = dict(raw), read
    return _seen[1]


def _sqlite_url(path: Path) -> str:
    """Return the SQLAlchemy URL of a file, whatever its name."""
    from sqlalchemy import URL  # a fifth of a second, which `cache-blocks --version` can do without

    return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)
