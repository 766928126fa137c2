"""Connections that lookups keep: never a wrong answer, never more than the pool has, and none that has gone."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import redis

from cache_blocks.tiers.redis import connect
from cache_blocks.tiers.redis_connections import KeptConnections
from cache_blocks.tiers.redis_servers import OneRedis

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.servers.fixtures import StartRedis


@pytest.fixture
def client(redis_server: StartRedis) -> Generator[redis.Redis]:
    with client_of(redis_server().url) as client:
        yield client


def client_of(url: str) -> redis.Redis:
    servers = connect(url, 0.5)
    assert isinstance(servers, OneRedis)
    return servers.client


def connected(client: redis.Redis) -> int:
    """How many connections the server has, less the one that asks."""
    return int(client.info("clients")["connected_clients"]) - 1


def test_one_connection_answers_one_question_after_another(client: redis.Redis) -> None:
    client.set("a", "1", ex=60)
    kept = KeptConnections(client.connection_pool)
    assert [kept.ask("MGET", "a", "b") for _ in range(20)] == [[b"1", None]] * 20
    assert connected(client) == 1


def test_every_thread_gets_its_own_answer_and_writers_are_not_kept_waiting(client: redis.Redis) -> None:
    for number in range(64):
        client.set(str(number), str(number), ex=60)
    kept = KeptConnections(client.connection_pool)
    together = threading.Barrier(64)

    def ask(number: int) -> set[bytes]:
        together.wait()
        return {kept.ask("GET", str(number)) for _ in range(20)}

    with ThreadPoolExecutor(64) as threads:
        assert list(threads.map(ask, range(64))) == [{str(number).encode()} for number in range(64)]
        assert list(threads.map(client.get, map(str, range(64))))[63] == b"63"  # pyright: ignore[reportUnknownMemberType]


def test_a_server_that_has_started_again_is_asked_as_if_nothing_had_been(redis_server: StartRedis) -> None:
    server = redis_server()
    with client_of(server.url) as client:
        kept = KeptConnections(client.connection_pool)
        assert kept.ask("PING") == b"PONG"
        server.kill()
        with pytest.raises(redis.ConnectionError):
            kept.ask("PING")
        server.start()
        assert kept.ask("PING") == b"PONG"
        server.stop()
        server.start()
        assert kept.ask("PING") == b"PONG", "nobody asked while it was away"


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_ones(redis_server: StartRedis) -> None:
    server = redis_server()
    with client_of(server.url) as client:
        client.set("a", "1", ex=60)
        client.set("b", "2", ex=60)
        kept = KeptConnections(client.connection_pool)
        assert kept.ask("GET", "a") == b"1"
        server.freeze()
        with pytest.raises(redis.TimeoutError):
            kept.ask("GET", "a")
        server.thaw()
        assert kept.ask("GET", "b") == b"2"


def test_a_refused_command_spoils_nothing(client: redis.Redis) -> None:
    client.set("a", "1", ex=60)
    kept = KeptConnections(client.connection_pool)
    with pytest.raises(redis.ResponseError):
        kept.ask("LPOP", "a")
    assert kept.ask("GET", "a") == b"1"


def test_a_closed_pool_connects_again(client: redis.Redis) -> None:
    kept = KeptConnections(client.connection_pool)
    assert kept.ask("PING") == b"PONG"
    client.connection_pool.disconnect()
    assert kept.ask("PING") == b"PONG"


def test_a_child_process_does_not_speak_on_its_parents_connection(client: redis.Redis) -> None:
    kept = KeptConnections(client.connection_pool)
    parents = kept.ask("CLIENT", "ID")
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writing, str(kept.ask("CLIENT", "ID")).encode())
        os._exit(0)
    os.waitpid(child, 0)
    with os.fdopen(reading) as answer:
        os.close(writing)
        assert int(answer.read()) != parents
    assert kept.ask("CLIENT", "ID") == parents
