"""Settings come from the environment when a cache is made, and keep their secrets."""

from __future__ import annotations

import pickle
from pathlib import Path

import pydantic
import pytest
from pydantic import SecretStr

from cache_blocks import TRANSCRIPT, CacheSettings, TieredCache
from cache_blocks.errors import ConfigurationError

SECRET = "hunter2"


def test_defaults_need_no_server(cache_home: Path) -> None:
    settings = CacheSettings()
    assert settings.home == cache_home
    assert settings.hot_tier_is_local
    assert settings.database_url.get_secret_value() == f"sqlite:///{cache_home}/cache.db"
    assert settings.object_store_url.get_secret_value() == (cache_home / "objects").as_uri()
    assert (settings.namespace, settings.mode, settings.lease_seconds) == ("default", "on", 30)
    timeouts = settings.redis_timeout_seconds, settings.database_timeout_seconds, settings.object_store_timeout_seconds
    assert timeouts == (0.5, 2, 5)


def test_the_default_home_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CACHE_BLOCKS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert CacheSettings().home == tmp_path / ".cache-blocks"


def test_the_environment_is_read_when_settings_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_BLOCKS_NAMESPACE", "staging")
    monkeypatch.setenv("CACHE_BLOCKS_MODE", "read-only")
    monkeypatch.setenv("CACHE_BLOCKS_LEASE_SECONDS", "7.5")
    monkeypatch.setenv("CACHE_BLOCKS_REDIS_URL", "redis://example:1/0")
    settings = CacheSettings()
    assert (settings.namespace, settings.mode, settings.lease_seconds) == ("staging", "read-only", 7.5)
    assert not settings.hot_tier_is_local
    assert CacheSettings(namespace="given").namespace == "given"


@pytest.mark.parametrize(
    "name, value",
    [
        ("namespace", ""),
        ("namespace", "a/b"),
        ("namespace", "../up"),
        ("namespace", "a:b"),
        ("namespace", "a b"),
        ("namespace", "x" * 65),
        ("namespace", "*"),
        ("mode", "sometimes"),
        ("lease_seconds", 0),
        ("redis_timeout_seconds", -1),
        ("memory_max_bytes", 0),
        ("local_files_max_bytes", 0),
    ],
)
def test_settings_that_cannot_work_are_refused(name: str, value: object) -> None:
    with pytest.raises(pydantic.ValidationError, match=name):
        CacheSettings(**{name: value})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "settings, variable",
    [
        ({"object_store_options": "{"}, "CACHE_BLOCKS_OBJECT_STORE_OPTIONS"),
        ({"object_store_options": "[]"}, "CACHE_BLOCKS_OBJECT_STORE_OPTIONS"),
        ({"redis_url": "http://example"}, "CACHE_BLOCKS_REDIS_URL"),
        ({"database_url": "mysql://example/x"}, "postgresql"),
        ({"database_url": "no url"}, "CACHE_BLOCKS_DATABASE_URL"),
    ],
    ids=["json", "object", "redis", "dialect", "no url"],
)
def test_what_is_wrong_is_named_when_the_cache_is_used(settings: dict[str, str], variable: str) -> None:
    cache = TieredCache(CacheSettings(**settings))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigurationError, match=variable):
        _ = cache.parts


def test_secrets_are_in_no_text_that_people_see() -> None:
    secretive = CacheSettings(
        redis_url=SecretStr(f"redis://:{SECRET}@127.0.0.1:1/0"),
        database_url=SecretStr(f"postgresql+psycopg://user:{SECRET}@127.0.0.1:1/x"),
        object_store_url=SecretStr(f"s3://key:{SECRET}@bucket"),
        object_store_options=SecretStr(f'{{"secret": "{SECRET}"}}'),
    )
    cache = TieredCache(secretive)
    shown = [repr(secretive), str(secretive), secretive.model_dump_json(), repr(cache), str(vars(cache))]
    shown += [repr(pickle.loads(pickle.dumps(secretive))), cache.parts.database.label, cache.parts.store.label]  # noqa: S301
    assert not [text for text in shown if SECRET in text]


def test_secrets_of_a_tier_that_is_down_reach_no_message(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", "cache_blocks"):
        cache = TieredCache(
            CacheSettings(
                redis_url=SecretStr(f"redis://user:{SECRET}@127.0.0.1:1/0"),
                database_url=SecretStr(f"postgresql+psycopg://user:{SECRET}@127.0.0.1:1/x"),
            )
        )
        assert cache.get_or_compute("transcript:1", lambda: "computed", kind=TRANSCRIPT) == "computed"
    assert caplog.text
    assert SECRET not in caplog.text
    assert SECRET not in cache.lookup("transcript:1").reason


def test_settings_are_frozen_and_come_through_pickle_unchanged() -> None:
    settings = CacheSettings(redis_url=SecretStr("redis://:x@host/1"), namespace="n")
    with pytest.raises(pydantic.ValidationError):
        settings.namespace = "other"
    assert pickle.loads(pickle.dumps(settings)).fingerprint == settings.fingerprint  # noqa: S301


def test_equal_settings_share_one_cache_and_it_survives_pickle() -> None:
    cache = TieredCache.from_settings()
    assert TieredCache.from_settings(CacheSettings()) is cache
    assert TieredCache.from_settings(CacheSettings(namespace="other")) is not cache
    assert pickle.loads(pickle.dumps(cache)) is cache  # noqa: S301
    cache.close()


@pytest.mark.parametrize("name", ["with space", "Ümlaut", "per%20cent", "question?mark", "hash#tag", "plus+sign"])
def test_any_folder_can_be_the_home(name: str, tmp_path: Path) -> None:
    home = tmp_path / name
    cache = TieredCache(CacheSettings(home=home))
    cache.put("transcript:1", "kept", kind=TRANSCRIPT)
    cache.close()
    assert [path.name for path in tmp_path.iterdir()] == [name], "nothing beside it"
    assert (home / "cache.db").is_file()
    assert list((home / "objects").rglob("transcript/*/1"))
