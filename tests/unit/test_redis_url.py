"""Where Redis is, as a URL says it: the forms, and what is said about one that is malformed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import redis

from cache_blocks.errors import ConfigurationError
from cache_blocks.tiers.redis_url import parse

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "hunter2"


@pytest.mark.parametrize(
    "url, topology, nodes, service, options",
    [
        ("redis://cache.example", "one", [("cache.example", 6379)], "", {"db": 0}),
        ("redis://cache.example:7000/3", "one", [("cache.example", 7000)], "", {"db": 3}),
        ("redis://", "one", [("localhost", 6379)], "", {"db": 0}),
        ("redis://[::1]:7000/0", "one", [("::1", 7000)], "", {"db": 0}),
        (f"redis://:{SECRET}@h/0", "one", [("h", 6379)], "", {"db": 0, "password": SECRET}),
        (f"REDIS://user:{SECRET}@h/0", "one", [("h", 6379)], "", {"db": 0, "username": "user", "password": SECRET}),
        ("redis://:a%2Fb%3Fc%23d%40e@h/0", "one", [("h", 6379)], "", {"db": 0, "password": "a/b?c#d@e"}),
        ("redis://h/0?socket_keepalive=yes", "one", [("h", 6379)], "", {"db": 0, "socket_keepalive": True}),
        ("redis+sentinel://h1/mymaster", "sentinel", [("h1", 26379)], "mymaster", {"db": 0}),
        (
            f"redis+sentinel://user:{SECRET}@h1:26379,h2:26380,[::1]/my%20master/2",
            "sentinel",
            [("h1", 26379), ("h2", 26380), ("::1", 26379)],
            "my master",
            {"db": 2, "username": "user", "password": SECRET},
        ),
        ("redis+cluster://h1:7000,h2:7001", "cluster", [("h1", 7000), ("h2", 7001)], "", {}),
        ("redis+cluster://h1:7000,h2/0", "cluster", [("h1", 7000), ("h2", 6379)], "", {}),
    ],
)
def test_a_url_says_what_is_where(
    url: str, topology: str, nodes: list[tuple[str, int]], service: str, options: dict[str, object]
) -> None:
    place = parse(url)
    assert (place.topology, list(place.nodes), place.service) == (topology, nodes, service)
    assert place.options == options
    assert SECRET not in repr(place)


def test_a_socket_in_the_file_system() -> None:
    place = parse(f"unix://user:{SECRET}@/run/redis.sock?db=1")
    assert (place.topology, place.nodes, place.options["path"], place.options["db"]) == (
        "one",
        (),
        "/run/redis.sock",
        1,
    )


@pytest.mark.parametrize("scheme", ["rediss://h/0", "rediss+sentinel://h/mymaster", "rediss+cluster://h"])
def test_tls_with_an_authority_and_a_certificate(scheme: str, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("ca.pem", "client.pem")]
    for file in files:
        file.touch()
    place = parse(f"{scheme}?ssl_ca_certs={files[0]}&ssl_certfile={files[1]}&ssl_keyfile={files[1]}")
    assert place.options["connection_class"] is redis.SSLConnection
    assert place.options["ssl_ca_certs"] == str(files[0])
    if place.topology == "sentinel":
        assert (place.sentinel_options["ssl"], place.sentinel_options["ssl_ca_certs"]) == (True, str(files[0]))


def test_sentinels_have_users_of_their_own() -> None:
    place = parse(f"redis+sentinel://data:{SECRET}1@h/mymaster?sentinel_username=watch&sentinel_password={SECRET}2")
    assert (place.options["username"], place.options["password"]) == ("data", f"{SECRET}1")
    assert dict(place.sentinel_options) == {"username": "watch", "password": f"{SECRET}2"}


@pytest.mark.parametrize(
    "url, what, way_out",
    [
        (f"http://:{SECRET}@h", "its scheme is unknown", "redis+sentinel://"),
        (f":{SECRET}@h:6379", "its scheme is unknown", "redis://"),
        (f"redis://:{SECRET}/2@h/0", "its path is no database number", "'/' as %2F"),
        (f"redis://:{SECRET}?2@h/0", "host 1 of 1 has no name", "'?' as %3F"),
        (f"redis://:{SECRET}#2@h/0", "it has a '#'", "'#' as %23"),
        (f"redis://:{SECRET}@h:port/0", "the port of host 1 of 1", "%2F"),
        (f"redis://:{SECRET}@h:0/0", "the port of host 1 of 1", "%2F"),
        (f"redis://:{SECRET}@h:65536/0", "the port of host 1 of 1", "%2F"),
        (f"redis://:{SECRET}@h/mymaster", "its path is no database number", "/0"),
        (f"redis://:{SECRET}@h1,h2/0", "it has several hosts", "redis+cluster://"),
        (f"redis://:{SECRET}@h/0?db=x", "the value of its option db", "correct it"),
        (
            f"redis://:{SECRET}@h/0?ssl_ca_cert=/x",
            "redis-py does not know one of its options",
            "did you mean ssl_ca_certs?",
        ),
        (f"redis://:{SECRET}@h/0?{SECRET}=x", "redis-py does not know one of its options", "leave it out"),
        (f"redis://:{SECRET}@h/0?ssl_ca_certs=/", "it has options of TLS", "rediss://"),
        (f"rediss://:{SECRET}@h/0?ssl_ca_certs=/no/such/{SECRET}.pem", "the file of its option ssl_ca_certs", "path"),
        (f"redis+sentinel://:{SECRET}@h1:26379", "the name of the master is missing", "mymaster/0"),
        (f"redis+sentinel://:{SECRET}@h1,,h2/mymaster", "host 2 of 3 has no name", "one comma"),
        (f"redis+sentinel://:{SECRET}@h1,h2:x/mymaster", "the port of host 2 of 2", "%2F"),
        (f"redis+sentinel://:{SECRET}@h1/mymaster/0/1", "its path is no database number", "/0"),
        (f"redis+cluster://:{SECRET}@h1/1", "it names a database", "leave the database out"),
        (f"redis+cluster://:{SECRET}@", "host 1 of 1 has no name", "one comma"),
        (f"redis://:{SECRET}@[::1/0", "host 1 of 1 has no name", "one comma"),
    ],
)
def test_a_malformed_url_is_told_by_its_part_and_never_shown(url: str, what: str, way_out: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        parse(url)
    text = str(told.value)
    assert text.startswith("CACHE_BLOCKS_REDIS_URL cannot be read: ")
    assert what in text
    assert way_out in text
    assert SECRET not in text
    assert told.value.__cause__ is None
