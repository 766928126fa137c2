"""Redis as it is run in production: a master that Sentinels watch, a cluster, and TLS in front of a server."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
import time
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import trustme
from redis import Redis, RedisError

from tests.servers.process import ServerError, ServerProcess, free_port
from tests.servers.redis import PORTS_TO_TRY, RedisServer, redis_binary

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from pathlib import Path

T = TypeVar("T")

SERVICE = "mymaster"
SLOTS = 16_384
PATIENCE_SECONDS = 60.0


class SentinelService:
    """A master, its replicas, and three Sentinels that watch them and need two to agree.

    `options` are further arguments of each redis-server, `sentinel_lines` of each Sentinel's configuration.
    """

    def __init__(
        self, directory: Path, replicas: int = 1, *, options: Sequence[str] = (), sentinel_lines: Sequence[str] = ()
    ) -> None:
        first = RedisServer(_folder(directory, "server-0"), *options)
        follow = ("--replicaof", f"127.0.0.1 {first.port}", "--repl-diskless-sync-delay", "0")
        self.servers = [first]
        for number in range(1, replicas + 1):
            self.servers.append(RedisServer(_folder(directory, f"server-{number}"), *options, *follow))
        for replica in self.servers[1:]:
            wait_until(lambda replica=replica: _info(replica, "replication")["master_link_status"] == "up")
        lines = [
            f"sentinel monitor {SERVICE} 127.0.0.1 {first.port} 2",
            f"sentinel down-after-milliseconds {SERVICE} 1000",
            f"sentinel failover-timeout {SERVICE} 4000",
            *sentinel_lines,
        ]
        self.sentinels = [_Sentinel(_folder(directory, f"sentinel-{number}"), lines) for number in range(3)]
        wait_until(lambda: all(self._sees_everybody(one) for one in self.sentinels))

    @property
    def members(self) -> str:
        """Where the Sentinels are, as a URL lists them."""
        return ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels)

    @property
    def url(self) -> str:
        """Where clients find the master."""
        return f"redis+sentinel://{self.members}/{SERVICE}/0"

    @property
    def master(self) -> RedisServer:
        """The server that most of the Sentinels call master."""
        ports = [one.master_port for one in self.sentinels]
        return next(server for server in self.servers if ports.count(server.port) * 2 > len(ports))

    @property
    def replicas(self) -> list[RedisServer]:
        """The others."""
        master = self.master
        return [server for server in self.servers if server is not master]

    def await_failover(self, former: RedisServer) -> RedisServer:
        """Wait until all Sentinels call another server master, and it is one; return it."""
        wait_until(lambda: all(one.master_port != former.port for one in self.sentinels))
        wait_until(lambda: _info(self.master, "replication")["role"] == "master")
        return self.master

    def stop(self) -> None:
        """End everything."""
        for one in self.sentinels:
            one.stop()
        for server in self.servers:
            server.stop()

    def _sees_everybody(self, sentinel: _Sentinel) -> bool:
        state = sentinel.state
        return state["num-slaves"] == len(self.servers) - 1 and state["num-other-sentinels"] == len(self.sentinels) - 1


class _Sentinel:
    def __init__(self, directory: Path, lines: Sequence[str]) -> None:
        for attempt in range(PORTS_TO_TRY):
            self.port = free_port()
            configuration = directory / "sentinel.conf"
            configuration.write_text(
                "\n".join([f"port {self.port}", "bind 127.0.0.1", f"dir {directory}", *lines, ""]), encoding="utf-8"
            )
            self._process = ServerProcess(
                [redis_binary(), str(configuration), "--sentinel"], directory / "sentinel.log"
            )
            try:
                self._process.start(r"\+monitor")
            except ServerError:
                if attempt == PORTS_TO_TRY - 1:
                    raise
            else:
                break

    @property
    def state(self) -> dict[str, Any]:
        with closing(Redis(port=self.port)) as client:
            found: Any = client.sentinel_master(SERVICE)
            return dict(found)

    @property
    def master_port(self) -> int:
        return int(self.state["port"])

    def stop(self) -> None:
        self._process.stop()

    def kill(self) -> None:
        self._process.kill()

    def freeze(self) -> None:
        self._process.freeze()

    def thaw(self) -> None:
        self._process.thaw()


class ClusterOfRedis:
    """Masters that share the slots, each with the same number of replicas."""

    def __init__(self, directory: Path, masters: int = 3, replicas: int = 0, *, options: Sequence[str] = ()) -> None:
        needed = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0")
        self.servers = [
            RedisServer(_folder(directory, f"node-{number}"), *needed, *options)
            for number in range(masters * (1 + replicas))
        ]
        self.masters = self.servers[:masters]
        for number, master in enumerate(self.masters):
            first, after = SLOTS * number // masters, SLOTS * (number + 1) // masters
            _do(master, "CLUSTER", "ADDSLOTSRANGE", first, after - 1)
            _do(master, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in self.servers[1:]:
            _do(self.servers[0], "CLUSTER", "MEET", "127.0.0.1", server.port)
        wait_until(lambda: all(self._known_to(server) == len(self.servers) for server in self.servers))
        for number, server in enumerate(self.servers[masters:]):
            _do(server, "CLUSTER", "REPLICATE", _do(self.masters[number % masters], "CLUSTER", "MYID"))
        wait_until(lambda: all(self._is_well(server) for server in self.servers))
        for server in self.servers[masters:]:
            wait_until(lambda server=server: _info(server, "replication")["master_link_status"] == "up")
        wait_until(
            lambda: all(
                len(nodes) == 1 + replicas
                for server in self.servers
                for _, _, *nodes in _do(server, "CLUSTER", "SLOTS")
            )
        )

    @property
    def url(self) -> str:
        """Where clients find it: two of its nodes."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers[:2])

    def owner_of(self, name: str, among: Sequence[RedisServer] | None = None) -> RedisServer:
        """The master that serves a key, as the first of some nodes sees it."""
        asked = (among or self.servers)[0]
        slot = _do(asked, "CLUSTER", "KEYSLOT", name)
        ports = [nodes[0][1] for first, last, *nodes in _do(asked, "CLUSTER", "SLOTS") if first <= slot <= last]
        return next(server for server in self.servers if server.port == ports[0])

    def await_failover(self, former: RedisServer) -> None:
        """Wait until every other node that runs sees all slots served, none of them by the former master."""
        others = [server for server in self.servers if server is not former and server.running]
        wait_until(
            lambda: all(
                self._is_well(server)
                and former.port not in [nodes[0][1] for _, _, *nodes in _do(server, "CLUSTER", "SLOTS")]
                for server in others
            )
        )

    def stop(self) -> None:
        """End everything."""
        for server in self.servers:
            server.stop()

    def _known_to(self, server: RedisServer) -> int:
        return len(_do(server, "CLUSTER", "NODES"))

    def _is_well(self, server: RedisServer) -> bool:
        state: Any = _do(server, "CLUSTER", "INFO")
        return state["cluster_state"] == "ok" and int(state["cluster_slots_ok"]) == SLOTS


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files of a made-up authority, and of a server and a client that it vouches for."""

    ca: Path
    server: Path
    client: Path

    @classmethod
    def make(cls, directory: Path) -> Certificates:
        """Write the files."""
        authority = trustme.CA()
        made = cls(directory / "ca.pem", directory / "server.pem", directory / "client.pem")
        authority.cert_pem.write_to_path(made.ca)
        authority.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(made.server)
        authority.issue_cert("client@cache.example").private_key_and_cert_chain_pem.write_to_path(made.client)
        return made

    @property
    def query(self) -> str:
        """The options of a URL that name them."""
        return f"ssl_ca_certs={self.ca}&ssl_certfile={self.client}&ssl_keyfile={self.client}"

    def stranger(self, directory: Path) -> Certificates:
        """The same with a client that another authority vouches for."""
        return replace(self, client=Certificates.make(directory).client)


class TlsProxy:
    """Ends TLS in front of a server that speaks none; clients need a certificate of the authority.

    Attributes:
        port: Where it listens on 127.0.0.1.
        served: How many connections it has let through.
    """

    def __init__(self, target_port: int, certificates: Certificates, port: int = 0) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates.ca))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(certificates.server)
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_ignore)  # a handshake that fails is the client's to tell of
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.served = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", port, ssl=context))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Cut all connections and listen no more."""
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_SECONDS)

    async def _end(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # what has been closed is told to its protocol in the loop's next turn

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.served += 1
        self._writers.append(writer)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._writers.append(far_writer)
        await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer), return_exceptions=True)


def _ignore(loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    del loop, context


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()
    finally:
        target.close()


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for what servers bring about among themselves, and give no event for."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        with contextlib.suppress(RedisError, KeyError, StopIteration):
            if condition():
                return
        if time.monotonic() > deadline:
            raise ServerError("the servers did not come to what was waited for")
        threading.Event().wait(0.05)


def _folder(directory: Path, name: str) -> Path:
    folder = directory / name
    folder.mkdir()
    return folder


def _do(server: RedisServer, *command: object) -> Any:
    with closing(Redis(port=server.port)) as client:
        return cast("Any", client).execute_command(" ".join(map(str, command[:2])), *command[2:])


def _info(server: RedisServer, section: str) -> dict[str, Any]:
    with closing(server.client()) as client:
        return dict(client.info(section))
