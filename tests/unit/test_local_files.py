"""The copies of blobs on one machine: fetched once for all its processes, whole, and never more than the budget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cache_blocks import AUDIO_PREPROCESSING, CachedFile, CacheSettings, TieredCache
from cache_blocks.fingerprint import digest_bytes
from cache_blocks.local_files import LocalCopy, LocalFiles
from tests.unit.local_files_worker import BLOBS, SIZE, content

if TYPE_CHECKING:
    from collections.abc import Generator

ROOT = Path(__file__).parents[2]
BUDGET = 5 * SIZE
PROCESSES = 4


def take(files: LocalFiles, data: bytes, name: str = "a.wav") -> LocalCopy:
    return files.copy_of(digest_bytes(data), name, lambda target: target.write_bytes(data))


def not_again(target: Path) -> None:
    pytest.fail(f"{target} is fetched, though a copy is here")


def copies(folder: Path) -> list[Path]:
    """All copies, each name of the same bytes once."""
    return [path for path in folder.glob("??/*/*") if path.is_file()]


def size_of(folder: Path) -> int:
    return sum({path.stat().st_ino: path.stat().st_size for path in copies(folder)}.values())


@pytest.fixture
def files(tmp_path: Path) -> LocalFiles:
    return LocalFiles(tmp_path / "files", BUDGET)


def test_bytes_are_fetched_once_under_any_name(files: LocalFiles) -> None:
    first = take(files, content(1))
    assert first.path.name == "a.wav"
    digest = digest_bytes(content(1))
    assert files.copy_of(digest, "a.wav", not_again).path == first.path
    other = files.copy_of(digest, "b.wav", not_again)
    assert (other.path.name, other.path.read_bytes()) == ("b.wav", content(1))
    assert size_of(files.folder) == SIZE, "a name takes no room"


def test_what_cannot_be_fetched_leaves_nothing(files: LocalFiles) -> None:
    def fail(target: Path) -> None:
        target.write_bytes(b"half")
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        files.copy_of(digest_bytes(content(1)), "a.wav", fail)
    assert not [path for path in files.folder.rglob("*") if path.is_file() and path.stat().st_size > 0]
    assert take(files, content(1)).path.read_bytes() == content(1)


def test_a_damaged_copy_is_fetched_again_also_while_somebody_uses_it(files: LocalFiles) -> None:
    held = take(files, content(1))
    held.path.write_bytes(bytes(SIZE))
    assert take(files, content(1)).path.read_bytes() == content(1)


def test_what_was_not_used_for_the_longest_time_goes_first(files: LocalFiles) -> None:
    for number in range(5):
        copy = take(files, content(number))
        os.utime(copy.path.parent, (number, number))
        del copy
    take(files, content(0))  # used now
    take(files, content(5))
    left = {path.read_bytes()[0] for path in copies(files.folder)}
    assert left == {0, 4, 5, *(left & {3})}, "0 was used, 1 and 2 were the oldest"
    assert size_of(files.folder) <= BUDGET


def test_a_file_that_is_larger_than_the_budget_is_there_while_it_is_used(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path, SIZE - 1)
    copy = take(files, content(1))
    assert copy.path.read_bytes() == content(1)
    other = take(files, content(2))
    assert copy.path.exists()
    del copy
    take(files, content(3))
    assert {path.read_bytes()[0] for path in copies(tmp_path)} == {2, 3}
    assert other.path.exists()


def test_a_process_holds_so_many_copies_at_most_that_it_can_still_open_files(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path, 1_000)
    held = [take(files, f"{number}".encode()) for number in range(300)]
    holding = [copy for copy in held if copy.holds]
    assert holding == held[-256:], "those that were asked for last"


def test_threads_fetch_what_they_all_want_once(files: LocalFiles) -> None:
    fetched: list[int] = []
    together = threading.Barrier(8)

    def want(_: int) -> bytes:
        def fetch(target: Path) -> None:
            fetched.append(1)
            target.write_bytes(content(1))

        together.wait(60)
        return files.copy_of(digest_bytes(content(1)), "a.wav", fetch).path.read_bytes()

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(want, range(8))) == {content(1)}
    assert len(fetched) == 1


class Budget(RuleBasedStateMachine):
    """Copies come, are used and let go, by processes that know nothing of each other; the bookkeeping gets lost."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory(prefix="local-files-")
        self.files = LocalFiles(Path(self.folder.name), BUDGET)
        self.held: list[tuple[bytes, LocalCopy]] = []

    def teardown(self) -> None:
        for _, copy in self.held:
            copy.release()
        self.folder.cleanup()

    @rule(number=st.integers(0, 9), size=st.integers(0, 2 * BUDGET), hold=st.booleans(), name=st.sampled_from("ab"))
    def add(self, number: int, size: int, name: str, *, hold: bool) -> None:
        data = bytes([number]) * size
        before = set(copies(self.files.folder))
        copy = take(self.files, data, f"{name}.wav")
        assert copy.path.read_bytes() == data
        self.held.append((data, copy))
        if copy.path not in before:
            used = sum(len(data) for data in {data for data, _ in self.held})
            assert size_of(self.files.folder) <= max(BUDGET, used)
        if not hold:
            self.held.pop()

    @rule()
    def another_process(self) -> None:
        self.files = LocalFiles(self.files.folder, BUDGET)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))[1].release()

    @rule(content=st.sampled_from([b"", b"no number", None]))
    def lose_the_bookkeeping(self, content: bytes | None) -> None:
        ledger = self.files.folder / ".state" / "budget"
        if content is None:
            ledger.unlink(missing_ok=True)
        elif ledger.exists():
            ledger.write_bytes(content)

    @rule(number=st.integers(0, 9))
    def remove_one(self, number: int) -> None:
        found = sorted(copies(self.files.folder))
        in_use = {copy.path.parent for _, copy in self.held}
        if number < len(found) and found[number].parent not in in_use:
            self.files.remove(found[number].parent.name)

    @invariant()
    def what_is_in_use_is_there(self) -> None:
        for data, copy in self.held:
            assert copy.path.read_bytes() == data


TestBudget = pytest.mark.promise(
    "Copies of files on a machine never take more than their budget, those in use aside", tries="random histories"
)(Budget.TestCase)
TestBudget.settings = settings(max_examples=100, stateful_step_count=25)


@contextmanager
def processes(
    folder: Path, log: Path, rounds: int, *, count: int = PROCESSES, budget: int = BUDGET
) -> Generator[list[subprocess.Popen[str]]]:
    """Processes that have begun and wait to be told to go on."""
    command = [sys.executable, "-m", "tests.unit.local_files_worker", str(folder), str(budget), str(log), str(rounds)]
    started = [
        subprocess.Popen([*command, str(seed)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for seed in range(count)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def answer_of(process: subprocess.Popen[str]) -> list[Any]:
    output, _ = process.communicate("go\n")
    return json.loads(output)


@pytest.mark.promise(
    "A copy that a process uses is whole, and stays while others make room", tries="4 processes, 300 uses each"
)
def test_processes_that_make_room_never_take_a_copy_from_one_another(tmp_path: Path) -> None:
    with processes(tmp_path / "files", tmp_path / "log", rounds=300) as started, ThreadPoolExecutor() as pool:
        assert list(pool.map(answer_of, started)) == [[]] * PROCESSES
    assert size_of(tmp_path / "files") <= max(BUDGET, 3 * PROCESSES * SIZE)
    take(LocalFiles(tmp_path / "files", BUDGET), b"one more")
    assert size_of(tmp_path / "files") <= BUDGET


@pytest.mark.promise("The processes of one machine fetch a file once", tries="4 processes, 12 files")
def test_processes_of_one_machine_fetch_a_blob_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        processes(tmp_path / "files", log, rounds=100, budget=BLOBS * SIZE) as started,
        ThreadPoolExecutor() as pool,
    ):
        assert list(pool.map(answer_of, started)) == [[]] * PROCESSES
    fetched = log.read_text().split()
    assert len(fetched) == len(set(fetched)) == BLOBS


def test_the_copy_of_a_process_that_was_killed_may_go(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "files", SIZE)
    with processes(files.folder, tmp_path / "log", rounds=0, count=1) as (holder,):
        take(files, content(1))
        assert {path.read_bytes()[0] for path in copies(files.folder)} == {0, 1}, "it is in use"
        holder.kill()
        holder.wait()
        take(files, content(2))
    assert {path.read_bytes()[0] for path in copies(files.folder)} == {2}


@pytest.mark.parametrize("way", ["making room", "removing"])
def test_what_a_killed_process_has_half_fetched_is_never_seen_and_goes(tmp_path: Path, way: str) -> None:
    files = LocalFiles(tmp_path / "files", SIZE)
    command = [sys.executable, "-m", "tests.unit.local_files_worker", str(files.folder), "1", "-", "-1", "0"]
    assert subprocess.run(command, cwd=ROOT, check=False, input="", text=True).returncode < 0
    (part,) = files.folder.rglob("*.part")
    assert not copies(files.folder)

    if way == "removing":
        files.remove(digest_bytes(content(0)))
    else:
        take(files, content(1))
        take(files, content(2))

    assert not part.exists()
    assert take(files, content(0)).path.read_bytes() == content(0)


def test_the_budget_is_a_setting(tmp_path: Path) -> None:
    produced = tmp_path / "produced.wav"
    with_budget = CacheSettings(local_files_max_bytes=2 * SIZE)
    cache = TieredCache(with_budget)
    for number in range(4):
        produced.write_bytes(content(number))
        cache.put(f"audio-preprocessing:{number}", produced, kind=AUDIO_PREPROCESSING, annotation=Path)
    for number in range(4):
        file: CachedFile = cache.get(f"audio-preprocessing:{number}", annotation=Path)
        assert file.path.read_bytes() == content(number)
        del file
    assert 0 < size_of(with_budget.local_files) <= 2 * SIZE
    cache.close()
