"""An HTTP proxy before an S3 server, which answers some requests badly: as a busy, a breaking or a hanging one does."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from tests.servers.s3 import S3Bucket

Trouble = Literal["", "busy", "reset", "reset after", "half", "stall", "stall in the middle"]
"""What becomes of a request.

busy: 503 SlowDown. reset: the connection breaks before the server has heard of it. reset after: it breaks when the
server has done it. half: half of the answer, then it breaks. stall: no answer. stall in the middle: half of it, and no
more.
"""

_SLOW_DOWN = (
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
)


@dataclass
class S3Faults:
    """The proxy.

    Attributes:
        bucket: Its endpoint is the proxy.
        troubles: What becomes of the next requests that `on` is true of; the others go through.
        on: Takes method and path with query.
        seen: Method and path of every request.
    """

    bucket: S3Bucket
    troubles: deque[Trouble] = field(default_factory=deque[Trouble])
    on: Callable[[str, str], bool] = lambda _method, _path: True
    seen: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    released: threading.Event = field(default_factory=threading.Event)
    _gathering: tuple[threading.Barrier, Callable[[str, str], bool]] | None = None
    _alone: int = 0

    def gather(self, number: int, on: Callable[[str, str], bool], *, after: int = 0) -> None:
        """Answer requests only when this many have come; the first ones excepted."""
        self._gathering, self._alone = (threading.Barrier(number), on), after

    def meet(self, method: str, path: str) -> None:
        """Wait for the others."""
        if self._gathering is None or not self._gathering[1](method, path):
            return
        if self._alone:
            self._alone -= 1
        else:
            self._gathering[0].wait(50)

    def next_trouble(self, method: str, path: str) -> Trouble:
        """Note a request, and say what becomes of it."""
        self.seen.append((method, path))
        return self.troubles.popleft() if self.troubles and self.on(method, path) else ""

    def count(self, method: str, part: str = "") -> int:
        """How many requests there were of a method whose path or query has this in it."""
        return sum(seen == method and part in path for seen, path in self.seen)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    faults: S3Faults
    target: str

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError, ValueError):  # the client has gone
            self.close_connection = True

    def answer(self) -> None:
        trouble = self.faults.next_trouble(self.command, self.path)
        self.faults.meet(self.command, self.path)
        if trouble == "reset":
            self._break()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if trouble == "busy":
            self._send(503, {"Content-Type": "application/xml"}, _SLOW_DOWN)
            return
        if trouble == "stall":
            self.faults.released.wait()
            self._break()
            return
        status, headers, content = self._ask(body)
        if trouble == "reset after":
            self._break()
        elif trouble in ("half", "stall in the middle"):
            self._send(status, headers, content, sent=len(content) // 2)
            if trouble == "stall in the middle":
                self.faults.released.wait()
            self._break()
        else:
            self._send(status, headers, content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer  # noqa: N815 - names of the base class

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.target, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():  # the signature covers them as they are
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _send(self, status: int, headers: dict[str, str], content: bytes, *, sent: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        length = headers.get("Content-Length", str(len(content))) if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(content[:sent])
        self.wfile.flush()

    def _break(self) -> None:
        """Cut the connection so that the client sees a reset."""
        self.close_connection = True
        connection = cast("socket.socket", self.connection)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.wfile.close()
        self.rfile.close()
        connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def shutdown_request(self, request: Any) -> None:
        try:
            super().shutdown_request(request)
        except OSError:  # it has been cut
            self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextmanager
def s3_faults(bucket: S3Bucket) -> Generator[S3Faults]:
    """A bucket behind a proxy that troubles it, for as long as the block runs."""
    target = bucket.endpoint.removeprefix("http://").rstrip("/")
    handler = type("Handler", (_Handler,), {"target": target})
    with _Server(("127.0.0.1", 0), handler) as server:
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        faults = S3Faults(replace(bucket, endpoint=endpoint))
        handler.faults = faults
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield faults
        finally:
            faults.released.set()
            server.shutdown()
            thread.join()
