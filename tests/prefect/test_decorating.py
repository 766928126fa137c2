"""Decorating a task is no reason to open anything. The module of tasks is executed in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import orjson
import pytest

if TYPE_CHECKING:
    from pathlib import Path

WATCHED = """
import sys
import orjson
from prefect import task
from cache_blocks import TRANSCRIPT, CachedFile, cached_task
touched = []
def watch(event, arguments):
    if event in ("open", "os.listdir", "os.scandir", "socket.connect", "socket.getaddrinfo", "sqlite3.connect"):
        touched.append([event, str(arguments[0])])
sys.addaudithook(watch)
"""
TASK = """
@{decorator}
def stage_{number}(recording: CachedFile) -> dict[str, list[str]]:
    return {{"{number}": []}}
"""


@pytest.mark.parametrize("options", ["", ", cache_version='2'", ", cache_tags=('nightly',), retries=2"])
def test_decorating_opens_nothing_that_prefect_does_not_open(tmp_path: Path, options: str) -> None:
    plain = touched_by(tmp_path / "stages.py", "task")
    assert touched_by(tmp_path / "stages.py", f"cached_task(kind=TRANSCRIPT{options})") == plain
    assert plain == [["open", str(tmp_path / "stages.py")]]


def touched_by(module: Path, decorator: str) -> list[list[str]]:
    """What executing 100 tasks so decorated opens, with settings under which every tier is somewhere to connect to."""
    tasks = [TASK.format(decorator=decorator, number=number) for number in range(100)]
    module.write_text("".join([WATCHED, *tasks, "sys.stdout.buffer.write(orjson.dumps([*touched]))"]))
    servers = {"REDIS_URL": "redis://127.0.0.1:1/0", "DATABASE_URL": "postgresql+psycopg://127.0.0.1:1/cache"}
    servers |= {"OBJECT_STORE_URL": "s3://bucket", "HOME": str(module.parent / "home")}
    environment = os.environ | {f"CACHE_BLOCKS_{name}": value for name, value in servers.items()}
    done = subprocess.run([sys.executable, str(module)], check=True, capture_output=True, env=environment)
    return orjson.loads(done.stdout)
