"""Credentials: of no tier, up or down, do they reach a line, an event, an artifact, an error or the command line."""

import contextlib
import logging
import traceback
from collections.abc import Generator
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from typer.testing import CliRunner

from cache_blocks import AUDIO_PREPROCESSING, TRANSCRIPT, CacheError, CacheSettings, TieredCache, cached_task
from cache_blocks.cli.app import app
from cache_blocks.errors import ConfigurationError
from cache_blocks.maintenance import collect, stats, verify
from cache_blocks.prefect.block import TieredCacheBlock
from cache_blocks.prefect.saved_block import forget_saved_blocks
from cache_blocks.schema import EventRow, table
from tests.servers.fixtures import StartRedis
from tests.servers.s3 import S3Bucket

SECRET = "hunter2-c0rrect-horse"
COMMANDS = (
    ("doctor",), ("stats",), ("ls",), ("verify",), ("gc",), ("plan",), ("show", "transcript:a"),
    ("invalidate", "--kind", "transcript"), ("explain", "transcript:a"),
)  # fmt: skip


@pytest.fixture(params=["up", "down"])
def variables(request: pytest.FixtureRequest) -> Generator[tuple[dict[str, str], list[str]]]:
    """The environment of a cache all of whose tiers need a credential, and the credentials."""
    if request.param == "down":
        options = {"key": "key", "secret": SECRET, "client_kwargs": {"endpoint_url": f"http://x:{SECRET}@127.0.0.1:1"}}
        yield (
            {
                "CACHE_BLOCKS_REDIS_URL": f"redis://user:{SECRET}@127.0.0.1:1/0",
                "CACHE_BLOCKS_DATABASE_URL": f"postgresql+psycopg://user:{SECRET}@127.0.0.1:1/x?application_name=a",
                "CACHE_BLOCKS_OBJECT_STORE_URL": "s3://bucket/prefix",
                "CACHE_BLOCKS_OBJECT_STORE_OPTIONS": orjson.dumps(options).decode(),
                "CACHE_BLOCKS_OBJECT_STORE_TIMEOUT_SECONDS": "0.5",
            },
            [SECRET],
        )
        return
    start: StartRedis = request.getfixturevalue("redis_server")
    redis = start()
    with redis.client() as client:
        client.acl_setuser("walrus", enabled=True, passwords=[f"+{SECRET}"], keys=["*"], commands=["+@all"])  # pyright: ignore[reportUnknownMemberType]
    s3: S3Bucket = request.getfixturevalue("s3")
    database = sa.make_url(str(request.getfixturevalue("postgres_url"))).set(password=SECRET)
    yield (
        {
            "CACHE_BLOCKS_REDIS_URL": f"redis://walrus:{SECRET}@127.0.0.1:{redis.port}/0",
            "CACHE_BLOCKS_DATABASE_URL": database.render_as_string(hide_password=False),
            "CACHE_BLOCKS_OBJECT_STORE_URL": f"{s3.url}/cache",
            "CACHE_BLOCKS_OBJECT_STORE_OPTIONS": orjson.dumps(s3.options).decode(),
        },
        [SECRET, s3.secret],
    )


@pytest.fixture
def secrets(
    variables: tuple[dict[str, str], list[str]], prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> Generator[list[str]]:
    """Lets this process's cache, and the processes that it starts, have the variables; gives the credentials."""
    for name, value in {**variables[0], "PREFECT_API_URL": prefect_server}.items():
        monkeypatch.setenv(name, value)
    forget_saved_blocks()
    quick: dict[Any, Any] = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_LOGGING_TO_API_ENABLED: True}
    with temporary_settings(quick):
        yield variables[1]
    TieredCache.from_settings().close()
    forget_saved_blocks()


@cached_task(kind=TRANSCRIPT)
def transcribe(text: str) -> str:
    return text.upper()


@flow
def work() -> list[str]:
    return [transcribe("said"), transcribe("said")]


def errors_of(cache: TieredCache, path: Path) -> str:
    """Ask for everything that may fail, and return what it raised, with all causes."""
    path.write_bytes(b"RIFF")
    raised: list[str] = []
    for act in (
        lambda: cache.put("transcript:a", "x", kind=TRANSCRIPT),
        lambda: cache.put("audio-preprocessing:a", path, kind=AUDIO_PREPROCESSING, annotation=Path),
        lambda: cache.invalidate(tag="x"),
        lambda: [tier.ping() for tier in cache.parts.chain.tiers],
        lambda: list(cache.parts.chain.keys()),
        lambda: verify(cache).as_dict(),
        lambda: collect(cache).as_dict(),
        lambda: stats(cache).as_dict(),
    ):
        try:
            raised.append(repr(act()))
        except CacheError as error:
            raised.extend([repr(error), *traceback.format_exception(error)])
    return "".join(raised)


def artifacts_and_logs() -> str:
    """Everything that Prefect's API has been told."""
    with get_client(sync_client=True) as client:
        shown = [artifact.model_dump_json() for artifact in client.read_artifacts()]
        shown += [log.message for log in client.read_logs()]
    return "".join(shown)


@pytest.mark.promise("Credentials are shown nowhere", tries="logs, reprs, events, artifacts, errors, 9 commands")
def test_credentials_are_in_nothing_that_anybody_sees(
    secrets: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.DEBUG, "cache_blocks")
    cache = TieredCache.from_settings()
    assert work() == ["SAID", "SAID"]

    seen = [errors_of(cache, tmp_path / "a.wav"), artifacts_and_logs()]
    block = TieredCacheBlock(redis_url=cache.settings.redis_url, database_url=cache.settings.database_url)
    for thing in (cache, cache.settings, cache.parts, block, work, transcribe, transcribe.cache_policy):
        seen += [repr(thing), str(thing)]
    seen += [cache.settings.model_dump_json(), str(vars(cache.settings)), block.model_dump_json()]
    with contextlib.suppress(CacheError), cache.parts.database.read() as connection:
        cache.parts.events.flush()
        seen += [str(row) for row in connection.execute(sa.select(table(EventRow)))]
    for words in COMMANDS:
        for form in ([], ["--json"]):
            done = CliRunner().invoke(app, [*words, *form])
            seen += [done.output, *(traceback.format_exception(done.exception) if done.exception else ())]
    seen += [caplog.text, *capsys.readouterr()]

    assert "transcript" in "".join(seen), "something has been seen"
    for number, text in enumerate(seen):
        for secret in secrets:
            assert secret not in text, f"text {number}: {text[max(text.find(secret) - 300, 0) :][:600]}"


@pytest.mark.parametrize(
    "variable, value",
    [
        ("redis_url", f"redis://:{SECRET}/b@127.0.0.1:1"),
        ("redis_url", f"redis://:x#{SECRET}@127.0.0.1:notaport"),
        ("redis_url", f"http://:{SECRET}@127.0.0.1"),
        ("database_url", f"postgresql+psycopg://user:p@{SECRET}@127.0.0.1/x"),
        ("database_url", f"postgresql+psycopg://user@127.0.0.1:{SECRET}/x"),
        ("database_url", SECRET),
        ("database_url", f"mysql://user:{SECRET}@127.0.0.1/x"),
        ("object_store_options", f'{{"secret": "{SECRET}"'),
        ("object_store_options", f'["{SECRET}"]'),
        ("object_store_url", f"no-such-protocol://key:{SECRET}@bucket?api_key={SECRET}"),
    ],
)
def test_a_setting_that_cannot_work_is_named_and_not_shown(variable: str, value: str) -> None:
    cache = TieredCache(CacheSettings(**{variable: value}))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigurationError) as refusal:
        cache.parts.store.exists("anything")
    assert SECRET not in "".join(traceback.format_exception(refusal.value))
