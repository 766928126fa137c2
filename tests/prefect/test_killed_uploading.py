"""A flow that is killed while half of a file has gone to an S3 store leaves no half of it behind."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from prefect.client.schemas.objects import StateType

from cache_blocks import TieredCache
from cache_blocks.leases import LeaseState
from tests.faults.conftest import until
from tests.prefect.doomed import (
    PROMISE,
    SETTINGS,
    SILENT,
    assert_maintenance_takes_what_nothing_refers_to,
    assert_nothing_half_written_is_visible,
    assert_reported_once,
    doomed,
)
from tests.prefect.dying import SOUND, dying
from tests.servers.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.servers.s3 import S3Bucket

ROOT = Path(__file__).parents[2]
HALF = len(SOUND) // 2


class HalfWay(Proxy):
    """Holds the second upload of a blob when half of it has gone through, and cuts it there.

    Attributes:
        note: File that is written when half has gone through.
        cut: Set, when it is to be cut.
        uploads: How many have begun.
    """

    def __init__(self, target: tuple[str, int], note: Path) -> None:
        self.note = note
        self.cut = threading.Event()
        self.uploads = 0
        super().__init__(target)

    def close(self) -> None:
        """Let go of what is held, too."""
        self.cut.set()
        super().close()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:  # noqa: FBT001
        super()._pass_on(source if is_answer else cast("socket.socket", _Half(source, self)), target, is_answer)


class _Half:
    """A client's end of a connection, which gives half of the upload that is to be cut."""

    def __init__(self, real: socket.socket, proxy: HalfWay) -> None:
        self._real = real
        self._proxy = proxy
        self._left: int | None = None
        self.shutdown, self.close = real.shutdown, real.close

    def recv(self, size: int) -> bytes:
        if self._left == 0:
            self._proxy.note.write_text("0")
            assert self._proxy.cut.wait(120)
            return b""
        data = self._real.recv(size if self._left is None else min(size, self._left))
        if self._left is not None:
            self._left -= len(data)
        elif data.startswith(b"PUT ") and b"/blobs/" in data.partition(b"\r\n")[0]:
            self._proxy.uploads += 1
            if self._proxy.uploads == 2:
                head, end, body = data.partition(b"\r\n\r\n")
                self._left = HALF - len(body[:HALF])
                return head + end + body[:HALF]
        return data


@pytest.fixture
def half_way(s3: S3Bucket, tmp_path: Path) -> Generator[HalfWay]:
    """What lies between the flow and its store."""
    host, _, port = s3.endpoint.removeprefix("http://").partition(":")
    proxy = HalfWay((host, int(port)), tmp_path / "at uploading")
    yield proxy
    proxy.close()


@pytest.fixture
def cache_on_s3(s3: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> Generator[TieredCache]:
    """The flow's cache, as those see it who ask the store itself."""
    store = {"CACHE_BLOCKS_OBJECT_STORE_URL": f"{s3.url}/cache"}
    store["CACHE_BLOCKS_OBJECT_STORE_OPTIONS"] = json.dumps(s3.options)
    for name, value in (SETTINGS | store).items():
        monkeypatch.setenv(name, value)
    cache = TieredCache.from_settings()
    yield cache
    cache.close()


@pytest.mark.promise(f"{PROMISE}, when it is killed", tries="SIGKILL in an upload to S3")
def test_a_flow_that_is_killed_while_it_uploads(
    cache_on_s3: TieredCache, half_way: HalfWay, s3: S3Bucket, child_environment: dict[str, str], tmp_path: Path
) -> None:
    through = replace(s3, endpoint=f"http://127.0.0.1:{half_way.port}")
    theirs = {"CACHE_BLOCKS_OBJECT_STORE_URL": f"{s3.url}/cache"}
    theirs["CACHE_BLOCKS_OBJECT_STORE_OPTIONS"] = json.dumps(through.options)
    command = [sys.executable, "-m", "tests.prefect.dying", "nowhere", str(tmp_path)]
    environment = child_environment | SETTINGS | theirs
    with subprocess.Popen(command, env=environment, cwd=ROOT) as process:
        try:
            run = doomed(cache_on_s3, half_way.note, process)
            assert run.lease is LeaseState.HELD
        finally:
            process.kill()
    half_way.cut.set()

    until(lambda: run.lease is LeaseState.FREE)
    assert_nothing_half_written_is_visible(run)
    assert len(run.objects("blobs")) == 1
    assert run.state is StateType.RUNNING
    says = "Prefect has the flow run as Running"
    assert_reported_once(run, time.time() + SILENT, by_maintenance=True, says=says)
    assert_maintenance_takes_what_nothing_refers_to(run, blobs=0, unfinished=0)

    dying("nowhere", str(tmp_path))
    assert run.kept(run.second) == SOUND + b"second"
