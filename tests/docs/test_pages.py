"""Every code block and every command of the documentation works as it stands; `pages` says how they are run.

Each page is read from top to bottom, in a folder and with a cache of its own.
"""

from collections.abc import Mapping
from pathlib import Path

import orjson
import pytest

from tests.docs.blocks import ROOT, blocks_of
from tests.docs.pages import Reader
from tests.servers.s3 import S3Bucket

PAGES = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))
SHARED_SERVERS = "docs/how-to/shared-servers.md"
DEPLOYING = "docs/deploying.md"
OBJECT_STORE = "docs/how-to/object-store.md"
WITH_SERVERS = (SHARED_SERVERS, DEPLOYING, OBJECT_STORE)
"""Pages that speak of Redis, PostgreSQL and S3, by the same made-up addresses."""
RUN_FLOWS = (
    "docs/tutorial.md",
    "docs/how-to/batches.md",
    "docs/how-to/environments.md",
    "docs/how-to/maintenance.md",
    "docs/how-to/private-data.md",
    "docs/how-to/task-runners.md",
    "docs/how-to/troubleshooting.md",
    "docs/privacy.md",
    SHARED_SERVERS,
)
"""Pages that need a Prefect server."""
NOT_RUN: Mapping[str, str] = {
    "pip install '.[s3,postgres]'": "it is installed; test_install.py installs the package into an empty environment",
    "prefect deploy --all --prefect-file deployments/prefect.yaml": "tests/pipeline/test_deployment.py does it",
    "prefect server start --background": "a server runs already, which the tests end",
    "prefect work-pool create speech --type process": "tests/pipeline/test_deployment.py does it",
    "docker compose --file deployments/compose.yaml up --detach --build --wait": "needs an engine; tests/deployments",
    "prefect work-pool create speech --type process --overwrite \\": "tests/deployments/test_work_pools.py does it",
    "prefect worker start --pool speech --limit 4": "the same",
    "docker build --file deployments/Dockerfile --tag prefect-cache-blocks .": "needs an engine; tests/deployments",
    "cache-blocks lifecycle > lifecycle.json": "needs Amazon's tool; tests/unit/test_lifecycle.py puts it",
    "kubectl create namespace speech": "needs a cluster; tests/deployments",
    "pip install '.[dask,s3,postgres]'": "they are installed",
    "dask scheduler --port 8786": "tests/runners/test_dask.py starts a scheduler",
    "dask worker tcp://scheduler.example:8786 --nthreads 1": "tests/runners/test_dask.py starts three workers",
    "prefect deployment run batch-transcription/on-demand --param runner=tcp://scheduler.example:8786 \\": (
        "its bucket and its cluster are made up"
    ),
}
"""Blocks that no test runs here, by their first line, and why."""


@pytest.mark.timeout(900)  # a dozen processes one after another, each of which imports Prefect
@pytest.mark.parametrize("page", [page for page in PAGES if page not in WITH_SERVERS and blocks_of(page)])
def test_a_page_works_as_it_stands(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if page in RUN_FLOWS:
        monkeypatch.setenv("PREFECT_API_URL", request.getfixturevalue("prefect_server"))
    read(page, tmp_path, {}, monkeypatch)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", WITH_SERVERS)
def test_a_page_on_shared_servers_works_with_real_ones(
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prefect_server: str,
    redis_url: str,
    postgres_url: str,
    s3: S3Bucket,
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    made_up = {
        "redis://cache.example:6379/0": redis_url,
        "postgresql+psycopg://cache:secret@db.example/cache": postgres_url,
        "s3://speech-cache": s3.url,
        '{"endpoint_url": "https://s3.example", "key": "AKIAEXAMPLE", "secret": "hidden"}': orjson.dumps(
            s3.options
        ).decode(),
    }
    read(page, tmp_path, made_up, monkeypatch)


def read(page: str, folder: Path, instead: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what a page says; ``instead`` replaces the addresses that it has made up."""
    with Reader(folder / "reader", instead, monkeypatch) as reader:
        for block in blocks_of(page):
            if block.text.splitlines()[0] not in NOT_RUN:
                reader.read(block)


def test_what_is_not_run_is_there() -> None:
    first_lines = {block.text.splitlines()[0] for page in PAGES for block in blocks_of(page)}
    assert set(NOT_RUN) <= first_lines


def test_no_block_escapes_by_its_indentation() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert text.count("```") == 2 * len(blocks_of(page)), page
