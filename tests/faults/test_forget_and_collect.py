"""Forgetting and collecting while somebody writes: nothing of the forgotten stays, nothing that lives is collected."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from redis import Redis

from cache_blocks import AUDIO_PREPROCESSING, NO_VALUE, TRANSCRIPT, CachedFile, TieredCache
from cache_blocks.blobs import GRACE_SECONDS, BlobStore
from cache_blocks.fingerprint import digest_path
from cache_blocks.maintenance import collect, forget
from cache_blocks.tiers.chain import Chain
from cache_blocks.tiers.redis import RedisTier
from cache_blocks.tiers.sql import SqlTier
from cache_blocks.writing import Writer

if TYPE_CHECKING:
    from tests.faults.conftest import MakeCache

SECRET = "the walrus sings"  # what is looked for in the raw bytes
SOUND = b"RIFF sound of the walrus " * 40
LATER = GRACE_SECONDS + 60


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "walrus.mp3"
    path.write_bytes(b"an encoded walrus")
    return path


@pytest.fixture
def cache(make_cache: MakeCache, redis_url: str) -> TieredCache:
    """A cache over Redis, SQLite and a folder, all of whose bytes can be read."""
    return make_cache(redis_url=redis_url, redis_timeout_seconds=10, database_timeout_seconds=30)


def places_with_traces(cache: TieredCache) -> set[str]:
    """Search the raw bytes of Redis, of SQLite's file and log, of the object store and of the local files."""
    home = cache.settings.home
    found = {path.relative_to(home).parts[0]: path for path in home.rglob("*") if path.is_file() and is_traced(path)}
    with Redis.from_url(cache.settings.redis_url.get_secret_value()) as client:
        for name in cast("Iterator[bytes]", client.scan_iter()):
            if is_trace(name + (cast("bytes | None", client.get(name)) or b"")):
                return {*found, "redis"}
    return set(found)


def is_traced(path: Path) -> bool:
    return is_trace(path.read_bytes())


def is_trace(data: bytes) -> bool:
    return SECRET.encode() in data or b"sound of the walrus" in data


class Stop:
    """Holds a writer at one step of its work until something else has happened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, step: str, *, after: bool) -> None:
        self._reached, self._go = threading.Event(), threading.Event()
        self._writer: int | None = None
        real: Callable[..., Any] = getattr(owner, step)

        def held(*arguments: Any, **options: Any) -> Any:
            if threading.get_ident() != self._writer:
                return real(*arguments, **options)
            self._writer = None
            if not after:
                self._wait()
            answer = real(*arguments, **options)
            if after:
                self._wait()
            return answer

        monkeypatch.setattr(owner, step, held)

    def _wait(self) -> None:
        self._reached.set()
        assert self._go.wait(60)

    def meanwhile(self, write: Callable[[], object], act: Callable[[], object]) -> None:
        """Start writing, act while the writer is held, and let it finish."""

        def start() -> None:
            self._writer = threading.get_ident()
            write()

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(start)
            try:
                assert self._reached.wait(60)
                act()
            finally:
                self._go.set()
            writing.result()


STEPS = {
    "before it encodes": (Writer, "encode", False),
    "before it stores the blob": (BlobStore, "put", False),
    "after it has stored the blob": (BlobStore, "put", True),
    "before it writes the entry": (Chain, "write_through", False),
    "after it has told SQL": (SqlTier, "write", True),
    "before it writes to Redis": (RedisTier, "write", False),
    "while it writes to Redis": (RedisTier, "_store", True),
    "after it has written the entry": (Chain, "write_through", True),
}


@pytest.mark.promise("forget leaves no byte, a writer in the middle or not", tries="8 steps of a writer, 2 kinds")
@pytest.mark.parametrize(
    "step, of_file",
    [(step, of_file) for step in STEPS for of_file in (True, False) if of_file or STEPS[step][0] is not BlobStore],
)
def test_a_writer_in_the_middle_leaves_no_byte_of_what_is_forgotten(
    cache: TieredCache, recording: Path, monkeypatch: pytest.MonkeyPatch, step: str, *, of_file: bool
) -> None:
    tags = (f"recording:{digest_path(recording)}",)
    produced = recording.with_suffix(".wav")

    def compute_file() -> Path:
        produced.write_bytes(SOUND)
        return produced

    def write() -> None:
        if of_file:
            kind = AUDIO_PREPROCESSING
            cache.get_or_compute("audio-preprocessing:a", compute_file, kind=kind, tags=tags, annotation=Path)
        else:
            cache.get_or_compute("transcript:a", lambda: {"text": SECRET}, kind=TRANSCRIPT, tags=tags)

    write()
    cache.put("transcript:b", {"text": SECRET}, kind=TRANSCRIPT, tags=tags)
    assert places_with_traces(cache) >= {"redis", "objects"}, "the search finds what is there"
    cache.invalidate()
    owner, name, after = STEPS[step]

    Stop(monkeypatch, owner, name, after=after).meanwhile(write, lambda: forget(cache, recording))

    assert cache.get("transcript:a") is NO_VALUE
    assert cache.get("audio-preprocessing:a", annotation=Path) is NO_VALUE
    cache.close()
    assert places_with_traces(cache) == set(), "nothing waits for a collection"


@pytest.mark.promise("forget leaves no byte, a writer in the middle or not", tries="6 steps, of a result of bytes")
@pytest.mark.parametrize("step", [step for step in STEPS if STEPS[step][0] is not Writer])
def test_a_late_writer_of_bytes_leaves_no_local_copy_either(
    cache: TieredCache, recording: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    tags = (f"recording:{digest_path(recording)}",)
    answers: list[object] = []

    def write() -> None:
        kind = AUDIO_PREPROCESSING
        answers.append(
            cache.get_or_compute("audio-preprocessing:a", lambda: SOUND, kind=kind, tags=tags, annotation=bytes)
        )

    owner, name, after = STEPS[step]
    Stop(monkeypatch, owner, name, after=after).meanwhile(write, lambda: forget(cache, recording))

    assert answers == [SOUND], "the one who computed gets what was computed"
    cache.close()
    assert places_with_traces(cache) == set()


@pytest.mark.promise("What a refused writer takes back is never a blob that a live entry refers to", tries="8 steps")
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("held", ["the refused one", "the other one"])
def test_another_recording_with_the_same_sound_keeps_it(
    cache: TieredCache, recording: Path, monkeypatch: pytest.MonkeyPatch, step: str, held: str
) -> None:
    """Two recordings give the same bytes; one is forgotten while both are written, in either order."""

    def write(name: str, tags: tuple[str, ...] = ()) -> None:
        produced = recording.with_name(f"{name}.wav")
        produced.write_bytes(SOUND)
        key = f"audio-preprocessing:{name}"
        cache.get_or_compute(key, lambda: produced, kind=AUDIO_PREPROCESSING, tags=tags, annotation=Path)

    def write_forgotten() -> None:
        write("forgotten", tags=(f"recording:{digest_path(recording)}",))

    def write_living() -> None:
        write("living", tags=(f"recording:{'0' * 64}",))

    def forgotten_meanwhile() -> None:
        forget(cache, recording)
        write_living()

    def written_and_refused_meanwhile() -> None:
        with ThreadPoolExecutor(1) as pool:
            late = Stop(monkeypatch, Chain, "write_through", after=False)
            pool.submit(late.meanwhile, write_forgotten, lambda: forget(cache, recording)).result()

    owner, name, after = STEPS[step]
    stop = Stop(monkeypatch, owner, name, after=after)
    if held == "the refused one":
        stop.meanwhile(write_forgotten, forgotten_meanwhile)
    else:
        stop.meanwhile(write_living, written_and_refused_meanwhile)

    assert cache.get("audio-preprocessing:forgotten", annotation=Path) is NO_VALUE
    assert cache.lookup("audio-preprocessing:living").is_hit
    found: Any = cache.get("audio-preprocessing:living", annotation=Path)
    assert found.path.read_bytes() == SOUND


@pytest.mark.promise(
    "What a refused writer takes back is never a blob that a live entry refers to", tries="between looks"
)
@pytest.mark.parametrize("after", [False, True])
def test_a_writer_that_takes_up_a_blob_while_it_is_taken_back_keeps_it(
    cache: TieredCache, recording: Path, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> None:
    """The refused writer has seen, or is about to see, that nobody refers to its blob, and goes to remove it."""
    produced = recording.with_name("produced.wav")
    produced.write_bytes(SOUND)

    def write(key: str) -> None:
        cache.get_or_compute(key, lambda: produced, kind=AUDIO_PREPROCESSING, annotation=Path)

    def invalidate_then_settle() -> None:
        real = Chain.write_through

        def overtaken(*arguments: Any) -> Any:
            monkeypatch.setattr(Chain, "write_through", real)
            cache.invalidate(key="audio-preprocessing:refused")
            return real(*arguments)

        monkeypatch.setattr(Chain, "write_through", overtaken)
        write("audio-preprocessing:refused")

    Stop(monkeypatch, BlobStore, "_is_referred", after=after).meanwhile(
        invalidate_then_settle, lambda: write("audio-preprocessing:living")
    )

    assert cache.lookup("audio-preprocessing:living").is_hit
    found: Any = cache.get("audio-preprocessing:living", annotation=Path)
    assert found.path.read_bytes() == SOUND
    assert not cache.lookup("audio-preprocessing:refused").is_hit


@pytest.mark.promise("forget leaves no byte, a writer in the middle or not", tries="a reader that promotes")
def test_what_a_reader_in_the_middle_copies_to_redis_is_never_served_and_does_not_stay(
    cache: TieredCache, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = (f"recording:{digest_path(recording)}",)
    cache.put("transcript:a", {"text": SECRET}, kind=TRANSCRIPT, tags=tags)
    cache.parts.chain.tier("redis").delete(["transcript:a"])

    Stop(monkeypatch, Chain, "_promote", after=False).meanwhile(
        lambda: cache.get("transcript:a"), lambda: forget(cache, recording)
    )

    cache.close()
    assert places_with_traces(cache) == set()
    assert cache.get("transcript:a") is NO_VALUE


# Collecting


def keep_file(cache: TieredCache, path: Path, key: str = "audio-preprocessing:a") -> CachedFile:
    path.write_bytes(SOUND)
    return cache.get_or_compute(key, lambda: path, kind=AUDIO_PREPROCESSING, annotation=Path)


def age(cache: TieredCache) -> None:
    """Make every object as old as if its grace time had passed."""
    long_ago = time.time() - LATER
    for path in (cache.settings.home / "objects").rglob("*"):
        if path.is_file():
            os.utime(path, (long_ago, long_ago))


COLLECTED_AT = {name: step for name, step in STEPS.items() if name != "before it encodes"}


@pytest.mark.promise("Collection never takes a blob that a live entry refers to", tries="4 steps of a writer")
@pytest.mark.parametrize("step", COLLECTED_AT)
def test_a_writer_that_reuses_an_old_blob_while_it_is_collected_keeps_it(
    cache: TieredCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    keep_file(cache, tmp_path / "a.wav")
    cache.invalidate(key="audio-preprocessing:a")
    age(cache)
    owner, name, after = COLLECTED_AT[step]

    Stop(monkeypatch, owner, name, after=after).meanwhile(
        lambda: keep_file(cache, tmp_path / "b.wav", "audio-preprocessing:b"), lambda: collect(cache)
    )

    found: Any = cache.get("audio-preprocessing:b", annotation=Path)
    assert found is not NO_VALUE
    assert found.path.read_bytes() == SOUND
    assert cache.lookup("audio-preprocessing:b").is_hit


@pytest.mark.promise("Collection never takes a blob that a live entry refers to", tries="at the last look")
@pytest.mark.parametrize("wait_at", ["_is_young", "_referred"])
def test_a_writer_that_comes_between_two_looks_of_the_collection_keeps_its_blob_or_misses(
    cache: TieredCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_at: str
) -> None:
    """The other way around: the collection is held at its last look, and the writer does all its work meanwhile."""
    from cache_blocks.maintenance.sweeping import Sweeper

    keep_file(cache, tmp_path / "a.wav")
    cache.invalidate(key="audio-preprocessing:a")
    age(cache)

    Stop(monkeypatch, Sweeper, wait_at, after=False).meanwhile(
        lambda: collect(cache), lambda: keep_file(cache, tmp_path / "b.wav", "audio-preprocessing:b")
    )

    found: Any = cache.get("audio-preprocessing:b", annotation=Path)
    assert found is not NO_VALUE
    assert found.path.read_bytes() == SOUND


def test_what_a_crashed_writer_has_left_is_collected_after_the_grace_time_and_not_before(
    cache: TieredCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CrashError(BaseException):
        pass

    def crash(*_: object) -> None:
        raise CrashError

    monkeypatch.setattr(Chain, "write_through", crash)
    with pytest.raises(CrashError):
        keep_file(cache, tmp_path / "a.wav")
    monkeypatch.undo()
    store = cache.parts.store
    store.write(store.path("default", "entries", "transcript", "ab", ".tmp-0123456789abcdef-1f2e"), b"half")
    spooled = cache.blobs.spool(SOUND[:100])

    early = collect(cache)
    assert (early.blobs, early.unfinished, early.local_files) == (0, 0, 0)
    late = collect(cache, now=time.time() + LATER)

    assert (late.blobs, late.unfinished) == (1, 1)
    assert spooled.local_path is None
    assert not list((cache.settings.home / "objects").rglob(".tmp-*"))
    assert cache.lookup("audio-preprocessing:a").outcome == "miss"
