"""Fingerprints: how fast files are digested, in how much memory, and what looking at unchanged ones costs."""

from __future__ import annotations

import hashlib
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from blake3 import blake3

from benchmarks.environment import environment
from benchmarks.measuring import Bar, Bench, interleaved, milliseconds, quartiles, ratio
from cache_blocks import fingerprint_memory
from cache_blocks.fingerprint import digest_many, digest_path

ORDER: Final = 5

_MEGABYTE: Final = 1024 * 1024
_LOOK: Final = """
import sys, time
from pathlib import Path
from cache_blocks.fingerprint import digest_many
paths = sorted(Path(sys.argv[1]).iterdir())
began = time.perf_counter()
digests = digest_many(paths)
print(time.perf_counter() - began)
assert all(isinstance(digest, str) for digest in digests)
"""
"""What a new process does; its clock starts when the package is loaded, and stops with the digests."""
_GROWTH: Final = """
import sys
from pathlib import Path
from cache_blocks.fingerprint import digest_path

def peak_kilobytes():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

digest_path(sys.argv[1])
before = peak_kilobytes()
digest_path(sys.argv[2])
print(peak_kilobytes() - before)
"""


def measure(bench: Bench) -> list[Bar]:
    """Measure one large file, two at once, a sparse one of 4 GB, and ten thousand unchanged small ones."""
    with environment({"CACHE_BLOCKS_HOME": str(bench.folder / "fingerprints-home")}):
        return [*_one_file(bench), _at_once(bench), _memory(bench), _unchanged(bench)]


def _one_file(bench: Bench) -> list[Bar]:
    size = round(256 * bench.scale) or 4
    bench.note(f"Digesting a file of {size} MB")
    path = _file(bench.folder / "large", size)
    data = path.read_bytes()

    def ours() -> str:
        fingerprint_memory.read_here.clear()
        return digest_path(path)

    def sha256() -> str:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    contestants = {
        "ours": ours,
        "sha256 (hashlib.file_digest)": sha256,
        "blake3 of bytes in memory": lambda: blake3(data).hexdigest(),
        "blake3.update_mmap": lambda: blake3().update_mmap(path).hexdigest(),
    }
    timings = interleaved(contestants, bench.rounds(15))
    names = list(contestants)
    faster, bare = (ratio(timings[other], timings["ours"]) for other in names[1:3])
    detail = {"megabytes": size, "milliseconds": milliseconds(timings)}
    return [
        Bar("Digest of a file, times as fast as sha256", faster.median, 2.5, "higher", "x", detail | faster.spread),
        Bar("Digest of a file, as fast as BLAKE3 of memory", bare.median, 0.9, "higher", "x", detail | bare.spread),
    ]


def _at_once(bench: Bench) -> Bar:
    size, count = round(32 * bench.scale) or 2, 8
    bench.note(f"Digesting {count} files of {size} MB with one thread and with two")
    folder = bench.folder / "several"
    folder.mkdir()
    paths = [_file(folder / f"{number}", size) for number in range(count)]

    def digest(threads: int) -> None:
        fingerprint_memory.read_here.clear()
        with environment({"CACHE_BLOCKS_MODE": "off"}):
            digest_many(paths, threads=threads)

    timings = interleaved({"one thread": lambda: digest(1), "two threads": lambda: digest(2)}, bench.rounds(15))
    gain = ratio(timings["one thread"], timings["two threads"])
    detail = {"files": count, "megabytes": size, "processors": os.cpu_count(), "milliseconds": milliseconds(timings)}
    return Bar("Several files, two threads against one", gain.median, 1.0, "higher", "x", detail | gain.spread)


def _memory(bench: Bench) -> Bar:
    size = round(4096 * bench.scale) or 64
    bench.note(f"Digesting a sparse file of {size} MB")
    short, long = _file(bench.folder / "short", 2), bench.folder / "sparse"
    with long.open("wb") as stream:
        stream.truncate(size * _MEGABYTE)
    grown = float(_run(_GROWTH, short, long)) / 1024
    detail = {"megabytes": size, "note": "Peak memory of the process, beyond that after digesting 2 MB."}
    return Bar("Memory that a 4 GB file takes", grown, 16, "lower", "MB", detail)


def _unchanged(bench: Bench) -> Bar:
    count = bench.rounds(10_000, least=100)
    bench.note(f"Looking at {count} unchanged files in new processes")
    folder = bench.folder / "many"
    folder.mkdir()
    for number in range(count):
        (folder / f"recording-{number:05}.mp3").write_bytes(b"%d" % number * 100)
    time.sleep(2.5)  # what was written just now is not remembered
    first = float(_run(_LOOK, folder))
    taken = [float(_run(_LOOK, folder)) for _ in range(bench.rounds(9))]
    low, high = quartiles(taken)
    note = "The time of `digest_many` in a process that has just loaded the package; settings and memo are read in it."
    detail = {"files": count, "low": low, "high": high, "seconds when all were read": first, "note": note}
    return Bar(f"{count:,} unchanged files in a new process", statistics.median(taken), 0.5, "lower", "s", detail)


def _run(program: str, *arguments: Path) -> str:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout


def _file(path: Path, megabytes: int) -> Path:
    path.write_bytes(random.Random(0).randbytes(_MEGABYTE) * megabytes)  # noqa: S311 - not a secret
    return path
