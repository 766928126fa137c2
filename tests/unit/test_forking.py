"""A forked child has none of its parent's other threads, so nobody there will ever let go of what they held."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from cache_blocks import forking

if TYPE_CHECKING:
    from pathlib import Path

# What every child of these programs does by itself: end, without a word, if it waits for what nobody gives it.
BEGIN = """
import os, signal, sys, threading
from cache_blocks import TRANSCRIPT, TieredCache, cached_task, forking

def fork(child):
    number = os.fork()
    if not number:
        signal.alarm(60)
        child()
        sys.stdout.flush()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 0
"""

HELD = """
from cache_blocks import NO_VALUE

def helper():
    return 1

@cached_task(kind=TRANSCRIPT, cache_source=[helper])
def transcribe(name: str) -> str:
    return name.upper()

def key():
    return transcribe.cache_policy.call_of(transcribe, {"name": "anna"}).key

def work():
    cache = TieredCache.from_settings()
    assert key() == expected
    assert cache.get("transcript:a") == "A"
    assert cache.get_or_compute("transcript:b", lambda: "B", kind=TRANSCRIPT) == "B"
    assert cache.invalidate(kind="transcript").entries == 2
    assert cache.get("transcript:a") is NO_VALUE
    cache.close()

expected = key()
cache = TieredCache.from_settings()
cache.put("transcript:a", "A", kind=TRANSCRIPT)

locks = list(forking._locks)
held, done = threading.Event(), threading.Event()

def hold():
    for one in locks:
        one.acquire()
    held.set()
    done.wait()
    for one in locks:
        one.release()

holder = threading.Thread(target=hold, daemon=True)
holder.start()
held.wait()
fork(work)
done.set()
holder.join()
cache.close()
print(len(locks))
"""

BUSY = """
def write(name, number):
    key = f"transcript:{name}-{number}"
    cache.put(key, key, kind=TRANSCRIPT)
    assert cache.get(key) == key

def go_on(name):
    for number in range(10**9):
        if over.is_set():
            return
        write(name, number % 20)

cache = TieredCache.from_settings()
write("main", 0)
over = threading.Event()
threads = [threading.Thread(target=go_on, args=(name,), daemon=True) for name in ("a", "b")]
for one in threads:
    one.start()
for number in range(20):
    fork(lambda: write("child", number))
over.set()
for one in threads:
    one.join()
cache.close()
print(sum(cache.get(f"transcript:child-{number}") == f"transcript:child-{number}" for number in range(20)))
"""

CLOSED = """
cache = TieredCache.from_settings()
cache.put("transcript:parent", "P", kind=TRANSCRIPT)
(closed, close), (written, wrote) = os.pipe(), os.pipe()
child = os.fork()
if not child:
    signal.alarm(60)
    cache.put("transcript:1", "T", kind=TRANSCRIPT)
    os.write(wrote, b".")
    os.read(closed, 1)
    cache.put("transcript:2", "T", kind=TRANSCRIPT)
    os._exit(0)
os.read(written, 1)
cache.close()  # the last connection, as far as this process knows, takes the write-ahead log with it
os.write(close, b".")
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print(cache.lookup("transcript:1").tier, cache.lookup("transcript:2").tier)
"""

IN_A_LISTENER = """
cache = TieredCache.from_settings()
forks = []

def listen(events):
    if not forks:
        forks.append(1)
        fork(lambda: cache.put("transcript:child", "C", kind=TRANSCRIPT))

cache.listen(listen)
cache.put("transcript:parent", "P", kind=TRANSCRIPT)
assert cache.get("transcript:parent") == "P"
cache.parts.events.flush()
print(len(forks), cache.get("transcript:child"))
"""

LOCKED_FILE = """
from pathlib import Path
from cache_blocks.local_files import LocalFiles

files = LocalFiles(Path(os.environ["CACHE_BLOCKS_HOME"]), 10**6)
with files._locked("one"):
    go_on, let_go = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(60)
        os.read(go_on, 1)
        os._exit(0)
with files._locked("one", wait=False):
    print("free, though the child has the file open")
os.write(let_go, b".")
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""

ORDER = """
class Noisy:
    def __init__(self, name):
        self.name = name
        forking.forget_parent_of(self)

    def forget_parent(self):
        print(self.name)

first, second, gone, third = map(Noisy, ["first", "second", "gone", "third"])
del gone
fork(lambda: None)
"""


def run(program: str, folder: Path) -> str:
    here = {"CACHE_BLOCKS_HOME": str(folder), "PYTHONPATH": os.getcwd(), "PYTHONWARNINGS": "ignore"}  # noqa: PTH109
    file = folder / "program.py"  # whose source can be read, as that of every task
    file.write_text(BEGIN + program)
    done = subprocess.run(
        [sys.executable, str(file)], check=False, capture_output=True, text=True, env={**os.environ, **here}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.promise("Clients survive a fork", tries="every lock held by another thread")
def test_a_child_waits_for_no_lock_that_another_thread_of_its_parent_held(tmp_path: Path) -> None:
    assert int(run(HELD, tmp_path)) > 15, "locks of the cache, its parts and the modules"


@pytest.mark.promise("Clients survive a fork", tries="20 forks while two threads write to SQLite")
def test_a_fork_waits_until_no_thread_is_in_the_middle_of_sqlite(tmp_path: Path) -> None:
    assert run(BUSY, tmp_path).split() == ["20"]


def test_a_gate_that_was_made_during_a_fork_is_open_after_it() -> None:
    gate = forking.Gate()
    gate.open()
    assert not gate._forking  # pyright: ignore[reportPrivateUsage]


def test_a_thread_may_leave_a_gate_for_another(caplog: pytest.LogCaptureFixture) -> None:
    """As the garbage collector does, which closes a generator in whatever thread it runs."""
    gate = forking.Gate()
    entered = gate.inside()
    entered.__enter__()
    other = threading.Thread(target=entered.__exit__, args=(None, None, None))
    other.start()
    other.join()
    gate.shut()
    gate.open()
    assert not caplog.records


def test_what_a_child_writes_stays_when_its_parent_closes_the_cache(tmp_path: Path) -> None:
    assert run(CLOSED, tmp_path).split() == ["sql", "sql"]


def test_a_listener_may_fork(tmp_path: Path) -> None:
    assert run(IN_A_LISTENER, tmp_path).split() == ["1", "C"]


def test_a_child_keeps_no_lock_of_a_file_that_its_parent_has_given_back(tmp_path: Path) -> None:
    assert run(LOCKED_FILE, tmp_path).startswith("free")


def test_what_was_made_last_forgets_first_and_what_is_gone_is_not_asked(tmp_path: Path) -> None:
    assert run(ORDER, tmp_path).split() == ["third", "second", "first"]
