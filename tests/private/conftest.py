"""Rings, private kinds, and runs of the real pipeline of which everything is kept that somebody could look into."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from prefect import flow
from pydantic import SecretStr

from cache_blocks import TRANSCRIPT, CacheSettings, TieredCache, cached_task
from cache_blocks.fingerprint import digest_path
from cache_blocks.private.ring import new_ring
from tests.pipeline.batches import SAMPLES, artifacts_of, run_batch
from tests.pipeline.conftest import PATIENT, closing_cache, set_all
from tests.private.leaks import Needles, files_in, redis_contents, s3_contents, sql_contents, words_of
from tests.private.prefect_of_run import prefect_contents, prefect_of_its_own
from tests.servers.postgres import fresh_database
from tests.servers.postgres import postgres_server as start_postgres
from tests.servers.redis import RedisServer
from tests.servers.s3 import S3Account, fresh_bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

Where = Literal["servers", "embedded"]
PROMPT = "Give Brontosaurus Okapi the benefit of the doubt"
PATIENT_NAME = "Quetzalcoatl Wombat"
STEM = "quagga-consultation"


@pytest.fixture
def ring() -> str:
    """A key ring with the key ``old``."""
    return new_ring("old")


@pytest.fixture
def private_settings(cache_home: Path, ring: str) -> CacheSettings:
    """The embedded defaults, with a ring."""
    return CacheSettings(home=cache_home, private_keys=SecretStr(ring))


@cached_task(kind=TRANSCRIPT, cache_version="1", cache_ignore=("name",), cache_tags=(lambda given: given["name"],))
def answer(prompt: str, options: dict[str, str], name: str) -> str:
    return f"{prompt}, {options}, said {name}"


# Named, because the names that Prefect makes up have words of the recordings: "amiable-cow".
@flow(flow_run_name="ask")
def ask() -> None:
    for _ in range(2):
        assert PROMPT in answer(PROMPT, {PATIENT_NAME: "diagnosis unknown"}, name=PATIENT_NAME)
    TieredCache.from_settings().invalidate(tag=PATIENT_NAME)
    answer(PROMPT, {PATIENT_NAME: "another diagnosis"}, name=PATIENT_NAME)


@dataclass
class Seen:
    """What somebody finds who has no key: by place, which of the texts that are nobody's business."""

    found: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    lookups: int = 0
    hits: int = 0

    def look(self, place: str, needles: Needles, contents: Iterable[bytes], *, besides: Iterable[bytes] = ()) -> None:
        """Note what some contents have, besides the words that were there from the start: servers speak English."""
        self.found[place] = needles.within(contents) - needles.within(besides)


class _Listener(logging.Handler):
    """Keeps every line, of whatever level, that goes to any of the loggers."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[bytes] = []

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if record.exc_info:
            said += logging.Formatter().formatException(record.exc_info)
        self.lines.append(said.encode())


@contextmanager
def listening() -> Generator[list[bytes]]:
    """What is logged meanwhile, by this package, by Prefect and by the flow."""
    listener = _Listener()
    names = ["", "cache_blocks", "prefect", "prefect.flow_runs", "prefect.task_runs", "prefect.cache_blocks"]
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addHandler(listener)
    try:
        yield listener.lines
    finally:
        for logger in loggers:
            logger.removeHandler(listener)


@pytest.fixture(scope="session")
def run_and_look(s3_account: S3Account, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Where, bool], Seen]:
    """Runs the batch pipeline twice, and a task with a prompt, and looks into every place; each way once a session."""
    done: dict[tuple[Where, bool], Seen] = {}

    def run(where: Where, private: bool) -> Seen:  # noqa: FBT001 - the one question
        if (where, private) not in done:
            done[where, private] = _run(
                where, s3_account, tmp_path_factory.mktemp(f"{where}-{private}"), private=private
            )
        return done[where, private]

    return run


def _run(where: Where, account: S3Account, folder: Path, *, private: bool) -> Seen:
    recordings = folder / "recordings"
    recordings.mkdir()
    for number, sample in enumerate(sorted(path for path in SAMPLES.iterdir() if path.name.startswith("austen"))):
        shutil.copy(sample, recordings / f"{STEM}-{number}{sample.suffix}")
    settings = PATIENT | {"CACHE_BLOCKS_HOME": str(folder / "home"), "CACHE_BLOCKS_HIT_RATE_ALERT": "1"}
    if private:
        settings |= {"CACHE_BLOCKS_PRIVATE": "true", "CACHE_BLOCKS_PRIVATE_KEYS": new_ring()}
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        places: dict[str, Callable[[], Iterable[bytes]]] = {}
        pristine: dict[str, list[bytes]] = {}
        if where == "servers":
            settings |= _servers(stack, account, folder, places)
            pristine["PostgreSQL"] = list(places["PostgreSQL"]())
        else:
            places["SQLite"] = lambda: sql_contents(f"sqlite:///{folder / 'home' / 'cache.db'}")
            places["folder"] = lambda: files_in(folder / "home" / "objects")
        set_all(patch, settings)
        stack.enter_context(prefect_of_its_own())
        return _look_into(folder, places, pristine)


def _servers(
    stack: ExitStack, account: S3Account, folder: Path, places: dict[str, Callable[[], Iterable[bytes]]]
) -> dict[str, str]:
    """Start servers of this run's own, so that whatever is found is its own."""
    (folder / "redis").mkdir()
    redis = RedisServer(folder / "redis", "--appendonly", "yes", "--rdbcompression", "no", "--appendfsync", "always")
    stack.callback(redis.stop)
    client = stack.enter_context(redis.client())
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True)))
    directory.chmod(0o755)
    database = stack.enter_context(fresh_database(stack.enter_context(start_postgres(directory))))
    bucket = stack.enter_context(fresh_bucket(account))
    places |= {
        "Redis": lambda: redis_contents(client),
        "PostgreSQL": lambda: sql_contents(database),
        "S3": lambda: s3_contents(bucket),
    }
    return {
        "CACHE_BLOCKS_REDIS_URL": redis.url,
        "CACHE_BLOCKS_DATABASE_URL": database,
        "CACHE_BLOCKS_OBJECT_STORE_URL": f"{bucket.url}/cache",
        "CACHE_BLOCKS_OBJECT_STORE_OPTIONS": json.dumps(bucket.options),
    }


def _look_into(
    folder: Path, places: dict[str, Callable[[], Iterable[bytes]]], pristine: dict[str, list[bytes]]
) -> Seen:
    seen = Seen()
    with closing_cache() as cache, listening() as lines:
        first = run_batch(folder / "recordings", folder / "out")
        second = run_batch(folder / "recordings", folder / "out")
        assert len(first.texts) == 5, first.summary
        assert second.texts == first.texts
        ask()
        seen.lookups, seen.hits = len(second.lookups), sum(second.hits.values())
        cache.parts.events.flush()
        names = frozenset({STEM, *PATIENT_NAME.split(), *PROMPT.split()[1:3], "diagnosis"})
        words = words_of(first.texts.values(), 7)
        digests = frozenset(digest_path(path) for path in (folder / "recordings").iterdir())
        kept = Needles(names | words | digests)
        for place, contents in places.items():
            seen.look(place, kept, contents(), besides=pristine.get(place, ()))
        # Digests of what is used on this machine are no secret to who may read its files.
        home = (data for data in files_in(folder / "home"))
        seen.look("home", Needles(names | words), home)
        shown = [artifact for run in (first, second) for artifact in artifacts_of(run.flow_run_id).values()]
        assert len(shown) >= 4
        seen.look("artifacts", Needles(names | words | digests), [str(one.model_dump()).encode() for one in shown])
        seen.look("logs", kept, lines)
        seen.look("Prefect", Needles(names | words), prefect_contents())
    return seen
