"""A TCP proxy between a client and a server, which delays, holds back or cuts what goes through it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import make_url

if TYPE_CHECKING:
    from collections.abc import Generator

Address = tuple[str, int] | str
_CHUNK = 65_536


class Proxy:
    """Passes bytes on between its own port and a server.

    Attributes:
        port: Where it listens on 127.0.0.1.
        url: What a client asks for to come through here; empty unless the server has a URL.
        delay: Seconds that each piece of an answer is late.
        accepted: How many connections were asked for.
    """

    def __init__(self, target: Address) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._flowing = threading.Event()
        self._flowing.set()
        self._open: list[socket.socket] = []
        self._closing = False
        self._refusing = False
        self.port: int = self._listener.getsockname()[1]
        self.url = ""
        self.delay = 0.0
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self) -> None:
        """Accept connections and answer nothing, as a hanging machine does."""
        self._flowing.clear()

    def flow(self) -> None:
        """Let everything through again, also what was held back."""
        self._flowing.set()

    def refuse(self) -> None:
        """Cut all connections, and every new one."""
        self._refusing = True
        self._cut()

    def admit(self) -> None:
        """Take connections again."""
        self._refusing = False

    def close(self) -> None:
        """Cut all connections and listen no more."""
        self._closing = True
        self._flowing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        self._cut()

    def _cut(self) -> None:
        while self._open:
            _shut(self._open.pop())

    def _accept(self) -> None:
        while not self._closing:
            try:
                near, _ = self._listener.accept()
                self.accepted += 1
                if self._refusing:
                    _shut(near)
                    continue
                far = _connect(self._target)
            except OSError:
                continue
            self._open += [near, far]
            threading.Thread(target=self._pass_on, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(far, near, True), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:  # noqa: FBT001
        try:
            while data := source.recv(_CHUNK):
                self._flowing.wait()
                if is_answer:
                    time.sleep(self.delay)
                target.sendall(data)
        except OSError:
            pass  # the other direction has been cut
        finally:
            _shut(source)
            _shut(target)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


def _connect(target: Address) -> socket.socket:
    if not isinstance(target, str):
        return socket.create_connection(target)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(target)
    return connection


@contextmanager
def proxy_to(target: Address) -> Generator[Proxy]:
    """A proxy to a server, host and port or a socket's path, for as long as the block runs."""
    proxy = Proxy(target)
    try:
        yield proxy
    finally:
        proxy.close()


@contextmanager
def proxy_to_postgres(url: str) -> Generator[Proxy]:
    """A proxy to a PostgreSQL, which may listen on a socket in a folder."""
    parts = make_url(url)
    folder = parts.query.get("host")
    port = parts.port or 5432
    with proxy_to((parts.host, port) if parts.host else f"{folder}/.s.PGSQL.{port}") as proxy:
        through = parts.set(host="127.0.0.1", port=proxy.port, query={})
        proxy.url = through.render_as_string(hide_password=False)
        yield proxy
