"""The job templates of work pools: by Prefect's validation, by what they render to, and, for processes, by a run.

Secrets stay references in every template: to the saved block for processes and Docker, to a Kubernetes secret there.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import jsonschema
import kubernetes_validate
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker
from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration

from cache_blocks import CacheSettings, TieredCache, maintenance
from cache_blocks.events import LOOKUP
from cache_blocks.prefect.block import TieredCacheBlock
from tests.pipeline.batches import ROOT
from tests.pipeline.conftest import PATIENT, set_all
from tests.servers.process import ServerProcess, free_port

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.servers.s3 import S3Bucket

POOLS = ROOT / "deployments" / "pools"
PREFECT = str(Path(sys.executable).with_name("prefect"))
SECRET = "not-to-be-seen"
WORKERS = {"process": ProcessWorker, "docker": DockerWorker, "kubernetes": KubernetesWorker}
BY_BLOCK = {
    "CACHE_BLOCKS_NAMESPACE": "namespace",
    "CACHE_BLOCKS_REDIS_URL": "redis_url",
    "CACHE_BLOCKS_DATABASE_URL": "database_url",
    "CACHE_BLOCKS_OBJECT_STORE_URL": "object_store_url",
    "CACHE_BLOCKS_OBJECT_STORE_OPTIONS": "object_store_options",
}


def template_of(pool: str) -> dict[str, Any]:
    """A template as it stands."""
    template: dict[str, Any] = json.loads((POOLS / f"{pool}.json").read_text())
    return template


def prefect(*words: str) -> str:
    """Run Prefect's command line and return what it says."""
    done = subprocess.run([PREFECT, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture
def saved_block(prefect_server: str) -> Generator[TieredCacheBlock]:
    """The block that the templates name, with secrets in it."""
    assert prefect_server
    block = TieredCacheBlock.model_validate(
        {
            "namespace": "production",
            "redis_url": f"redis://:{SECRET}@redis/0",
            "database_url": f"postgresql+psycopg://me:{SECRET}@db/cache",
            "object_store_options": json.dumps({"client_kwargs": {"config": {"secret": SECRET}}}),
        }
    )
    block.save("default", overwrite=True)
    yield block
    TieredCacheBlock.delete("default")


@pytest.mark.parametrize("pool", WORKERS)
def test_it_is_what_the_workers_own_template_is_but_for_our_settings(pool: str) -> None:
    """So that an update of Prefect that adds a variable shows here, and every default is one that its schema allows."""
    ours, theirs = template_of(pool), WORKERS[pool].get_default_base_job_template()
    extra = {"cache_settings", "cache_secret"} if pool == "kubernetes" else set[str]()
    assert set(ours["variables"]["properties"]) == set(theirs["variables"]["properties"]) | extra
    assert ours["job_configuration"].keys() == theirs["job_configuration"].keys()
    jsonschema.Draft202012Validator.check_schema(ours["variables"])
    properties: dict[str, Any] = ours["variables"]["properties"]
    defaults = {name: one["default"] for name, one in properties.items() if one.get("default") is not None}
    jsonschema.validate(defaults, ours["variables"])


@pytest.mark.parametrize("pool", ["process", "docker"])
def test_secrets_are_references_to_the_saved_block(pool: str) -> None:
    environment = template_of(pool)["variables"]["properties"]["env"]["default"]
    for name, field in BY_BLOCK.items():
        assert environment[name] == f"{{{{ prefect.blocks.tiered-cache.default.{field} }}}}"
        assert name.removeprefix("CACHE_BLOCKS_").lower() in CacheSettings.model_fields
    assert set(environment) - set(BY_BLOCK) <= {"CACHE_BLOCKS_HOME"}


@pytest.mark.parametrize("pool", ["process", "docker", "kubernetes"])
def test_prefect_takes_it(pool: str, prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its server, which checks the schema and that every placeholder has a variable."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    name = f"{pool}-{uuid4().hex[:8]}"
    words = ("--type", pool, "--base-job-template", str(POOLS / f"{pool}.json"))
    prefect("work-pool", "create", name, *words)
    with get_client(sync_client=True) as client:
        assert client.read_work_pool(name).base_job_template == template_of(pool)


@pytest.mark.parametrize(
    "pool, configuration", [("process", ProcessJobConfiguration), ("docker", DockerWorkerJobConfiguration)]
)
def test_a_worker_fills_in_the_environment(pool: str, configuration: Any, saved_block: TieredCacheBlock) -> None:
    """What is set in the block arrives, what is open there stays open, and a deployment may add its own."""
    rendered = render(configuration, template_of(pool), {"env": {"CACHE_BLOCKS_MODE": "read-only"}})

    environment = {name: value for name, value in rendered.env.items() if value is not None}
    assert environment["CACHE_BLOCKS_NAMESPACE"] == "production"
    assert environment["CACHE_BLOCKS_MODE"] == "read-only"
    assert "CACHE_BLOCKS_OBJECT_STORE_URL" not in environment
    assert saved_block.redis_url is not None
    assert environment["CACHE_BLOCKS_REDIS_URL"] == saved_block.redis_url.get_secret_value()
    assert json.loads(environment["CACHE_BLOCKS_OBJECT_STORE_OPTIONS"])["client_kwargs"]["config"]["secret"] == SECRET


def test_without_the_saved_block_a_run_says_which_one_is_missing(prefect_server: str) -> None:
    assert prefect_server
    with pytest.raises(Exception, match="default"):
        render(ProcessJobConfiguration, template_of("process"), {})


def test_a_kubernetes_job_is_valid_and_has_references_only(saved_block: TieredCacheBlock) -> None:
    """By the schema of the Kubernetes API, after the worker has prepared it for a run; no value of the block in it."""
    assert saved_block
    configuration = render(
        KubernetesWorkerJobConfiguration, template_of("kubernetes"), {"cache_secret": "other-secret"}
    )
    configuration.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="a run"))

    job = configuration.job_manifest
    kubernetes_validate.validate(job, "1.32", strict=True)
    assert SECRET not in json.dumps(job)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    references = {one["name"]: one["valueFrom"]["secretKeyRef"] for one in container["env"] if "valueFrom" in one}
    assert {name: reference["key"] for name, reference in references.items()} == {
        "CACHE_BLOCKS_REDIS_URL": "redis-url",
        "CACHE_BLOCKS_DATABASE_URL": "database-url",
        "CACHE_BLOCKS_OBJECT_STORE_OPTIONS": "object-store-options",
        "CACHE_BLOCKS_PRIVATE_KEYS": "private-keys",
    }
    assert {reference["name"] for reference in references.values()} == {"other-secret"}
    for name in references:
        assert name.removeprefix("CACHE_BLOCKS_").lower() in CacheSettings.model_fields
    assert container["envFrom"] == [{"configMapRef": {"name": "cache-blocks"}}]
    values = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    assert values["CACHE_BLOCKS_HOME"] == container["volumeMounts"][0]["mountPath"]
    assert job["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"]


def render(configuration: Any, template: dict[str, Any], values: dict[str, Any]) -> Any:
    """What a worker makes of a template."""

    async def rendered() -> Any:
        return await configuration.from_template_and_values(template, values)

    return asyncio.run(rendered())


# For real: a worker on a pool made with the process template


MODULE = """
from prefect import flow

from cache_blocks import TRANSCRIPT, cached_task


@cached_task(kind=TRANSCRIPT)
def double(number: int) -> int:
    return number * 2


@flow
def doubling() -> int:
    return double(21)
"""


def test_a_run_on_a_process_pool_works_with_the_settings_of_the_block(
    prefect_server: str,
    redis_url: str,
    postgres_url: str,
    s3: S3Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker knows Prefect's address and nothing of the cache: the run's results are in the block's servers."""
    given = {
        "namespace": "by-block",
        "redis_url": redis_url,
        "database_url": postgres_url,
        "object_store_url": f"{s3.url}/cache",
        "object_store_options": json.dumps(s3.options),
    }
    TieredCacheBlock.model_validate(given).save("default", overwrite=True)
    name = f"process-{uuid4().hex[:8]}"
    (tmp_path / "doubles.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    set_all(monkeypatch, PATIENT | {"PREFECT_API_URL": prefect_server, "PREFECT_WORKER_QUERY_SECONDS": "1"})
    monkeypatch.setenv("PREFECT_WORKER_WEBSERVER_PORT", str(free_port()))
    prefect("work-pool", "create", name, "--type", "process", "--base-job-template", f"{POOLS}/process.json")
    prefect("--no-prompt", "deploy", "doubles.py:doubling", "--name", "here", "--pool", name)
    worker = ServerProcess([PREFECT, *started_by_the_image(name)], tmp_path / "worker.log")
    worker.start("Worker .* started")
    try:
        await_health()
        prefect("deployment", "run", "doubling/here", "--watch", "--watch-timeout", "240")
    finally:
        worker.stop()

    with closing(TieredCache(CacheSettings.model_validate(given))) as cache:
        (entry,) = maintenance.ls(cache)
        assert cache.get(entry.key) == 42
        (lookup,) = [
            event
            for event in cache.parts.events.of_key(entry.key)
            if event.action == LOOKUP and event.origin.flow_run_id
        ]
        assert lookup.origin.flow == "doubling"
    assert not list(tmp_path.glob("cache-blocks/*.db")), "nothing was kept in the worker's own home"
    for secret in (s3.secret, postgres_url):
        assert secret not in worker.log.read_text()
    TieredCacheBlock.delete("default")


def started_by_the_image(pool: str) -> list[str]:
    """What the image starts by itself, for another pool and without the program's name."""
    (command,) = re.findall(r"^CMD (.*)$", (ROOT / "deployments" / "Dockerfile").read_text(), re.MULTILINE)
    words: list[str] = json.loads(command)
    return [pool if word == "speech" else word for word in words[1:]]


def await_health() -> None:
    """Ask as the compose file's health check does, on this test's port, until the worker says that it is well."""
    compose = yaml.safe_load((ROOT / "deployments" / "compose.yaml").read_text())
    (_, _, _, program) = compose["services"]["worker"]["healthcheck"]["test"]
    program = program.replace("8080", os.environ["PREFECT_WORKER_WEBSERVER_PORT"])
    deadline = time.monotonic() + 60
    while subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode:
        assert time.monotonic() < deadline, "the worker is never well"
        time.sleep(0.2)  # a process that starts has nothing that one could wait for
