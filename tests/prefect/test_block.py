"""The saved block: a Prefect block like any other, and the way from a state back to its result in a later process."""

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterId
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite
from pydantic import SecretStr

from cache_blocks import CacheError, TieredCache, TieredCacheBlock
from cache_blocks.prefect.saved_block import forget_saved_blocks
from tests.prefect.observed import run_python

PILLOW_IS_HERE = importlib.util.find_spec("PIL") is not None

BLOCK_NAME = "of-these-tests"


class TestStandards(BlockStandardTestSuite):
    """What Prefect asks of every block."""

    @pytest.fixture
    def block(self) -> type[Block]:
        return TieredCacheBlock

    @pytest.mark.skipif(PILLOW_IS_HERE, reason="with Pillow, this test fetches the logo; there is no network here")
    def test_has_a_valid_image(self, block: type[Block]) -> None:
        assert str(block._logo_url).startswith("https://")  # pyright: ignore[reportPrivateUsage]


def secretive(home: Path) -> TieredCacheBlock:
    return TieredCacheBlock(
        home=str(home),
        redis_url=SecretStr("redis://:topsecret@localhost:1/0"),
        database_url=SecretStr("postgresql+psycopg://me:topsecret@localhost/db"),
        object_store_options=SecretStr('{"secret": "topsecret"}'),
        namespace="mine",
        lease_seconds=5,
        mode="read-only",
    )


@pytest.fixture
def saved(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[TieredCacheBlock]:
    """This test's cache, saved as a block under the name that the settings say."""
    monkeypatch.setenv("CACHE_BLOCKS_BLOCK", BLOCK_NAME)
    block = TieredCacheBlock(home=str(cache_home))
    block.save(BLOCK_NAME, overwrite=True)
    forget_saved_blocks()
    yield block
    TieredCacheBlock.delete(BLOCK_NAME)


def test_a_block_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    secretive(tmp_path).save("comes-back", overwrite=True)

    loaded = TieredCacheBlock.load("comes-back")

    assert isinstance(loaded, TieredCacheBlock)
    assert loaded.settings() == secretive(tmp_path).settings()
    assert loaded.settings().redis_url.get_secret_value() == "redis://:topsecret@localhost:1/0"
    assert (loaded.settings().namespace, loaded.settings().mode, loaded.settings().lease_seconds) == (
        "mine",
        "read-only",
        5,
    )


def test_fields_left_empty_are_taken_from_the_environment(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_BLOCKS_NAMESPACE", "from-environment")
    settings = TieredCacheBlock(mode="off").settings()

    assert (settings.namespace, settings.mode, settings.home) == ("from-environment", "off", cache_home)


def test_secrets_are_shown_neither_by_the_block_nor_by_the_api(tmp_path: Path) -> None:
    block = secretive(tmp_path)
    block.save("secretive", overwrite=True)

    with get_client(sync_client=True) as client:
        document = client.read_block_document_by_name("secretive", "tiered-cache", include_secrets=False)

    assert "topsecret" not in repr(block) + str(block)
    assert "topsecret" not in document.model_dump_json()
    assert "topsecret" not in json.dumps(block.model_dump(mode="json"))


def test_a_block_gives_the_processs_own_cache(saved: TieredCacheBlock, cache: TieredCache) -> None:
    assert saved.cache().settings.home == cache.settings.home
    loaded: Any = TieredCacheBlock.load(BLOCK_NAME)
    assert loaded.cache() is saved.cache()


def test_a_block_is_no_file_system(saved: TieredCacheBlock) -> None:
    with pytest.raises(CacheError, match="use @cached_task"):
        saved.write_path("anything", b"content")
    with pytest.raises(CacheError, match="no longer cached"):
        saved.read_path("transcript:0123")


def test_the_module_registers_its_block(child_environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "prefect", "block", "register", "-m", "cache_blocks"]

    done = subprocess.run(command, env=child_environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "Successfully registered 1 block" in done.stdout
    assert "Tiered Cache" in done.stdout


MODULE = """
from pydantic import BaseModel
from cache_blocks import TRANSCRIPT, CachedFile, cached_task

class Word(BaseModel):
    text: str
    start: float

@cached_task(kind=TRANSCRIPT)
def first_word(text: str) -> Word:
    return Word(text=text.split()[0], start=0.5)

@cached_task(kind=TRANSCRIPT)
def as_file(folder: str) -> CachedFile:
    from pathlib import Path
    path = Path(folder) / "produced.txt"
    path.write_text("produced")
    return CachedFile.from_path(path)
"""
RUN = """
from prefect import flow
from words import as_file, first_word

@flow
def work(folder: str) -> list[str]:
    return [
        str(task(argument, return_state=True).state_details.task_run_id)
        for task, argument in ((first_word, "one two"), (first_word, "one two"), (as_file, folder))
    ]

if __name__ == "__main__":
    import json, sys
    print(json.dumps(work(sys.argv[1])))
"""
LOAD = """
import sys, time
from typing import Any
from uuid import UUID
from prefect.client.orchestration import get_client
{imports}

with get_client(sync_client=True) as client:
    states = [client.read_task_run(UUID(one)).state for one in sys.argv[1:]]
for state in states:
    try:
        print(state.name, repr(state.result(retry_result_failure=False)))
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.fixture
def later(tmp_path: Path, saved: TieredCacheBlock, child_environment: dict[str, str]) -> dict[str, str]:
    """The environment of later processes: they know the API, the module, and nothing of where the cache is."""
    del saved
    (tmp_path / "words.py").write_text(MODULE)
    (tmp_path / "run.py").write_text(RUN)
    elsewhere = {"CACHE_BLOCKS_HOME": str(tmp_path / "elsewhere"), "CACHE_BLOCKS_BLOCK": "another"}
    return child_environment | elsewhere


@pytest.fixture
def task_run_ids(tmp_path: Path, later: dict[str, str], cache_home: Path) -> list[str]:
    """Task runs of an earlier process: a miss, a hit, a file."""
    environment = later | {"CACHE_BLOCKS_HOME": str(cache_home), "CACHE_BLOCKS_BLOCK": BLOCK_NAME}
    output = run_python("run.py", str(tmp_path), cwd=tmp_path, environment=environment)
    ids: list[str] = json.loads(output.splitlines()[-1])
    for one in ids:
        _await_final_state(UUID(one))
    return ids


def _await_final_state(task_run_id: UUID) -> None:
    """Task runs reach the API as events, which it works off in its own time."""
    deadline = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            found = client.read_task_runs(task_run_filter=TaskRunFilter(id=TaskRunFilterId(any_=[task_run_id])))
            if any(run.state is not None and run.state.is_final() for run in found):
                return
            time.sleep(0.05)
    pytest.fail(f"the API does not know the final state of {task_run_id}")


def load(task_runs: list[str], imports: str, environment: dict[str, str], cwd: Path) -> list[str]:
    """State name and result of each task run, as a process that does these imports gets them from the API."""
    script = cwd / "load.py"
    script.write_text(LOAD.format(imports=imports))
    return run_python(script, *task_runs, cwd=cwd, environment=environment).splitlines()


def test_a_later_process_loads_results_through_the_saved_block(
    tmp_path: Path, task_run_ids: list[str], later: dict[str, str], cache: TieredCache
) -> None:
    typed = load(task_run_ids, "import words", later, tmp_path)
    plain = load(task_run_ids[:2], "import cache_blocks.prefect", later, tmp_path)
    cache.invalidate(kind="transcript")
    gone = load(task_run_ids[:2], "import words", later, tmp_path)

    assert typed[:2] == ["Completed Word(text='one', start=0.5)", "Cached Word(text='one', start=0.5)"]
    assert typed[2].startswith("Completed CachedFile('produced.txt'")
    assert plain == ["Completed {'text': 'one', 'start': 0.5}", "Cached {'text': 'one', 'start': 0.5}"]
    assert ["no longer cached" in line for line in gone] == [True, True]
