"""Where Redis is, as a URL says it: one server, a master that Sentinels know, or a cluster.

The forms are those that redis-py, prefect-redis and docket read. No message repeats a part of the URL: what is out of
place in one is often a piece of a password.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import parse_qs, unquote, urlencode

import redis
from redis.connection import AbstractConnection, parse_url  # pyright: ignore[reportUnknownVariableType]

from cache_blocks.errors import ConfigurationError

Topology = Literal["one", "sentinel", "cluster"]
Address = tuple[str, int]

SETTING: Final = "CACHE_BLOCKS_REDIS_URL"
_FORMS: Final[Mapping[str, tuple[Topology, str]]] = {
    "redis": ("one", "redis"),
    "rediss": ("one", "rediss"),
    "unix": ("one", "unix"),
    "redis+sentinel": ("sentinel", "redis"),
    "rediss+sentinel": ("sentinel", "rediss"),
    "redis+cluster": ("cluster", "redis"),
    "rediss+cluster": ("cluster", "rediss"),
}
_PORTS: Final[Mapping[Topology, int]] = {"one": 6379, "sentinel": 26379, "cluster": 6379}
_FILES: Final = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_SENTINEL_OPTIONS: Final = ("username", "password")
_ESCAPES: Final = "in a user name or password, write '/' as %2F, '#' as %23, '?' as %3F and '@' as %40"
_LARGEST_PORT: Final = 65_535


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """What a URL says.

    Attributes:
        topology: What is there.
        nodes: Host and port of the server, of each Sentinel, or of cluster nodes to begin with.
        service: Name under which the Sentinels know the master.
        options: Arguments of redis-py's connections to servers with data; they hold the password.
        sentinel_options: The same for connections to Sentinels.
    """

    topology: Topology
    nodes: tuple[Address, ...]
    service: str = ""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    sentinel_options: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)


def parse(url: str) -> RedisUrl:
    """Return what a URL says.

    Raises:
        ConfigurationError: A part of it is not well-formed, an option is unknown, or a file it names is not there.
    """
    scheme, _, rest = url.partition("://")
    if (form := _FORMS.get(scheme.lower())) is None:
        raise _malformed("its scheme is unknown", f"use one of {', '.join(f'{name}://' for name in _FORMS)}")
    topology, plain = form
    if plain == "unix":
        return RedisUrl(topology, (), options=_options(url))
    end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    user, _, members = rest[:end].rpartition("@")
    path, _, query = rest[end:].partition("?")
    if "#" in path + query:
        raise _malformed("it has a '#'", _ESCAPES)
    service, database = _path(topology, [unquote(part) for part in path.split("/") if part])
    given = parse_qs(query, keep_blank_values=True)
    aside = {
        name: given.pop(f"sentinel_{name}")[0]
        for name in (_SENTINEL_OPTIONS if topology == "sentinel" else ())
        if f"sentinel_{name}" in given
    }
    authority = f"{user}@" if user else ""
    options = _options(f"{plain}://{authority}host/{database}?{urlencode(given, doseq=True)}")
    options = {name: value for name, value in options.items() if name != "host"}
    if topology == "cluster" and options.pop("db", 0) != 0:
        raise _malformed("it names a database, and a cluster has only number 0", "leave the database out")
    shared = {name: value for name, value in options.items() if name.startswith(("ssl_", "socket_"))}
    return RedisUrl(topology, _members(members, topology), service, options, _with_class(options, shared | aside))


def _with_class(options: Mapping[str, Any], aside: dict[str, Any]) -> dict[str, Any]:
    """Return options of a Sentinel's client; TLS to the data means TLS to the Sentinels."""
    return aside | ({"ssl": True} if options.get("connection_class") is redis.SSLConnection else {})


def _path(topology: Topology, parts: list[str]) -> tuple[str, str]:
    """Return service and database of a path."""
    service = ""
    if topology == "sentinel":
        if not parts:
            raise _malformed(
                "the name of the master is missing after the Sentinels", "as in redis+sentinel://host:26379/mymaster/0"
            )
        service, *parts = parts
    if len(parts) > 1 or any(not (part.isascii() and part.isdigit()) for part in parts):
        raise _malformed("its path is no database number", f"end it in a number such as /0; {_ESCAPES}")
    return service, parts[0] if parts else "0"


def _members(text: str, topology: Topology) -> tuple[Address, ...]:
    """Return the hosts of a list; which one is wrong is told by its place."""
    entries = text.split(",")
    if topology == "one" and len(entries) > 1:
        raise _malformed("it has several hosts", "name one, or use redis+sentinel:// or redis+cluster://")
    found: list[Address] = []
    for place, entry in enumerate(entries, 1):
        host, colon, port = entry.strip().rpartition(":")
        if not colon or port.endswith("]"):
            host, port = entry.strip(), ""
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        if not host and topology == "one" and not text:
            host = "localhost"
        if not host or "[" in host or "]" in host:
            raise _malformed(
                f"host {place} of {len(entries)} has no name", f"write host:port, more by one comma; {_ESCAPES}"
            )
        if port and not (port.isascii() and port.isdigit() and 0 < int(port) <= _LARGEST_PORT):
            raise _malformed(f"the port of host {place} of {len(entries)} is no port number", _ESCAPES)
        found.append((unquote(host), int(port or _PORTS[topology])))
    return tuple(found)


def _options(url: str) -> dict[str, Any]:
    """Return redis-py's arguments for a URL of one server; it parses them, what it accepts unseen is checked here."""
    try:
        options: dict[str, Any] = dict(parse_url(url))  # pyright: ignore[reportUnknownArgumentType]
    except ValueError as error:  # its text may show a part of the password
        option = next((name for name in _known() if f"'{name}'" in str(error)), "")
        if option:
            raise _malformed(f"the value of its option {option} is not what redis-py takes", "correct it") from None
        raise _malformed("user, password or host is not well-formed", _ESCAPES) from None
    for name in options:
        if name not in _known():
            close = difflib.get_close_matches(name, _known(), n=1, cutoff=0.7)
            way_out = f"did you mean {close[0]}?" if close else "leave it out"
            raise _malformed("redis-py does not know one of its options", f"{way_out}; {_ESCAPES}")
    secure = options.get("connection_class") is redis.SSLConnection
    if not secure and any(name.startswith("ssl_") for name in options):
        raise _malformed("it has options of TLS, and its scheme is one without", "write rediss:// for redis://")
    for name in _FILES:
        if name in options and not Path(str(options[name])).exists():
            raise _malformed(f"the file of its option {name} is not there", "correct the path")
    return options


def _known() -> list[str]:
    """Return the options that connections take."""
    classes: tuple[Any, ...] = (
        redis.Connection,
        redis.SSLConnection,
        redis.UnixDomainSocketConnection,
        AbstractConnection,
    )
    names = {name for one in classes for name in inspect.signature(one.__init__).parameters}
    return sorted(names - {"self", "kwargs"} | {"db", "connection_class"})


def _malformed(what: str, way_out: str) -> ConfigurationError:
    return ConfigurationError(f"{SETTING} cannot be read: {what}; {way_out}")
