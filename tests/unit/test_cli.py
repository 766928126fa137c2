"""The command line: what it says, what it writes as JSON, its exit codes, and that it never shows a secret."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from typer.testing import CliRunner

from cache_blocks import NO_VALUE, TRANSCRIPT, TieredCache, __version__
from cache_blocks.cli import checks
from cache_blocks.cli.app import app
from cache_blocks.cli.output import seconds, size
from cache_blocks.cli.settings_shown import masked_url, settings_shown, unknown_variables
from cache_blocks.fingerprint import digest_path
from cache_blocks.settings import CacheSettings

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

    from tests.servers.fixtures import StartRedis
    from tests.servers.s3 import S3Bucket

DONE, FAILED, MISUSED = 0, 1, 2


def run(*words: str, answer: str = "") -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, list(words), input=answer)  # pyright: ignore[reportReturnType] - typer has its own click


def run_json(*words: str, code: int = DONE) -> Any:
    """Run a command with --json and return what it wrote."""
    result = run(*words, "--json")
    assert result.exit_code == code, result.output
    return orjson.loads(result.stdout)


@pytest.fixture
def cache(cache_home: Path) -> TieredCache:
    """The cache that the commands use."""
    assert TieredCache.from_settings().settings.home == cache_home
    return TieredCache.from_settings()


@pytest.fixture
def recording(tmp_path: Path, cache: TieredCache) -> Path:
    """A recording of which the cache has a transcript."""
    path = tmp_path / "walrus.mp3"
    path.write_bytes(b"an encoded walrus")
    cache.put("transcript:one", "the walrus sings", kind=TRANSCRIPT, tags=(f"recording:{digest_path(path)}",))
    return path


# The program as people start it


def start(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cache_blocks.cli", *words], capture_output=True, text=True, check=False
    )


def test_the_version_needs_no_library() -> None:
    program = "import sys; sys.argv[1:] = ['--version']; from cache_blocks.cli import main; main(); print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    assert answer.startswith(f"cache-blocks {__version__}\n")
    assert not {"typer", "rich", "prefect", "sqlalchemy", "fsspec", "pydantic"} & set(answer.split())


def test_help_imports_neither_prefect_nor_a_tier() -> None:
    program = "import sys; import cache_blocks.cli.app; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    assert not {"prefect", "sqlalchemy", "sqlmodel", "fsspec", "redis"} & set(answer.split())


@pytest.mark.parametrize(
    "words, code",
    [
        (("ls",), DONE),
        (("show", "transcript:nothing"), FAILED),
        (("no-such-command",), MISUSED),
        (("ls", "--older-than", "soon"), MISUSED),
        (("invalidate",), MISUSED),
        (("invalidate", "--all", "--kind", "x"), MISUSED),
    ],
)
def test_exit_codes(words: tuple[str, ...], code: int) -> None:
    answer = start(*words)
    assert answer.returncode == code, answer.stderr
    assert "Traceback" not in answer.stderr


def test_an_error_is_one_line_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_BLOCKS_DATABASE_URL", "mysql://user:hunter2@host/db")
    answer = start("ls")
    assert answer.returncode == FAILED
    assert answer.stderr == (
        "cache-blocks: database 'mysql' is not supported; use sqlite:/// or postgresql+psycopg://\n"
    )


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_BLOCKS_MODE", "sometimes")
    result = run("ls")
    assert result.exit_code == FAILED
    assert result.stderr == "cache-blocks: CACHE_BLOCKS_MODE: Input should be 'on', 'read-only' or 'off'\n"


# Looking


def test_entries_are_listed_and_shown(cache: TieredCache, recording: Path) -> None:
    cache.get("transcript:one")

    assert "transcript:one" in run("ls").stdout
    (entry,) = run_json("ls", "--kind", "transcript", "--larger-than", "1B")
    assert entry["tags"] == [f"recording:{digest_path(recording)}"]
    assert run_json("ls", "--older-than", "1h") == []

    details = run_json("show", "transcript:one")
    assert details["state"] == "hit"
    assert details["tiers"] == {"memory": "held", "sql": "held", "object_store": "held"}
    assert [event["outcome"] for event in details["events"]] == ["hit"]
    shown = run("show", "transcript:one").stdout
    assert digest_path(recording) in shown
    assert "the walrus sings" not in shown


def test_an_unknown_key_is_answered_with_a_suggestion(recording: Path) -> None:
    assert recording.exists()
    for typed in ("transcript:on", "on", "transcript:onn"):
        result = run("show", typed)
        assert result.exit_code == FAILED
        assert "did you mean transcript:one?" in result.stderr


def test_stats_tell_entries_and_hits(cache: TieredCache, recording: Path) -> None:
    assert recording.exists()
    cache.get("transcript:one")

    written = run_json("stats")

    assert (written["entries"], written["kinds"]["transcript"]["entries"]) == (1, 1)
    assert written["metrics"]["by_kind"]["transcript"]["by_tier"] == {"memory": 1}
    assert "100 %" in run("stats").stdout


def test_a_tag_cannot_write_on_the_terminal(cache: TieredCache) -> None:
    cache.put("transcript:one", "x", kind=TRANSCRIPT, tags=("[red]bold[/red]\u202egnp",))
    assert "[red]bold[/red]\ufffdgnp" in run("show", "transcript:one").stdout


# Removing


def test_invalidating_asks_first(cache: TieredCache, recording: Path) -> None:
    assert recording.exists()
    assert run("invalidate", "--kind", "transcript", "--dry-run").stdout == "1 entry would become misses.\n"
    refused = run("invalidate", "--kind", "transcript", answer="n\n")
    assert refused.exit_code == FAILED
    assert cache.get("transcript:one") == "the walrus sings"

    assert run("invalidate", "--kind", "transcript", answer="y\n").exit_code == DONE
    assert cache.get("transcript:one") is NO_VALUE


@pytest.mark.parametrize("scope", [("--key", "transcript:one"), ("--tag", "x"), ("--kind", "transcript"), ("--all",)])
def test_every_scope_can_be_invalidated(cache: TieredCache, scope: tuple[str, ...]) -> None:
    cache.put("transcript:one", "x", kind=TRANSCRIPT, tags=("x",))
    done = run_json("invalidate", *scope, "--yes")
    assert (done["entries"], done["told"], done["dry_run"]) == (1, ["sql", "object_store"], False)
    assert cache.get("transcript:one") is NO_VALUE


def test_collecting_tells_what_it_freed(cache: TieredCache, recording: Path) -> None:
    assert recording.exists()
    cache.invalidate(kind=TRANSCRIPT)
    assert run_json("gc", "--dry-run")["invalidated"] == 1
    done = run_json("gc")
    assert (done["invalidated"], done["errors"], done["untold"]) == (1, [], [])
    assert "0 B freed" in run("gc").stdout


def test_verifying_fails_when_something_was_damaged(cache: TieredCache, cache_home: Path, recording: Path) -> None:
    assert recording.exists()
    assert run_json("verify")["sound"]
    (replica,) = (path for path in (cache_home / "objects" / "default" / "entries").rglob("*") if path.is_file())
    replica.write_bytes(b"damaged")

    found = run_json("verify", code=FAILED)

    assert found["corrupt"] == {"object_store": ["transcript:one"]}
    assert cache.get("transcript:one") == "the walrus sings"


def test_a_recording_is_forgotten_by_file_or_digest(
    cache: TieredCache, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    planned = run_json("forget", str(recording), "--dry-run")
    assert (planned["entries"], planned["dry_run"]) == (["transcript:one"], True)
    assert run("forget", str(recording), answer="n\n").exit_code == FAILED
    assert cache.get("transcript:one") == "the walrus sings"

    done = run("forget", digest_path(recording), "--yes")

    assert done.exit_code == DONE, done.output
    assert "A search of all tiers finds nothing any more." in done.stdout
    assert run("ls").stdout == "No entries.\n"


def test_a_pipeline_forgets_along(recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_pipeline.py").write_text(
        "from pathlib import Path\n\ndef forget(digest):\n    Path('asked').write_text(digest)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    done = run_json("forget", str(recording), "--yes", "--also", "my_pipeline:forget")

    assert (done["complete"], done["also"]) == (True, "my_pipeline:forget")
    assert (tmp_path / "asked").read_text() == digest_path(recording)
    refused = run("forget", str(recording), "--yes", "--also", "no_such_module:forget")
    assert refused.exit_code == FAILED
    assert "there is no module no_such_module here" in refused.stderr


# Setting up


def test_transcripts_are_brought_in_by_the_pipelines_own_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_importer.py").write_text(
        "def bring_in(cache, folder):\n"
        "    for path in sorted(folder.iterdir()):\n"
        "        failed = path.stat().st_size == 0\n"
        "        yield {'name': path.name, 'status': 'failed' if failed else 'imported', 'reason': 'empty' * failed}\n"
    )
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "a.mp3").write_bytes(b"a")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    assert run("import", "archive", "--into", "my_importer:bring_in").stdout.endswith("1 recording: 1 imported.\n")
    (archive / "b.mp3").write_bytes(b"")
    items = run_json("import", "archive", "--into", "my_importer:bring_in", code=FAILED)
    assert items[1] == {"name": "b.mp3", "status": "failed", "reason": "empty"}
    assert run("import", "nowhere").exit_code == MISUSED


def test_init_saves_the_block_and_doctor_finds_it(
    prefect_server: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cache_blocks.prefect.block import TieredCacheBlock

    assert prefect_server
    monkeypatch.setenv("CACHE_BLOCKS_REDIS_URL", redis_url)
    monkeypatch.setenv("CACHE_BLOCKS_BLOCK", "made-by-init")

    before = {check["name"]: check["state"] for check in run_json("doctor")["checks"]}
    done = run_json("init")
    after = {check["name"]: check["state"] for check in run_json("doctor")["checks"]}

    assert (before["saved block"], after["saved block"]) == ("advice", "ok")
    assert done["block"] == "tiered-cache/made-by-init"
    loaded = TieredCacheBlock.load("made-by-init")
    assert isinstance(loaded, TieredCacheBlock)
    assert loaded.redis_url is not None
    assert loaded.redis_url.get_secret_value() == redis_url
    assert loaded.database_url is None


# The doctor


def test_the_doctor_finds_everything_well_with_embedded_defaults() -> None:
    found = run_json("doctor")
    assert found["healthy"]
    states = {check["name"]: check["state"] for check in found["checks"]}
    assert {states[name] for name in ("home", "memory", "sql", "object_store", "schema", "invalidations")} == {"ok"}


def test_the_doctor_names_what_is_broken_and_what_to_do(
    redis_server: StartRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis = redis_server("--maxmemory", "8mb", "--maxmemory-policy", "noeviction")
    monkeypatch.setenv("CACHE_BLOCKS_REDIS_URL", redis.url)
    found = {check["name"]: check for check in run_json("doctor")["checks"]}
    assert found["redis"]["state"] == "ok"
    assert found["redis memory"]["state"] == "advice"
    assert "allkeys-lru" in found["redis memory"]["way_out"]

    redis.stop()
    assert "redis" in run("invalidate", "--all", "--yes").stderr
    found = {check["name"]: check for check in run_json("doctor", code=FAILED)["checks"]}

    assert found["redis"]["state"] == "broken"
    assert "CACHE_BLOCKS_REDIS_URL" in found["redis"]["way_out"]
    assert found["invalidations"]["found"] == "not told yet: redis 1"
    assert "cache-blocks gc" in found["invalidations"]["way_out"]
    assert "Traceback" not in run("doctor").output


def test_the_doctor_tells_that_a_store_refuses(s3: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_BLOCKS_OBJECT_STORE_URL", s3.url)
    monkeypatch.setenv("CACHE_BLOCKS_OBJECT_STORE_OPTIONS", orjson.dumps(s3.with_secret("wrong").options).decode())
    found = {check["name"]: check for check in run_json("doctor", code=FAILED)["checks"]}
    assert found["object_store writes"]["state"] == "broken"

    monkeypatch.setenv("CACHE_BLOCKS_OBJECT_STORE_OPTIONS", orjson.dumps(s3.options).decode())
    found = {check["name"]: check for check in run_json("doctor")["checks"]}
    assert found["object_store writes"]["state"] == "ok"


def test_the_doctor_knows_the_versions_that_do_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"fastapi": "0.155.1", "prefect": "3.8.8", checks.DISTRIBUTION: "1"}

    def requires(_: str) -> list[str]:
        return ["fastapi<0.155", "prefect>=3.8", "absent-one>=1", "s3fs; extra == 's3'"]

    def version(name: str) -> str:
        if name not in installed:
            raise checks.importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(checks.importlib.metadata, "version", version)
    monkeypatch.setattr(checks.importlib.metadata, "requires", requires)
    found = {check.name: (check.state, check.way_out) for check in checks.packages()}

    assert found["fastapi"] == ("broken", "pip install 'fastapi<0.155'")
    assert found["prefect"] == ("ok", "")
    assert found["absent-one"][0] == "broken"
    assert "s3fs" not in found


def test_a_misspelt_variable_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_BLOCKS_REDIS", "redis://localhost")
    assert unknown_variables() == ["CACHE_BLOCKS_REDIS"]
    (check,) = checks.variables()
    assert check.way_out == "did you mean CACHE_BLOCKS_REDIS_URL?"


def test_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_BLOCKS_REDIS_URL", "redis://user:hunter2@127.0.0.1:1/0?password=hunter2")
    monkeypatch.setenv("CACHE_BLOCKS_DATABASE_URL", "postgresql+psycopg://user:hunter2@127.0.0.1:1/db")
    monkeypatch.setenv("CACHE_BLOCKS_OBJECT_STORE_OPTIONS", '{"key": "hunter2", "client_kwargs": {"x": "hunter2"}}')

    for words in (("doctor",), ("doctor", "--json"), ("ls",), ("gc",), ("verify",), ("init",)):
        result = run(*words)
        assert result.exit_code == FAILED
        assert "hunter2" not in result.output
    shown = {one["name"]: one for one in settings_shown(CacheSettings())}
    assert shown["CACHE_BLOCKS_REDIS_URL"]["value"] == "redis://**********@127.0.0.1:1/0?**********"
    assert shown["CACHE_BLOCKS_REDIS_URL"]["source"] == "environment"
    assert shown["CACHE_BLOCKS_MODE"]["source"] == "default"


@pytest.mark.parametrize(
    "url, shown",
    [
        ("memory://", "memory://"),
        ("sqlite:////home/cache.db", "sqlite:////home/cache.db"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("redis://:pass@[::1]:6379/0", "redis://**********@[::1]:6379/0"),
    ],
)
def test_urls_stay_readable(url: str, shown: str) -> None:
    assert masked_url(url) == shown


def test_ages_and_sizes_have_units() -> None:
    assert [seconds(text) for text in ("90s", "1.5h", "7d", "2w")] == [90, 5400, 604800, 1209600]
    assert [size(text) for text in ("12", "12B", "500kB", "1.5 MB")] == [12, 12, 500_000, 1_500_000]
