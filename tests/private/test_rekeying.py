"""`cache-blocks rekey`: everything comes to the current key, whatever interrupts it, and stays readable meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from cache_blocks import NO_VALUE, CachedFile, CacheKind, CacheSettings, TieredCache, cached_task
from cache_blocks.cli.app import app
from cache_blocks.maintenance import ls, show
from cache_blocks.maintenance.rekeying import Rekeyed, rekey
from cache_blocks.private.ring import new_key
from cache_blocks.private.sealing import id_of
from tests.pipeline.conftest import PATIENT

if TYPE_CHECKING:
    from tests.servers.s3 import S3Bucket

NOTES = CacheKind("notes", ttl=timedelta(hours=1), replica=True, private=True)
LARGE = CacheKind("large", ttl=timedelta(hours=1), sql_max_bytes=100, redis_max_bytes=0, private=True)
ENTRIES = 12
ROOT = Path(__file__).parents[2]


@cached_task(kind=NOTES, cache_version="1")
def note(what: str) -> str:
    return f"a note on {what}"


@pytest.fixture(params=["embedded", "servers"])
def settings(request: pytest.FixtureRequest, private_settings: CacheSettings) -> CacheSettings:
    """A cache whose ring has the key ``old`` alone."""
    if request.param == "embedded":
        return private_settings
    s3: S3Bucket = request.getfixturevalue("s3")
    return CacheSettings(
        home=private_settings.home,
        private_keys=private_settings.private_keys,
        redis_url=request.getfixturevalue("redis_url"),
        database_url=request.getfixturevalue("postgres_url"),
        object_store_url=SecretStr(f"{s3.url}/cache"),
        object_store_options=SecretStr(json.dumps(s3.options)),
        redis_timeout_seconds=30,
        database_timeout_seconds=30,
        object_store_timeout_seconds=30,
    )


@pytest.fixture
def values(settings: CacheSettings, tmp_path: Path) -> dict[str, Any]:
    """What the cache holds: small ones, one that is in the object store alone, and files."""
    kept: dict[str, Any] = {f"notes:{number}": {"number": number} for number in range(ENTRIES)}
    with closing(TieredCache(settings)) as cache:
        cache.put_many(kept, kind=NOTES)
        large = {"large:0": [f"line {number}" for number in range(500)]}
        cache.put_many(large, kind=LARGE)
        for number in range(3):
            path = tmp_path / f"{number}.wav"
            path.write_bytes(bytes([number]) * 100_000)
            kept[f"notes:file-{number}"] = CachedFile.from_path(path)
            cache.put(f"notes:file-{number}", kept[f"notes:file-{number}"], kind=NOTES)
        return kept | large


@pytest.fixture
def both(settings: CacheSettings) -> CacheSettings:
    """The settings of a process that has the new key in front of the old one."""
    names, old = settings.private_keys.get_secret_value().split(",")
    return settings.model_copy(update={"private_keys": SecretStr(f"{names},{new_key('new')},{old}")})


def new_only(both: CacheSettings) -> CacheSettings:
    names, new, _ = both.private_keys.get_secret_value().split(",")
    return both.model_copy(update={"private_keys": SecretStr(f"{names},{new}")})


def rekeyed(settings: CacheSettings, **options: Any) -> Rekeyed:
    """Rekey in a process of its own, as it were."""
    with closing(TieredCache(settings)) as cache:
        return rekey(cache, **options)


def check_all(settings: CacheSettings, values: dict[str, Any]) -> None:
    """Every value is found by a process that has just started, from every tier, and every file opens."""
    with closing(TieredCache(settings)) as cache:
        found = cache.get_many(values)
        assert found == values
        for one in found.values():
            if isinstance(one, CachedFile):
                assert one.path.read_bytes() == bytes([one.path.read_bytes()[0]]) * 100_000
        for tier in cache.parts.chain.tiers[1:]:
            for entry in tier.read(list(values)).entries.values():
                assert cache.reader.json_of(entry)


def sealed_with(settings: CacheSettings, keys: Sequence[str]) -> set[str]:
    """Ids of the keys that the copies in shared tiers were sealed with."""
    with closing(TieredCache(settings)) as cache:
        tiers = [tier for tier in cache.parts.chain.tiers if tier.name != "memory"]
        return {id_of(entry.payload) for tier in tiers for entry in tier.read(keys).entries.values()}


def drop_local_copies(settings: CacheSettings) -> None:
    for path in settings.local_files.rglob("*"):
        if path.is_file():
            path.unlink()


@pytest.mark.promise(
    "Rekeying brings every tier and file to the new key, and says when the old one may go.",
    tries="memory, Redis, SQLite, PostgreSQL, folder and S3; the old key is then taken out of the ring",
)
def test_after_rekeying_the_old_key_is_not_needed(
    settings: CacheSettings, both: CacheSettings, values: dict[str, Any]
) -> None:
    done = rekeyed(both)
    assert done.complete, done
    assert done.dispensable == ["old"]
    assert not done.unreadable
    assert done.rewritten["blobs"] == 3
    assert done.rewritten["sql"] == len(values) - 1, "of one SQL has a pointer only"
    assert sealed_with(both, list(values)) == {"new"}
    drop_local_copies(settings)
    check_all(new_only(both), values)
    again = rekeyed(both)
    assert again.rewritten.total() == 0, "what is done is not done again"


def test_a_dry_run_counts_and_changes_nothing(
    settings: CacheSettings, both: CacheSettings, values: dict[str, Any]
) -> None:
    done = rekeyed(both, dry_run=True)
    assert done.found["old"] >= len(values)
    assert not done.rewritten
    assert not done.dispensable
    assert sealed_with(settings, list(values)) == {"old"}


def environment(settings: CacheSettings) -> dict[str, str]:
    names = ("redis_url", "database_url", "object_store_url", "object_store_options", "private_keys")
    given = {f"CACHE_BLOCKS_{name.upper()}": getattr(settings, name).get_secret_value() for name in names}
    return os.environ | PATIENT | given | {"CACHE_BLOCKS_HOME": str(settings.home)}


@pytest.mark.timeout(600)
@pytest.mark.promise(
    "Rekeying that is killed at any point has lost nothing, and a later run ends it.",
    tries="SIGKILL after the first file, within SQL, within the copies; everything is read with both keys each time",
)
def test_a_killed_run_has_lost_nothing_and_the_next_one_ends_it(
    settings: CacheSettings, both: CacheSettings, values: dict[str, Any]
) -> None:
    for step in ("blobs", "entries in sql", "entries in object_store"):
        command = [sys.executable, "-m", "tests.private.rekeyer"]
        with subprocess.Popen(command, cwd=ROOT, env=environment(both), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(step):
                    os.kill(process.pid, signal.SIGKILL)
                    break
        drop_local_copies(settings)
        check_all(both, values)
    assert rekeyed(both).complete
    check_all(new_only(both), values)


class _Interrupting:
    """Interrupts, as Ctrl-C does, at one step, and looks at everything at each step."""

    def __init__(self, at: int, look: Callable[[], None]) -> None:
        self._left = at
        self._look = look

    def __call__(self, what: str, done: int) -> None:
        del what, done
        self._look()
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", [1, 2, 5])
def test_everything_is_readable_at_each_step_and_after_an_interruption(
    settings: CacheSettings, both: CacheSettings, values: dict[str, Any], at: int
) -> None:
    del settings
    with pytest.raises(KeyboardInterrupt):
        rekeyed(both, on_progress=_Interrupting(at, lambda: check_all(both, values)))
    check_all(both, values)
    assert rekeyed(both).complete


def test_what_was_deleted_or_computed_anew_meanwhile_stays_so(
    settings: CacheSettings, both: CacheSettings, values: dict[str, Any]
) -> None:
    del values

    def meddle(what: str, done: int) -> None:
        del done
        if what == "blobs":
            with closing(TieredCache(settings)) as other:
                other.parts.chain.delete(["notes:0"])
                other.put("notes:1", "newer", kind=NOTES)

    rekeyed(both, on_progress=meddle)
    with closing(TieredCache(both)) as fresh:
        assert fresh.get("notes:0") is NO_VALUE
        assert fresh.get("notes:1") == "newer"


def test_manifests_and_pointers_are_rekeyed_too(
    monkeypatch: pytest.MonkeyPatch, private_settings: CacheSettings, ring: str, prefect_server: str
) -> None:
    del prefect_server
    monkeypatch.setenv("CACHE_BLOCKS_PRIVATE_KEYS", ring)
    note("tea")
    (entry,) = ls(TieredCache.from_settings())
    names, old = ring.split(",")
    new = new_key("new")
    both = private_settings.model_copy(update={"private_keys": SecretStr(f"{names},{new},{old}")})
    assert rekeyed(both).complete
    details = show(TieredCache(new_only(both)), entry.key)
    assert details is not None
    assert details.manifest["inputs"]["what"]["shown"] == "tea"


def test_what_no_key_opens_is_counted_and_stays(
    settings: CacheSettings, both: CacheSettings, values: dict[str, Any]
) -> None:
    done = rekeyed(new_only(both))
    assert done.unreadable["sql"] == len(values) - 1
    assert done.unreadable["blobs"] == 3
    check_all(settings, values)


# The commands


@pytest.fixture
def invoke(both: CacheSettings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    for name, value in environment(both).items():
        monkeypatch.setenv(name, value)

    def run(*words: str) -> Any:
        with closing(TieredCache.from_settings()):
            return CliRunner().invoke(app, list(words))

    return run


def test_the_command_says_which_key_may_go(invoke: Callable[..., Any], values: dict[str, Any]) -> None:
    told = json.loads(invoke("rekey", "--dry-run", "--json").stdout)
    assert told["may_go"] == []
    assert told["found"]["old"] >= len(values)
    done = invoke("rekey")
    assert done.exit_code == 0
    assert "Key old may go" in done.stdout


def test_the_commands_on_keys(invoke: Callable[..., Any], both: CacheSettings) -> None:
    made = invoke("keys", "new", "first").stdout.strip()
    assert [member.partition(":")[0] for member in made.split(",")] == ["names", "first"]
    added = invoke("keys", "add", "newest").stdout.strip()
    assert [member.partition(":")[0] for member in added.split(",")] == ["names", "newest", "new", "old"]
    assert added.split(",")[0] == both.private_keys.get_secret_value().split(",")[0]
    shown = invoke("keys", "show").stdout
    assert "old" in shown
    assert not [secret for member in added.split(",") if (secret := member.partition(":")[2]) in shown]
    assert invoke("keys", "name", "a.wav").stdout.strip() == TieredCache(both).privacy.name("a.wav")


def test_rekeying_without_a_ring_says_what_is_missing(
    invoke: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CACHE_BLOCKS_PRIVATE_KEYS")
    done = invoke("rekey")
    assert done.exit_code == 1
    assert "cache-blocks keys new" in done.output
