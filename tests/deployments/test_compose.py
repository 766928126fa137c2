"""The compose file: by its schema, by its own promises, and by starting its servers' commands where no engine is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import orjson
import prefect.settings
import pytest
import redis
import yaml
from botocore.exceptions import ClientError

from cache_blocks import CacheSettings
from tests.pipeline.batches import ROOT
from tests.servers.process import ServerProcess, free_port
from tests.servers.redis import redis_binary
from tests.servers.s3 import S3Account

if TYPE_CHECKING:
    from collections.abc import Mapping

COMPOSE = ROOT / "deployments" / "compose.yaml"
EXAMPLE = ROOT / "deployments" / ".env.example"
MUST_BE_SET = {
    "CACHE_NAMESPACE",
    "REDIS_PASSWORD",
    "POSTGRES_PASSWORD",
    "S3_KEY",
    "S3_SECRET",
    "PREFECT_PASSWORD",
    "INBOX",
}
SERVERS = {"redis", "postgres", "s3", "prefect"}
SCRIPTS = Path(sysconfig.get_path("scripts"))
_VARIABLE = re.compile(r"\$\{(\w+)(?::\?([^}]*))?\}")

GIVEN = {name: f"given{number}" for number, name in enumerate(sorted(MUST_BE_SET))}


@pytest.fixture(scope="module")
def compose() -> Any:
    """The file as it stands, anchors resolved."""
    return yaml.safe_load(COMPOSE.read_text())


def filled(value: Any, given: Mapping[str, str] = GIVEN) -> Any:
    """A part of the file as compose reads it: with the variables of an environment."""
    if isinstance(value, dict):
        return {name: filled(one, given) for name, one in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [filled(one, given) for one in cast("list[Any]", value)]
    return _VARIABLE.sub(lambda found: given[found[1]], value) if isinstance(value, str) else value


def test_it_is_valid_by_the_compose_specification() -> None:
    command = [SCRIPTS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_engine_takes_it() -> None:
    if not (docker := shutil.which("docker")) or subprocess.run([docker, "compose", "version"], check=False).returncode:
        pytest.skip("there is no `docker compose` here; the schema has been checked above")
    done = subprocess.run(
        [docker, "compose", "--file", COMPOSE, "config", "--quiet"],
        env=GIVEN,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_nothing_starts_before_every_secret_is_given(compose: Any) -> None:
    """Each variable is one that compose refuses to do without, with the name of the file that lists it."""
    found = _VARIABLE.findall(COMPOSE.read_text())
    assert {name for name, _ in found} == MUST_BE_SET
    assert {message for _, message in found} == {"is missing, see deployments/.env.example"}
    for service in SERVERS:
        assert _VARIABLE.search(orjson.dumps(compose["services"][service]).decode()), (
            f"{service} starts without a secret"
        )


def test_no_secret_is_committed() -> None:
    lines = [line.partition("=") for line in EXAMPLE.read_text().splitlines() if line and not line.startswith("#")]
    assert {name for name, _, _ in lines} == MUST_BE_SET
    assert {name: value for name, _, value in lines if value} == {"CACHE_NAMESPACE": "production"}
    assert "/deployments/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_every_server_is_looked_at_and_keeps_its_data(compose: Any) -> None:
    services, volumes = compose["services"], compose["volumes"]
    for name in (*SERVERS, "worker"):
        assert "test" in services[name]["healthcheck"], name
    for name in ("postgres", "s3", "worker"):
        named = [mount.partition(":")[0] for mount in services[name]["volumes"]]
        assert set(named) & set(volumes), name
    for service in services.values():
        for needed, how in service.get("depends_on", {}).items():
            healthy = "healthcheck" in services[needed]
            assert how["condition"] == ("service_healthy" if healthy else "service_completed_successfully")


def test_only_the_api_is_published_and_that_on_this_machine(compose: Any) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published == {"prefect": ["127.0.0.1:4200:4200"]}


def test_every_file_that_it_mounts_or_builds_from_is_there(compose: Any) -> None:
    for service in compose["services"].values():
        for mount in service.get("volumes", ()):
            assert not mount.startswith(".") or (COMPOSE.parent / mount.partition(":")[0]).exists()
        if "build" in service:
            assert (COMPOSE.parent / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_the_settings_of_prefect_are_settings(compose: Any) -> None:
    for service in ("prefect", "setup", "worker"):
        names = {name for name in compose["services"][service]["environment"] if name.startswith("PREFECT_")}
        assert [name for name in names if not hasattr(prefect.settings, name)] == []


def test_the_settings_of_the_worker_are_settings(compose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in filled(compose["services"]["worker"]["environment"]).items():
        monkeypatch.setenv(name, value)

    settings = CacheSettings()

    assert settings.namespace == GIVEN["CACHE_NAMESPACE"]
    assert settings.redis_url.get_secret_value() == f"redis://:{GIVEN['REDIS_PASSWORD']}@redis:6379/0"
    assert settings.database_url.get_secret_value().endswith(f"speech:{GIVEN['POSTGRES_PASSWORD']}@postgres:5432/cache")
    assert settings.object_store_url.get_secret_value() == "s3://cache"
    assert orjson.loads(settings.object_store_options.get_secret_value()) == {
        "endpoint_url": "http://s3:9000",
        "key": GIVEN["S3_KEY"],
        "secret": GIVEN["S3_SECRET"],
    }


# The servers' own commands, with the servers that the tests have


def test_redis_starts_by_its_command_and_wants_its_password(compose: Any, tmp_path: Path) -> None:
    port = free_port()
    _, *arguments = filled(compose["services"]["redis"]["command"])
    server = ServerProcess([redis_binary(), *arguments, "--port", str(port), "--dir", str(tmp_path)], tmp_path / "log")
    server.start("Ready to accept connections")
    try:
        with closing(redis.Redis(port=port)) as nobody, pytest.raises(redis.AuthenticationError):
            nobody.ping()
        with closing(redis.Redis(port=port, password=GIVEN["REDIS_PASSWORD"])) as somebody:
            assert somebody.config_get("maxmemory*")["maxmemory-policy"] == "allkeys-lru"
            assert somebody.config_get("save") == {"save": ""}
    finally:
        server.stop()


def test_s3_starts_by_its_command_with_its_bucket_and_wants_its_secret(compose: Any, tmp_path: Path) -> None:
    """The command of the image's shell, in a folder instead of /data and on a port instead of 9000."""
    service, port = filled(compose["services"]["s3"]), free_port()
    (line,) = service["command"]
    line = line.replace("/data", str(tmp_path / "data")).replace(":9000", f"127.0.0.1:{port}")
    environment = [f"{name}={value}" for name, value in service["environment"].items()]
    path = f"PATH={SCRIPTS}:/usr/bin:/bin"
    server = ServerProcess(["/usr/bin/env", *environment, path, *service["entrypoint"], line], tmp_path / "log")
    server.start("Starting s3 server")
    try:
        account = S3Account(f"http://127.0.0.1:{port}", GIVEN["S3_KEY"], GIVEN["S3_SECRET"])
        with closing(account.client()) as client:
            assert [bucket["Name"] for bucket in client.list_buckets()["Buckets"]] == ["cache"]
            client.put_object(Bucket="cache", Key="one", Body=b"1")
        wrong = S3Account(account.endpoint, account.key, "wrong")
        with closing(wrong.client()) as nobody, pytest.raises(ClientError, match=r"Signature|Denied|403"):
            nobody.list_buckets()
    finally:
        server.stop()
