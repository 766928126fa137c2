"""Tenants side by side in the same servers: one removes all that it can, and the other is untouched byte for byte."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import sqlalchemy as sa
from redis import Redis
from sqlalchemy import NullPool
from typer.testing import CliRunner

from cache_blocks import CacheSettings, TieredCache
from cache_blocks.blobs import GRACE_SECONDS
from cache_blocks.cli.app import app
from cache_blocks.events import LOOKUP
from cache_blocks.maintenance import collect
from tasks.database import Database as PipelineDatabase
from tasks.fulltext.index import TranscriptIndex
from tasks.fulltext.query import parse_query
from tests.unit.tenant import DIGEST, FILE, KEYS, TAG, YEARS, fill, look, own_key, remember

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from tests.servers.s3 import S3Bucket

LOUD = "team_a"
QUIET = ("team-a", "team", "team_ab", "Team_a")
"""Its neighbours: alike but for SQL's wildcard, its beginning, itself with an end, and itself in other letters."""

CHANGE_BY_LOOKING = {"cache_blocks_event", "cache_blocks_event_tally", "cache_blocks_run", "alembic_version"}
"""Tables that grow with every lookup; what was in them stays."""

Snapshot = dict[str, object]


@dataclass(frozen=True)
class Shared:
    """Servers that all namespaces use.

    Attributes:
        environment: Their settings, without a namespace.
        redis_url: Their Redis, if there is one.
        bucket: Their bucket, if there is one.
        home: Their folder on this machine.
    """

    environment: dict[str, str]
    redis_url: str
    bucket: S3Bucket | None
    home: Path

    def settings(self, namespace: str) -> CacheSettings:
        """The settings of a namespace."""
        names = {name.removeprefix("CACHE_BLOCKS_").lower(): value for name, value in self.environment.items()}
        return CacheSettings(**cast("dict[str, Any]", names), namespace=namespace)

    def start(self, verb: str, namespace: str, folder: Path) -> subprocess.Popen[str]:
        """Start a process of a namespace."""
        command = [sys.executable, "-m", "tests.unit.tenant", verb, str(folder)]
        environment = os.environ | self.environment | {"CACHE_BLOCKS_NAMESPACE": namespace}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    # What is there, past the code under test; all but what belongs to one namespace

    def bytes_but_of(self, namespace: str) -> Snapshot:
        """Every byte that is not of a namespace, in every server."""
        found: Snapshot = {}
        for snapshot in (self._in_redis(), self._in_files(), self._in_bucket()):
            found |= {name: value for name, value in snapshot.items() if namespace not in parts_of(name)}
        return found | self._in_sql(namespace)

    def _in_redis(self) -> Snapshot:
        if not self.redis_url:
            return {}
        with Redis.from_url(self.redis_url) as client:
            names = cast("Iterator[bytes]", client.scan_iter())
            return {
                f"redis:{name.decode()}": (client.dump(name), client.expiretime(name.decode())) for name in list(names)
            }

    def _in_files(self) -> Snapshot:
        files = [path for place in ("objects", "files") for path in (self.home / place).rglob("*") if path.is_file()]
        return {str(path): (path.stat().st_ino, path.read_bytes()) for path in files if ".state" not in path.parts}

    def _in_bucket(self) -> Snapshot:
        if self.bucket is None:
            return {}
        found: Snapshot = {}
        with closing(self.bucket.client()) as client:
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket.bucket):
                for one in page.get("Contents", ()):
                    answer = client.get_object(Bucket=self.bucket.bucket, Key=one["Key"])
                    found[f"s3:{one['Key']}"] = (one["LastModified"], answer["Body"].read())
        return found

    def _in_sql(self, namespace: str) -> Snapshot:
        engine = sa.create_engine(self.settings(namespace).database_url.get_secret_value(), poolclass=NullPool)
        found: Snapshot = {}
        schema = sa.inspect(engine)
        with engine.connect() as connection:
            for name in set(schema.get_table_names()) - CHANGE_BY_LOOKING:
                columns = {column["name"] for column in schema.get_columns(name)}
                if "namespace" in columns:
                    rows = (
                        sa.select(sa.text("*")).select_from(sa.table(name)).where(sa.column("namespace") != namespace)
                    )
                    found |= {f"{name}: {tuple(row)!r}": "" for row in connection.execute(rows)}
        return found


def parts_of(name: str) -> set[str]:
    """The parts of a name."""
    return set(name.replace(":", "/").replace("{", "/").replace("}", "/").split("/"))


@pytest.fixture(params=["servers", "embedded"])
def shared(request: pytest.FixtureRequest, cache_home: Path) -> Shared:
    """Redis, PostgreSQL and one bucket; or one SQLite file and one folder."""
    environment = {f"CACHE_BLOCKS_{tier}_TIMEOUT_SECONDS": "60" for tier in ("REDIS", "DATABASE", "OBJECT_STORE")}
    environment |= {"CACHE_BLOCKS_HOME": str(cache_home), "CACHE_BLOCKS_LEASE_SECONDS": "3600"}
    if request.param == "embedded":
        return Shared(environment, "", None, cache_home)
    bucket = cast("S3Bucket", request.getfixturevalue("s3"))
    redis_url = cast("str", request.getfixturevalue("redis_url"))
    environment |= {
        "CACHE_BLOCKS_REDIS_URL": redis_url,
        "CACHE_BLOCKS_DATABASE_URL": cast("str", request.getfixturevalue("postgres_url")),
        "CACHE_BLOCKS_OBJECT_STORE_URL": f"{bucket.url}/cache",
        "CACHE_BLOCKS_OBJECT_STORE_OPTIONS": json.dumps(bucket.options),
    }
    return Shared(environment, redis_url, bucket, cache_home)


@pytest.fixture
def caches(shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Mapping[str, TieredCache]]:
    """A cache of each namespace, all with the same keys, tags and file, and with what the pipeline keeps beside it."""
    made = {namespace: TieredCache(shared.settings(namespace)) for namespace in (LOUD, *QUIET)}
    for name, value in shared.environment.items():
        monkeypatch.setenv(name, value)
    for namespace, cache in made.items():
        monkeypatch.setenv("CACHE_BLOCKS_NAMESPACE", namespace)
        remember(namespace)
        fill(cache, tmp_path)
        assert look(cache) == 0
        cache.parts.plans.save("batch", {"source": namespace}, [])
    yield made
    for cache in made.values():
        cache.close()


@pytest.mark.promise(
    "Namespaces do not touch each other",
    tries="two processes in one Redis, PostgreSQL and bucket, or in one SQLite file: one looks up under a lease, the "
    "other invalidates, forgets, verifies, expires and collects everything, under the same keys, tags and blob digests",
)
def test_what_one_does_leaves_every_byte_of_the_others(
    shared: Shared, caches: Mapping[str, TieredCache], tmp_path: Path
) -> None:
    staying = shared.start("stay", QUIET[0], tmp_path)
    try:
        await_or_fail((tmp_path / "ready").exists, staying)
        before = shared.bytes_but_of(LOUD)

        told = answer_of(shared.start("disturb", LOUD, tmp_path))

        after = shared.bytes_but_of(LOUD)
    finally:
        (tmp_path / "stop").touch()
    stayed = answer_of(staying)

    assert told["lease"] == "free", "the other's lease does not stand in its way"
    assert told["computed"] == "computed by the other"
    assert len(told["forgotten"]) == len(KEYS) // 2 + 1
    assert (told["invalidated key"], told["invalidated tag"]) == (1, len(KEYS) // 2 + 1)
    assert (told["invalidated kind"], told["missed kind"]) == (len(KEYS), len(KEYS))
    assert told["missed"] == told["missed in the end"] == len(KEYS) + 2
    assert (told["damaged"], told["errors"]) == ({}, [])
    assert told["expired"] >= len(KEYS) + 2
    assert told["blobs"] == 1

    assert len(before) > 5 * len(QUIET)
    assert [name for name, value in before.items() if after.get(name) != value] == [], "changed or gone"
    assert after.keys() - before.keys() == set(), "new"

    assert stayed["rounds"] > 0
    assert stayed == {"rounds": stayed["rounds"], "wrong": 0, "computed": "computed here", "unleased": 0}
    for namespace in QUIET:
        assert look(caches[namespace]) == 0
        (found,) = index_of(shared, namespace).search(parse_query("walrus"), 10)
        assert [segment.text for segment in found.segments] == ["the walrus sings"]
    assert index_of(shared, LOUD).search(parse_query("walrus"), 10) == []


def test_nobody_is_told_anything_of_another(caches: Mapping[str, TieredCache], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command that reads, in one namespace: it counts its own, and names nothing of the others."""
    assert look(caches[QUIET[0]]) == 0
    for cache in caches.values():
        cache.parts.events.flush()
    monkeypatch.setenv("CACHE_BLOCKS_NAMESPACE", LOUD)
    mine = len(KEYS) + 2

    answers = [
        stats := run("stats", "--json"),
        listed := run("ls", "--json"),
        tagged := run("ls", "--tag", TAG, "--json"),
        verified := run("verify", "--json"),
        shown := run("show", KEYS[0], "--json"),
        run("explain", KEYS[0]),
        metrics := run("metrics", "--prometheus"),
        collected := run("gc", "--dry-run", "--json"),
        forgotten := run("forget", DIGEST, "--dry-run", "--json"),
        run("doctor", "--json"),
    ]

    assert json.loads(stats)["entries"] == mine
    assert len(json.loads(listed)) == mine
    assert len(json.loads(tagged)) == len(json.loads(forgotten)["entries"]) == len(KEYS) // 2 + 1
    assert json.loads(verified)["intact"]["sql"] == mine
    assert len(json.loads(shown)["events"]) == 2, "its own two lookups, of the many"
    assert json.loads(collected)["expired"] == 0
    for namespace in QUIET:
        assert f'namespace="{namespace}"' not in metrics
        assert [one for one in answers if own_key(namespace) in one] == []
        assert run("show", own_key(namespace), code=1) == ""
        assert run("explain", own_key(namespace), code=1) == ""
        assert caches[LOUD].lookup(own_key(namespace)).reason == "never seen"
        assert caches[LOUD].parts.plans.made_for("batch", {"source": namespace}, time.time()) is None
    assert caches[LOUD].parts.plans.made_for("batch", {"source": LOUD}, time.time())
    lookups = [event for event in caches[LOUD].parts.events.since(0) if event.action == LOOKUP]
    assert len(lookups) == 2 * mine


def test_what_another_has_begun_to_write_is_not_collected(caches: Mapping[str, TieredCache]) -> None:
    """Half-written objects as old as you like, in each namespace: a collection takes its own."""
    begun: dict[str, str] = {}
    for namespace, cache in caches.items():
        store = cache.parts.store
        begun[namespace] = store.path(namespace, "blobs", "ab", ".tmp-0123456789abcdef-1f2e")
        store.write(begun[namespace], b"half")

    collected = collect(caches[LOUD], now=time.time() + YEARS)

    assert (collected.unfinished, collected.errors) == (1, [])
    store = caches[LOUD].parts.store
    assert [one for one in (LOUD, *QUIET) if store.exists(begun[one]) is None] == [LOUD]


def test_a_blob_collected_here_is_alive_there(shared: Shared, caches: Mapping[str, TieredCache]) -> None:
    """The same digest in all namespaces; one after the other lets go of it, and the rest can still read it."""
    namespaces = [LOUD, *QUIET]
    while namespaces:
        gone = namespaces.pop()
        caches[gone].invalidate(key=FILE)
        assert collect(caches[gone], now=time.time() + GRACE_SECONDS + 60).blobs == 1
        for namespace in namespaces:
            shutil.rmtree(shared.settings(namespace).local_files)
            assert look(caches[namespace]) == 0


def run(*words: str, code: int = 0) -> str:
    """Run a command in this process and return what it wrote."""
    answer = CliRunner().invoke(app, list(words))
    assert answer.exit_code == code, answer.output
    return answer.stdout


def index_of(shared: Shared, namespace: str) -> TranscriptIndex:
    """The search index of a namespace."""
    return TranscriptIndex(PipelineDatabase.from_settings(shared.settings(namespace)))


def answer_of(process: subprocess.Popen[str]) -> Any:
    """What a process says in the end."""
    try:
        out, errors = process.communicate(timeout=150)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-3000:]
    return json.loads(out.splitlines()[-1])


def await_or_fail(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for what a process brings about; fail when it ends without."""
    while not condition():
        if process.poll() is not None:
            pytest.fail(process.communicate()[1][-3000:])
        time.sleep(0.02)
