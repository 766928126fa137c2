"""The servers that the other tests rely on are real, and fail when and as told."""

import os
import subprocess
import sys
import time
from contextlib import closing

import fsspec
import httpx
import pytest
from botocore.exceptions import ClientError
from prefect import flow
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from sqlalchemy import NullPool, create_engine, text

from tests.servers.fixtures import StartRedis
from tests.servers.process import GUARD
from tests.servers.redis import keys_without_expiry
from tests.servers.s3 import S3Bucket


def test_redis_answers_and_begins_empty(redis_url: str, redis_client: Redis) -> None:
    with Redis.from_url(redis_url) as other:
        assert other.ping()
        assert other.dbsize() == 0
        other.set("key", "value", ex=60)
    assert redis_client.get("key") == b"value"


def test_a_key_that_would_stay_for_ever_is_found(redis_server: StartRedis) -> None:
    server = redis_server()
    with closing(server.client()) as client:
        client.set("leaves", "1", ex=60)
        assert keys_without_expiry(client) == []
        client.set("stays", "1")
        assert keys_without_expiry(client) == ["b'stays'"]
        client.delete("stays")


def test_a_redis_of_ones_own_takes_options_and_comes_back_on_its_port(redis_server: StartRedis) -> None:
    server = redis_server("--maxmemory", "2mb")
    url = server.url
    with Redis.from_url(url, retry=None) as client:
        assert client.config_get("maxmemory") == {"maxmemory": str(2 * 1024 * 1024)}
        server.kill()
        with pytest.raises(RedisConnectionError):
            client.ping()
        server.start()
        assert client.ping()
    assert server.url == url


def test_a_frozen_redis_answers_nothing_until_it_is_thawed(redis_server: StartRedis) -> None:
    server = redis_server()
    with Redis.from_url(server.url, socket_timeout=0.2, retry=None) as client:
        server.freeze()
        with pytest.raises(RedisTimeoutError):
            client.ping()
        server.thaw()
        assert client.ping()


def test_two_redis_servers_do_not_share_keys(redis_server: StartRedis) -> None:
    with closing(redis_server().client()) as one, closing(redis_server().client()) as two:
        one.set("key", "1", ex=60)
        assert two.dbsize() == 0


def test_postgres_gives_each_test_an_empty_database(postgres_url: str) -> None:
    engine = create_engine(postgres_url, poolclass=NullPool)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
        tables = text("SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'")
        assert connection.execute(tables).scalar_one() == 0


def test_s3_gives_back_what_was_put(s3: S3Bucket) -> None:
    store = fsspec.filesystem("s3", **s3.options)
    store.pipe_file(f"{s3.bucket}/folder/object", b"content")
    assert store.cat_file(f"{s3.bucket}/folder/object") == b"content"
    assert store.ls(f"{s3.bucket}/folder", detail=False) == [f"{s3.bucket}/folder/object"]


def test_s3_refuses_a_wrong_secret(s3: S3Bucket) -> None:
    with closing(s3.with_secret("guessed").client()) as client, pytest.raises(ClientError) as refused:
        client.put_object(Bucket=s3.bucket, Key="object", Body=b"content")
    assert refused.value.response["Error"]["Code"] == "SignatureDoesNotMatch"


def test_conditional_s3_never_overwrites_when_asked_not_to(s3_conditional: S3Bucket) -> None:
    with closing(s3_conditional.client()) as client:
        put = {"Bucket": s3_conditional.bucket, "Key": "object", "IfNoneMatch": "*"}
        client.put_object(**put, Body=b"first")
        with pytest.raises(ClientError) as refused:
            client.put_object(**put, Body=b"second")
        assert refused.value.response["Error"]["Code"] == "PreconditionFailed"
        assert client.get_object(Bucket=s3_conditional.bucket, Key="object")["Body"].read() == b"first"


def test_flows_of_this_process_run_against_the_prefect_server(prefect_server: str) -> None:
    @flow
    def double(number: int) -> int:
        return 2 * number

    assert double(21) == 42
    response = httpx.post(f"{prefect_server}/flow_runs/filter", json={"flows": {"name": {"any_": ["double"]}}})
    assert [run["state_type"] for run in response.json()] == ["COMPLETED"]


# Starts a server by way of the guard and then hangs, to be killed as `kill -9` would kill pytest.
STARTER = f"""
import subprocess, time
command = {[*GUARD, "run", sys.executable, "-c", "import time; time.sleep(600)"]!r}
pipe = subprocess.PIPE
guard = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
print(guard.stdout.readline(), end="", flush=True)
time.sleep(600)
"""


def test_a_server_ends_when_the_process_that_started_it_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        server = int(process.stdout.readline())
        assert _exists(server)
        process.kill()
    while _exists(server):  # the suite's timeout is the bound
        time.sleep(0.01)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
