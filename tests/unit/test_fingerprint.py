"""A digest is always that of the bytes, however little is read for it: versions, the memo, and what could deceive."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import math
import os
import pickle
import sqlite3
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import fsspec
import pytest
from blake3 import blake3
from fsspec.core import OpenFile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cache_blocks import fingerprint, fingerprint_memo, fingerprint_memory, versions
from cache_blocks.errors import TierUnavailableError
from cache_blocks.fingerprint import digest_bytes, digest_many, digest_of, digest_path, digest_stream, forget_digests
from cache_blocks.fingerprint_memo import DigestMemo, Known
from cache_blocks.versions import Clock
from flows.sources import find_recordings

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from tests.servers.s3 import S3Bucket

SOUND = b"the walrus sings"
OTHER = b"the tern replies"
LONG_AGO = 1_500_000_000


@pytest.fixture(autouse=True)
def forgetful() -> None:
    """Each test starts as a process that has read nothing."""
    new_process()


def new_process() -> None:
    """Forget what dies with a process; what is on disk stays."""
    fingerprint_memory.read_here.clear()
    fingerprint_memory.told.clear()


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every file for one that has been there for a while."""
    monkeypatch.setattr(fingerprint_memory, "_SETTLED_SECONDS", -1.0)


class Reads:
    """Counts what is read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        monkeypatch.setattr(fingerprint, "digest_stream", self._read)

    def _read(self, stream: BinaryIO) -> str:
        self.count += 1
        return digest_stream(stream)

    def during(self, work: Callable[[], object]) -> int:
        """How many files some work reads."""
        before = self.count
        work()
        return self.count - before


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "walrus.mp3"
    path.write_bytes(SOUND)
    return path


def memo_file(home: Path) -> Path:
    return home / "digests" / "digests.db"


# --- what a digest is


@given(data=st.binary(max_size=300), scale=st.sampled_from([0, 1, 10_000]), extra=st.integers(-2, 2))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_digest_is_that_of_the_bytes_whatever_their_length(
    tmp_path: Path, data: bytes, scale: int, extra: int
) -> None:
    """Lengths around the size of the buffer, and none at all, are where reading in pieces goes wrong."""
    content = data * scale + bytes(max(0, fingerprint.CHUNK_BYTES + extra) if scale == 1 else 0)
    path = tmp_path / "any"
    path.write_bytes(content)
    assert digest_path(path) == digest_of(path) == digest_bytes(content) == blake3(content).hexdigest()


def test_a_digest_is_read_in_the_same_memory_whatever_the_length(tmp_path: Path) -> None:
    short, long = tmp_path / "short", tmp_path / "long"
    for path, size in ((short, 2 * fingerprint.CHUNK_BYTES), (long, 1024 * fingerprint.CHUNK_BYTES)):
        with path.open("wb") as stream:
            stream.truncate(size)
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from cache_blocks.fingerprint import digest_path\n"
        "def peak():\n"
        "    return int(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
        "digest_path(sys.argv[1])\n"
        "before = peak()\n"
        "digest_path(sys.argv[2])\n"
        "print(peak() - before)"
    )
    command = [sys.executable, "-c", program, str(short), str(long)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 4 * 1024, "kilobytes"


def test_what_is_neither_a_file_nor_a_folder_is_an_error_of_its_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe is neither"):
        digest_path(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match=r"gone\.mp3"):
        digest_of(tmp_path / "gone.mp3")


def test_buffers_of_threads_and_forks_are_their_own(tmp_path: Path) -> None:
    """Two readers in one buffer would mix their bytes."""
    paths = [tmp_path / f"{number}" for number in range(6)]
    for path in paths:
        path.write_bytes(os.urandom(3 * fingerprint.CHUNK_BYTES + len(path.name)))
    program = (
        "import os, sys\n"
        "from cache_blocks.fingerprint import digest_many, digest_path\n"
        "digest_path(sys.argv[1])\n"
        "child = os.fork()\n"
        "digests = digest_many(sys.argv[1:] * 5, threads=4)\n"
        "found = [digest_path(path) for path in sys.argv[1:] * 5] + digests\n"
        "if child:\n"
        "    os.waitpid(child, 0)\n"
        "print(*found)"
    )
    command = [sys.executable, "-c", program, *map(str, paths)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    expected = [digest_bytes(path.read_bytes()) for path in paths]
    assert [line.split() for line in done.stdout.splitlines()] == [expected * 10] * 2


# --- many at once


def test_many_keep_their_order_and_an_error_stays_with_its_item(tmp_path: Path) -> None:
    sources: list[Any] = []
    for number in range(40):
        path = tmp_path / f"{number}.mp3"
        path.write_bytes(b"%d" % number)
        sources += [path, str(path), fsspec.open(path.as_uri(), "rb")]
    folder = tmp_path / "folder"
    folder.mkdir()
    sources[7], sources[20], sources[33] = tmp_path / "gone.mp3", folder, fsspec.open("memory://gone", "rb")
    found = digest_many(sources, threads=4)
    assert isinstance(found[7], FileNotFoundError)
    assert isinstance(found[33], FileNotFoundError)
    assert found[20] == digest_path(folder)
    for index in set(range(120)) - {7, 20, 33}:
        assert found[index] == digest_bytes(b"%d" % (index // 3))


def test_many_are_read_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(3, timeout=60)

    def read(stream: BinaryIO) -> str:
        together.wait()
        return digest_stream(stream)

    monkeypatch.setattr(fingerprint, "digest_stream", read)
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text(path.name)
    assert digest_many(paths, threads=3) == [digest_bytes(name.encode()) for name in "abc"]


# --- remembering


@pytest.mark.usefixtures("settled")
def test_an_unchanged_file_is_not_read_again_by_a_later_process(recording: Path, reads: Reads) -> None:
    assert reads.during(lambda: digest_of(recording)) == 1
    assert reads.during(lambda: digest_of(recording)) == 0
    new_process()
    assert reads.during(lambda: digest_of(recording)) == 0
    assert digest_of(recording) == digest_many([recording])[0] == digest_bytes(SOUND)


@pytest.mark.usefixtures("settled")
def test_ten_thousand_unchanged_files_take_one_lookup(
    tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{number}" for number in range(10_000)]
    for path in paths:
        path.touch()
    digest_many(paths)
    new_process()
    opened: list[Any] = []
    connect: Callable[..., Any] = sqlite3.connect

    def counted(*given: Any, **named: Any) -> Any:
        opened.append(given)
        return connect(*given, **named)

    monkeypatch.setattr(sqlite3, "connect", counted)
    assert reads.during(lambda: digest_many(paths)) == 0
    assert len(opened) == 1


@pytest.mark.usefixtures("settled")
def test_what_another_process_has_read_says_nothing_of_damage(recording: Path, reads: Reads) -> None:
    """Bits that decay leave times alone, so that whoever looks for damage reads once in each process."""
    digest_of(recording)
    new_process()
    digest_of(recording)
    assert reads.during(lambda: digest_path(recording)) == 1
    assert reads.during(lambda: digest_path(recording)) == 0


def test_a_file_that_was_just_written_is_read_every_time(recording: Path, reads: Reads) -> None:
    assert reads.during(lambda: [digest_of(recording) for _ in range(3)]) == 3
    os.utime(recording, (LONG_AGO, LONG_AGO))
    assert reads.during(lambda: [digest_of(recording) for _ in range(3)]) == 3, "an old date does not make it old"


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("mode, reads_later, file", [("on", 0, True), ("read-only", 1, False), ("off", 1, False)])
def test_modes_say_whether_anything_is_noted_down(
    mode: str,
    reads_later: int,
    file: bool,  # noqa: FBT001 - a parameter of the test
    recording: Path,
    reads: Reads,
    cache_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CACHE_BLOCKS_MODE", mode)
    digest_of(recording)
    new_process()
    assert reads.during(lambda: digest_of(recording)) == reads_later
    assert memo_file(cache_home).exists() == file


@pytest.mark.usefixtures("settled")
def test_read_only_uses_what_is_there(recording: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    digest_of(recording)
    new_process()
    monkeypatch.setenv("CACHE_BLOCKS_MODE", "read-only")
    assert reads.during(lambda: digest_of(recording)) == 0


# --- the clock's granularity


@dataclasses.dataclass
class Disk:
    """A file system whose clock ticks slowly and may be wrong: real files, of which it tells its own times.

    Attributes:
        now: The time by our clock.
        tick: Seconds between two times that it can tell.
        ahead: Seconds by which its clock is ahead of ours.
    """

    folder: Path
    tick: float
    ahead: float
    now: float = 1_700_000_000.0
    times: dict[int, tuple[float, float]] = dataclasses.field(default_factory=dict[int, tuple[float, float]])

    @property
    def path(self) -> Path:
        return self.folder / "walrus.mp3"

    def ticked(self) -> float:
        told = self.now + self.ahead
        return told - told % self.tick

    def write(self, content: bytes) -> None:
        """Overwrite in place: the inode stays."""
        with self.path.open("r+b" if self.path.exists() else "wb") as stream:
            stream.write(content)
            stream.truncate()
            self.times[os.fstat(stream.fileno()).st_ino] = self.ticked(), self.ticked()

    def set_back(self) -> None:
        """Give it the date that it had, as `cp -p` and `rsync` do; ``ctime`` cannot be given."""
        self.times[self.path.stat().st_ino] = LONG_AGO, self.ticked()

    def replace(self, content: bytes) -> None:
        """Put another file in its place: the inode is another one."""
        new = self.folder / "new"
        new.write_bytes(content)
        self.times[new.stat().st_ino] = self.ticked(), self.ticked()
        new.replace(self.path)

    def recreate(self, content: bytes) -> None:
        """Remove it first, so that the inode is likely used again."""
        self.path.unlink(missing_ok=True)
        self.write(content)

    def told(self, status: os.stat_result) -> Any:
        mtime, ctime = self.times.get(status.st_ino, (status.st_mtime, status.st_ctime))
        seconds = {"st_mtime": mtime, "st_ctime": ctime}
        nanoseconds = {"st_mtime_ns": int(mtime * 1e9), "st_ctime_ns": int(ctime * 1e9)}
        kept = {name: getattr(status, name) for name in ("st_mode", "st_size", "st_ino", "st_dev")}
        return SimpleNamespace(**seconds, **nanoseconds, **kept)

    @contextlib.contextmanager
    def mounted(self, reading: Callable[[], object]) -> Generator[None]:
        """Have files seen as this disk shows them, time told by our clock, and something happen while they are read."""

        def of_path(path: str) -> Any:
            return self.told(Path(path).stat())

        def of_open_file(number: int) -> Any:
            return self.told(os.fstat(number))

        def clock_of(_path: str, _device: int) -> Clock:
            return Clock.ANOTHER if self.ahead else Clock.OURS

        seen = SimpleNamespace(fspath=os.fspath, stat=of_path, fstat=of_open_file)

        def read(stream: BinaryIO) -> str:
            digest = digest_stream(stream)
            reading()
            return digest

        with pytest.MonkeyPatch.context() as patch:
            for module in (versions, fingerprint):
                patch.setattr(module, "os", seen)
            patch.setattr(versions, "clock_of", clock_of)
            patch.setattr(fingerprint, "time", SimpleNamespace(time=lambda: self.now))
            patch.setattr(fingerprint, "digest_stream", read)
            yield


Edit = tuple[Literal["write", "replace", "recreate"], bytes] | tuple[Literal["set_back"]]
CONTENTS = st.sampled_from([SOUND, OTHER, b"short"])
EDITS = st.one_of(
    st.tuples(st.sampled_from(["write", "replace", "recreate"]), CONTENTS),
    st.just(("set_back",)),
)
STEPS = st.one_of(
    EDITS,
    st.tuples(st.just("wait"), st.sampled_from([0.001, 0.1, 1.0, 1.9, 2.05, 2.2, 60.0])),
    st.just(("look",)),
    st.tuples(st.just("look"), EDITS),
    st.just(("new process",)),
)


@pytest.mark.promise(
    "A digest is that of the bytes, however recently they changed", tries="400 histories on slow and wrong clocks"
)
@given(
    steps=st.lists(STEPS, min_size=4, max_size=25),
    tick=st.sampled_from([1e-6, 0.004, 1.0, 2.0]),
    ahead=st.sampled_from([0.0, 3600.0, -3600.0, 0.7]),
)
@example(steps=[("wait", 1.9), ("look",), ("write", OTHER)], tick=2.0, ahead=0.0)
@example(steps=[("wait", 60.0), ("look", ("write", OTHER)), ("new process",)], tick=1e-6, ahead=0.0)
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_a_digest_is_that_of_the_bytes_whatever_was_done_to_them_and_when(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]], tick: float, ahead: float
) -> None:
    """Equal sizes, dates set back, inodes used again, edits while reading, other processes, clocks that tick slowly."""
    disk = Disk(tmp_path_factory.mktemp("disk"), tick, ahead)
    disk.write(SOUND)
    pending: list[tuple[Any, ...]] = []

    def edit(step: tuple[Any, ...]) -> None:
        getattr(disk, step[0])(*step[1:])

    def meanwhile() -> None:
        while pending:
            edit(pending.pop())

    new_process()
    with pytest.MonkeyPatch.context() as patch, disk.mounted(meanwhile):
        patch.setenv("CACHE_BLOCKS_HOME", str(disk.folder / "home"))
        for step in steps:
            match step:
                case ("wait", seconds):
                    disk.now += seconds
                case ("new process",):
                    new_process()
                case ("look", change):
                    pending.append(change)
                    digest_of(disk.path)
                    pending.clear()
                case ("look",):
                    assert digest_of(disk.path) == digest_bytes(disk.path.read_bytes())
                case _:
                    edit(step)
        assert digest_of(disk.path) == digest_bytes(disk.path.read_bytes())


@pytest.mark.promise("A digest is that of the bytes, however recently they changed", tries="3,000 real edits")
def test_edits_that_follow_each_other_within_a_tick_of_the_kernel_are_seen(recording: Path) -> None:
    """Many of these leave size, date and even ctime as they were."""
    same = 0
    before = recording.stat()
    for number in range(3_000):
        content = b"%016d" % number
        with recording.open("r+b") as stream:
            stream.write(content)
        os.utime(recording, (LONG_AGO, LONG_AGO))
        after = recording.stat()
        same += (before.st_ctime_ns, before.st_size) == (after.st_ctime_ns, after.st_size)
        before = after
        assert digest_of(recording) == digest_bytes(content)
    assert memo_is_empty_of(recording)


def memo_is_empty_of(path: Path) -> bool:
    version = versions.version_of_file(str(path))
    memo = fingerprint_memory.shared_memo()
    assert version is not None
    assert memo is not None
    return not memo.recall([version.identity])


@pytest.mark.parametrize("ahead", [0.0, 3600.0, -3600.0])
def test_an_old_file_is_remembered_on_any_clock(tmp_path: Path, ahead: float) -> None:
    """Of a clock that is not ours, two looks that are two seconds apart show what its times cannot."""
    disk = Disk(tmp_path, 2.0, ahead)
    disk.write(SOUND)
    disk.now += 10
    looked: list[str] = []
    with disk.mounted(lambda: looked.append("read")):
        for _ in range(4):
            digest_of(disk.path)
            new_process()
            disk.now += 3
    assert len(looked) == (2 if ahead else 1)


def test_a_file_system_that_tells_no_ctime_is_never_relied_on(
    recording: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clock_of(_path: str, _device: int) -> Clock:
        return Clock.NONE

    monkeypatch.setattr(versions, "clock_of", clock_of)
    monkeypatch.setattr(fingerprint_memory, "_SETTLED_SECONDS", -math.inf)
    assert reads.during(lambda: [digest_of(recording), digest_path(recording)]) == 2


@pytest.mark.parametrize(
    "mount, path, kind",
    [
        ("22 1 0:5 / / rw - ext4 /dev/sda rw", "/a/b", "ext4"),
        ("22 1 0:5 / / rw - ext4 x rw\n23 22 0:6 / /mnt/calls rw shared:1 - nfs4 host:/x rw", "/mnt/calls/a", "nfs4"),
        ("22 1 0:5 / / rw - ext4 x rw\n23 22 0:6 / /mnt/calls rw - nfs4 host:/x rw", "/mnt/callsign", "ext4"),
        (
            "22 1 0:5 / / rw - ext4 x rw\n23 22 0:6 / /mnt/a\\040b rw - fuse.sshfs x rw",
            "/mnt/a b/c",
            "fuse.sshfs",
        ),
        ("22 1 0:5 / /a rw - ext4 x rw\n23 22 0:6 / /a rw - tmpfs x rw", "/a/b", "tmpfs"),
        ("", "/a", ""),
    ],
    ids=["root", "mounted", "a name that begins alike", "a space", "mounted over", "nothing known"],
)
def test_the_kind_of_a_file_system_is_that_of_the_innermost_mount(
    mount: str, path: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mountinfo").write_text(mount)
    monkeypatch.setattr(versions, "_MOUNTS", tmp_path / "mountinfo")
    assert versions.file_system_kind(path) == kind


# --- the file of the memo


def overwrite(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Damage that puts other bytes in the place of the file's."""
    return lambda path: path.write_bytes(change(path.read_bytes()))


def run_sql(script: str) -> Callable[[Path], object]:
    """Damage that a program which knows SQLite could do."""

    def damage(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.executescript(script)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    return damage


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    "damage",
    [
        overwrite(lambda _: b"not a database"),
        overwrite(lambda file: file[:5000]),
        overwrite(lambda file: file[:4096] + os.urandom(8192)),
        run_sql("DROP TABLE memo"),
        run_sql("DROP TABLE memo; CREATE VIEW memo AS SELECT 1 AS identity"),
        run_sql("CREATE TRIGGER t BEFORE INSERT ON memo BEGIN SELECT RAISE(FAIL, 'no'); END"),
        run_sql("UPDATE memo SET digest = replace(digest, 'a', 'b')"),
        run_sql("UPDATE memo SET digest = CAST(x'ff' AS TEXT)"),
        run_sql("UPDATE memo SET digest = x'00', since = 'now'"),
        Path.unlink,
    ],
    ids=["text", "short", "garbage", "no table", "view", "trigger", "other digest", "no UTF-8", "other types", "gone"],
)
def test_a_damaged_memo_is_made_anew_and_never_believed(
    damage: Callable[[Path], object],
    recording: Path,
    reads: Reads,
    cache_home: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    digest_of(recording)
    damage(memo_file(cache_home))
    for _ in range(4):
        new_process()
        assert digest_of(recording) == digest_bytes(SOUND)
    new_process()
    assert reads.during(lambda: digest_of(recording)) == 0, "it works again"
    assert sum("memo of digests" in record.message for record in caplog.records) <= 1


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("place", ["digests", "digests/digests.db"])
def test_a_memo_that_others_can_write_is_not_believed(
    place: str, recording: Path, reads: Reads, cache_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    digest_of(recording)
    assert stat.S_IMODE((cache_home / "digests").stat().st_mode) == 0o700
    assert stat.S_IMODE(memo_file(cache_home).stat().st_mode) == 0o600
    (cache_home / place).chmod(0o777)
    new_process()
    assert reads.during(lambda: digest_of(recording)) == 1
    assert "can be written by, others; remove it" in caplog.text


@pytest.mark.usefixtures("settled")
def test_a_memo_that_cannot_be_made_costs_no_more_than_reading(
    recording: Path, cache_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache_home.write_text("a file where the folder should be")
    for _ in range(3):
        new_process()
        assert digest_of(recording) == digest_bytes(SOUND)
    assert caplog.text.count("cannot be used") == 1


@pytest.mark.usefixtures("settled")
def test_a_memo_that_another_process_holds_is_passed_over(
    recording: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint_memo, "_WAIT_SECONDS", 0.01)
    digest_of(recording)
    with contextlib.closing(sqlite3.connect(memo_file(cache_home), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        recording.write_bytes(OTHER)
        assert digest_of(recording) == digest_bytes(OTHER)
        with pytest.raises(TierUnavailableError, match="digest memo"):
            forget_digests([digest_bytes(SOUND)])


def test_the_memo_is_bounded_and_keeps_what_was_asked_for_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memo = DigestMemo(tmp_path / "memo", max_rows=1_500)
    day = functools.partial(monkeypatch.setattr, fingerprint_memo, "_today")
    digest = digest_bytes(SOUND)

    def rows(start: int) -> dict[bytes, Known]:
        return {b"%032d" % number: Known(digest, 0.0) for number in range(start, start + 1_000)}

    day(lambda: 100)
    memo.keep(rows(0))
    day(lambda: 101)
    assert len(memo.recall(list(rows(0))[:200])) == 200
    memo.keep(rows(1_000))
    assert len(memo.recall(list(rows(1_000)))) == 1_000
    assert len(memo.recall(list(rows(0)))) == 500
    assert len(memo.recall(list(rows(0))[:200])) == 200
    day(lambda: 101 + fingerprint_memo.KEEP_DAYS + 1)
    memo.keep({b"new": Known(digest, 0.0)})
    assert not memo.recall([*rows(0), *rows(1_000)])


@pytest.mark.usefixtures("settled")
def test_threads_and_processes_share_the_memo(tmp_path: Path, cache_home: Path) -> None:
    paths = [tmp_path / f"{number}" for number in range(60)]
    for path in paths:
        path.write_text(path.name)
    program = (
        "import sys\n"
        "from cache_blocks import fingerprint_memory\n"
        "fingerprint_memory._SETTLED_SECONDS = -1\n"
        "from cache_blocks.fingerprint import digest_of\n"
        "print(*[digest_of(path) for path in sys.argv[1:]])"
    )
    environment = os.environ | {"CACHE_BLOCKS_HOME": str(cache_home)}
    command = [sys.executable, "-c", program, *map(str, paths)]
    with contextlib.ExitStack() as stack:
        others = [
            stack.enter_context(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
            for _ in range(3)
        ]
        with ThreadPoolExecutor(8) as pool:
            mine = list(pool.map(digest_of, paths))
        printed = [other.communicate(timeout=120)[0].split() for other in others]
    expected = [digest_bytes(path.name.encode()) for path in paths]
    assert [mine, *printed] == [expected] * 4
    assert len(dict.fromkeys(expected)) == count_rows(memo_file(cache_home))


def count_rows(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM memo").fetchone()[0])


@pytest.mark.usefixtures("settled")
def test_forgetting_leaves_no_byte_of_a_digest_and_nothing_names_a_file(
    recording: Path, tmp_path: Path, cache_home: Path, reads: Reads
) -> None:
    other = tmp_path / "tern.mp3"
    other.write_bytes(OTHER)
    digest_many([recording, other])
    assert forget_digests([digest_bytes(SOUND)]) == 1
    left = b"".join(path.read_bytes() for path in memo_file(cache_home).parent.iterdir())
    assert digest_bytes(SOUND).encode() not in left
    assert digest_bytes(OTHER).encode() in left
    assert b"walrus" not in left
    assert b"tern" not in left
    assert reads.during(lambda: digest_many([recording, other])) == 1


def test_importing_and_forgetting_make_no_file(cache_home: Path) -> None:
    assert forget_digests([digest_bytes(SOUND)]) == 0
    assert not cache_home.exists()


# --- objects


class Requests:
    """The requests that a file system sends to an S3 server, as METHOD key."""

    def __init__(self, fs: Any) -> None:
        self.sent: list[str] = []
        fs.connect()
        fs.s3.meta.events.register("before-send.s3", self._note)

    def _note(self, request: Any, **_: Any) -> None:
        self.sent.append(f"{request.method} {request.url.partition('?')[0].rsplit('/', 1)[-1]}")

    def during(self, work: Callable[[], object]) -> list[str]:
        """What some work asks for."""
        before = len(self.sent)
        work()
        return sorted(self.sent[before:])


@pytest.fixture(params=["s3", "s3_conditional"])
def bucket(request: pytest.FixtureRequest) -> S3Bucket:
    return request.getfixturevalue(request.param)


@pytest.fixture
def calls(bucket: S3Bucket) -> Generator[Any]:
    fs = fsspec.filesystem("s3", **bucket.options)
    for number in range(5):
        fs.pipe_file(f"{bucket.bucket}/calls/{number}.mp3", b"call number %d" % number)
    yield fs
    fs.invalidate_cache()


def listed(bucket: S3Bucket) -> list[Any]:
    return [one.handle for one in find_recordings(f"{bucket.url}/calls", bucket.options)]


def test_unchanged_objects_cost_one_listing_and_no_request_each(bucket: S3Bucket, calls: Any) -> None:
    requests = Requests(calls)
    digests = digest_many(listed(bucket))
    assert digests == [digest_bytes(b"call number %d" % number) for number in range(5)]
    new_process()
    later = listed(bucket)
    assert requests.during(lambda: digest_many(later)) == []
    assert [digest_of(pickle.loads(pickle.dumps(handle))) for handle in later] == digests  # noqa: S301
    assert not [sent for sent in requests.during(lambda: listed(bucket)) if "mp3" in sent], "nor has listing asked each"


def test_an_unchanged_object_that_nobody_has_listed_costs_its_details(bucket: S3Bucket, calls: Any) -> None:
    requests = Requests(calls)
    handle = OpenFile(calls, f"{bucket.bucket}/calls/3.mp3", mode="rb")
    digest = digest_of(handle)
    new_process()
    assert requests.during(lambda: digest_of(handle)) == ["HEAD 3.mp3"]
    assert digest_of(handle) == digest == digest_bytes(b"call number 3")


def test_an_object_that_is_written_again_is_read_again(bucket: S3Bucket, calls: Any) -> None:
    """Same size, same second, and written by somebody else, of whom this process's listing does not know."""
    handle = OpenFile(calls, f"{bucket.bucket}/calls/3.mp3", mode="rb")
    with contextlib.closing(bucket.client()) as other:
        for number in range(20):
            content = b"call number %d" % (number % 10)
            other.put_object(Bucket=bucket.bucket, Key="calls/3.mp3", Body=content)
            assert digest_of(handle) == digest_bytes(content)
            assert digest_many([listed(bucket)[3]]) == [digest_bytes(content)]


def test_an_object_that_was_written_after_it_was_listed_is_not_read_for_the_listed_one(
    bucket: S3Bucket, calls: Any
) -> None:
    """Else what is computed from the new bytes would be stored under the digest of the old ones."""
    handle = listed(bucket)[3]
    old = digest_of(handle)
    with contextlib.closing(bucket.client()) as other:
        other.put_object(Bucket=bucket.bucket, Key="calls/3.mp3", Body=b"call number X")
    for one in (handle, pickle.loads(pickle.dumps(handle))):  # noqa: S301
        with pytest.raises(OSError, match="written again") as caught, one:
            pass
        assert caught.value.errno == errno.ESTALE
    assert digest_of(handle) == old, "its digest still is what was listed"
    new_process()
    assert digest_of(listed(bucket)[3]) == digest_bytes(b"call number X")
    assert calls is not None


def test_what_tells_no_versions_is_read_every_time(reads: Reads) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/walrus.mp3", SOUND)
    handle = OpenFile(fs, "/walrus.mp3", mode="rb")
    assert reads.during(lambda: [digest_of(handle) for _ in range(2)]) == 2
    fs.pipe_file("/walrus.mp3", OTHER)
    assert digest_of(handle) == digest_bytes(OTHER)
    assert digest_of(find_recordings("memory://walrus.mp3")[0].handle) == digest_bytes(OTHER)


@pytest.mark.parametrize(
    "protocol, details, relied_on",
    [
        ("s3", {"ETag": '"abc"', "size": 3}, True),
        (("abfs", "az"), {"etag": "0x8D", "size": 3}, True),
        ("s3", {"ETag": 'W/"abc"', "size": 3}, False),
        ("s3", {"ETag": "", "size": 3}, False),
        ("s3", {"ETag": '"abc"', "size": None}, False),
        ("https", {"ETag": '"abc"', "size": 3}, False),
    ],
    ids=["S3", "Azure", "weak", "none", "no size", "a web server"],
)
def test_an_etag_is_relied_on_where_every_write_makes_a_new_one(
    protocol: Any,
    details: dict[str, Any],
    relied_on: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    fs = SimpleNamespace(protocol=protocol, storage_options={"key": "user", "secret": "s"})
    version = versions.version_of_details(fs, "bucket/a", details)
    assert (version is not None) == relied_on
    fs.storage_options = {"key": "another", "secret": "t"}
    assert versions.version_of_details(fs, "bucket/a", details) == version, "who asks does not count"
    fs.storage_options = {"client_kwargs": {"endpoint_url": "http://elsewhere"}}
    assert version is None or versions.version_of_details(fs, "bucket/a", details) != version


def test_an_unpacked_object_is_another_than_the_packed_one(bucket: S3Bucket, calls: Any) -> None:
    import gzip

    calls.pipe_file(f"{bucket.bucket}/calls/a.gz", gzip.compress(SOUND, mtime=0))
    packed, unpacked = (OpenFile(calls, f"{bucket.bucket}/calls/a.gz", compression=how) for how in (None, "gzip"))
    for _ in range(2):
        assert digest_of(unpacked) == digest_bytes(SOUND)
        assert digest_of(packed) == digest_bytes(gzip.compress(SOUND, mtime=0))
