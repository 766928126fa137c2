"""A forked child has none of its parent's other threads, so nobody there will ever let go of what they held."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

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


def test_what_was_made_last_forgets_first_and_what_is_gone_is_not_asked(tmp_path: Path) -> None:
    assert run(ORDER, tmp_path).split() == ["third", "second", "first"]
