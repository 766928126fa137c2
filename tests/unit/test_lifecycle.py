"""The lifecycle configuration: what S3 takes, and never shorter than anything lives."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from typer.testing import CliRunner

from cache_blocks import TRANSCRIPT, CacheKind, TieredCache
from cache_blocks.cli.app import app
from cache_blocks.errors import ConfigurationError
from cache_blocks.kinds import BUILT_IN_KINDS
from cache_blocks.maintenance.lifecycle import MARGIN_DAYS, lifecycle
from cache_blocks.settings import CacheSettings

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.servers.s3 import S3Bucket

PODCAST = CacheKind("podcast", ttl=timedelta(days=90))


@pytest.fixture
def cache(s3_conditional: S3Bucket) -> Generator[TieredCache]:
    values: dict[str, Any] = {
        "object_store_url": f"{s3_conditional.url}/cache",
        "object_store_options": orjson.dumps(s3_conditional.options).decode(),
        "object_store_timeout_seconds": 30,
        "namespace": "production",
    }
    with closing(TieredCache(CacheSettings(**values))) as cache:
        yield cache


def days_by_prefix(configuration: dict[str, Any]) -> dict[str, int]:
    return {
        rule["Filter"]["Prefix"]: rule["Expiration"]["Days"] for rule in configuration["Rules"] if "Expiration" in rule
    }


@pytest.mark.promise("A generated lifecycle rule never deletes what still lives")
def test_every_object_is_kept_longer_than_it_lives(cache: TieredCache) -> None:
    days = days_by_prefix(lifecycle(cache, {"podcast": PODCAST.ttl.total_seconds()}))
    for kind in (*BUILT_IN_KINDS, PODCAST):
        for prefix in (f"cache/production/entries/{kind}/", "cache/production/blobs/"):
            assert timedelta(days=days[prefix]) >= kind.ttl + timedelta(days=MARGIN_DAYS)
    assert days["cache/production/entries/transcript/"] == 30 + MARGIN_DAYS
    assert days["cache/production/entries/user-preferences/"] == 1 + MARGIN_DAYS
    assert not [prefix for prefix in days if "generations".startswith(prefix.split("/")[2])], "they live for ever"


def test_entries_of_a_time_when_their_kind_lived_longer_count(cache: TieredCache) -> None:
    longer = CacheKind("transcript", ttl=timedelta(days=45), replica=True)
    cache.put("transcript:1", "text", kind=longer)
    days = days_by_prefix(lifecycle(cache))
    assert days["cache/production/entries/transcript/"] == days["cache/production/blobs/"] == 45 + MARGIN_DAYS


def test_a_kind_of_unknown_lifetime_is_asked_for(cache: TieredCache) -> None:
    cache.put("podcast:1", "text", kind=PODCAST)
    with pytest.raises(ConfigurationError, match="--kind podcast="):
        lifecycle(cache)


def test_a_folder_takes_no_rule(cache_home: object) -> None:
    del cache_home
    with closing(TieredCache()) as cache, pytest.raises(ConfigurationError, match="is not S3"):
        lifecycle(cache)


def test_s3_takes_what_the_command_writes_and_gives_it_back(
    s3_conditional: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_BLOCKS_OBJECT_STORE_URL", f"{s3_conditional.url}/cache")
    monkeypatch.setenv("CACHE_BLOCKS_OBJECT_STORE_OPTIONS", orjson.dumps(s3_conditional.options).decode())
    TieredCache.from_settings().put("transcript:1", "text", kind=TRANSCRIPT)
    result = CliRunner().invoke(app, ["lifecycle", "--kind", "podcast=90d"])
    assert result.exit_code == 0, result.output
    written = orjson.loads(result.stdout)
    assert days_by_prefix(written)["cache/default/blobs/"] == 90 + MARGIN_DAYS
    with closing(s3_conditional.client()) as client:
        client.put_bucket_lifecycle_configuration(Bucket=s3_conditional.bucket, LifecycleConfiguration=written)
        given = client.get_bucket_lifecycle_configuration(Bucket=s3_conditional.bucket)
    assert given["Rules"] == written["Rules"]
    (abort,) = [rule for rule in given["Rules"] if "AbortIncompleteMultipartUpload" in rule]
    assert abort["Filter"]["Prefix"] == "cache/default/"


@pytest.mark.parametrize("wrong", ["podcast", "podcast=soon"])
def test_a_lifetime_that_is_none_is_wrong_usage(wrong: str) -> None:
    assert CliRunner().invoke(app, ["lifecycle", "--kind", wrong]).exit_code == 2
