"""Bad files: each is refused with its name and a reason, and none crashes, hangs or reads anything else."""

import concurrent.futures
import multiprocessing
import os
import pickle
import socket
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tasks import errors
from tasks.audio import AudioOptions, normalise
from tasks.errors import (
    DamagedMediaError,
    EmptyMediaError,
    MediaError,
    MediaNotFoundError,
    MediaPermissionError,
    MediaTooLongError,
    NoAudioError,
    NotMediaError,
    PlaylistError,
    TruncatedMediaError,
)
from tasks.media import decode
from tasks.media.source import BoundedReader, open_media
from tests.unit.media_samples import (
    RECORDINGS,
    encoded,
    malformed_media,
    noise,
    peak_kilobytes,
    remote,
    tone,
    video,
    wav,
    wav_header,
)

OPTIONS = AudioOptions()


def refusal(path: Path, options: AudioOptions = OPTIONS) -> MediaError:
    with pytest.raises(MediaError) as caught:
        normalise(path, options)
    assert caught.value.name == path.name
    assert path.name in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "name, content, kind, reason",
    [
        ("empty.mp3", b"", EmptyMediaError, "empty"),
        ("letter.mp3", b"Dear all,\nfind it attached.\n", NotMediaError, "it is text"),
        ("photo.wav", b"\xff\xd8\xff\xe0\x00\x10JFIF", NotMediaError, "JPEG image"),
        ("zeros.flac", bytes(5_000), NotMediaError, "zero bytes"),
        ("list.m3u8", b"#EXTM3U\nhttp://localhost/a.mp3\n", PlaylistError, "not followed"),
        ("film.mp4", video("mp4"), NoAudioError, "only video"),
        ("header.wav", wav_header(0), NoAudioError, "no sample"),
        ("fast.wav", wav(tone(0.5), rate=2**31 - 1), DamagedMediaError, "2147483647 Hz"),
        ("wide.wav", wav(tone(0.5), channels=200), DamagedMediaError, "200 channels"),
        ("flac.flac", b"fLaC" + bytes(99), DamagedMediaError, "begins as FLAC"),
    ],
)
def test_the_reason_is_what_is_wrong(
    tmp_path: Path, name: str, content: bytes, kind: type[MediaError], reason: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    error = refusal(path)

    assert type(error) is kind
    assert reason in str(error)


@pytest.mark.parametrize("percent", [5, 50, 95])
@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.name)
def test_an_unfinished_copy_is_not_taken_for_the_recording(tmp_path: Path, recording: Path, percent: int) -> None:
    content = recording.read_bytes()
    path = tmp_path / recording.name
    path.write_bytes(content[: len(content) * percent // 100])

    assert isinstance(refusal(path), TruncatedMediaError)


@pytest.mark.parametrize(
    "container, codec, rate",
    [("webm", "libopus", 48_000), ("matroska", "pcm_s16le", 16_000), ("aiff", "pcm_s16be", 16_000)],
)
def test_other_containers_say_how_long_they_are_as_well(tmp_path: Path, container: str, codec: str, rate: int) -> None:
    content = encoded(noise(2.0, rate=rate), container, codec, rate=rate)
    path = tmp_path / "recording"
    path.write_bytes(content[: len(content) * 2 // 3])

    assert isinstance(refusal(path), TruncatedMediaError)


@pytest.mark.parametrize("riff_size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wave_written_to_a_pipe_does_not_know_its_length_and_is_fine(tmp_path: Path, riff_size: int) -> None:
    content = bytearray(wav(tone(1.0)))
    for place in (4, 40):
        content[place : place + 4] = riff_size.to_bytes(4, "little")
    path = tmp_path / "piped.wav"
    path.write_bytes(content)

    assert normalise(path, OPTIONS).original_duration_seconds == (1.0 if riff_size else pytest.approx(1.0))


def test_a_missing_file_a_folder_and_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "folder.wav").mkdir()

    assert isinstance(refusal(tmp_path / "missing.wav"), MediaNotFoundError)
    assert "folder" in str(refusal(tmp_path / "folder.wav"))
    assert "pipe" in str(refusal(tmp_path / "pipe.wav")), "opening it would wait for a writer for ever"


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    path = tmp_path / "private.wav"
    path.write_bytes(wav(tone(1.0)))
    path.chmod(0)
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65_534)  # permissions mean nothing to root
    try:
        error = refusal(path)
    finally:
        if was_root:
            os.seteuid(0)

    assert isinstance(error, MediaPermissionError)


def test_a_remote_object_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a store whose credentials allow listing, but not reading."""

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "_open", forbidden)

    with pytest.raises(MediaPermissionError, match=r"meeting\.mp3: no permission"):
        normalise(remote("memory://bucket/meeting.mp3"), OPTIONS)


def test_a_recording_that_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / "day.wav"
    path.write_bytes(wav(tone(3.0)))

    assert "more than 2 s" in str(refusal(path, AudioOptions(max_duration_seconds=2)))
    assert isinstance(refusal(path, AudioOptions(max_decoded_bytes=50_000)), MediaTooLongError)


def test_a_small_file_that_unpacks_to_days_is_stopped(tmp_path: Path) -> None:
    """Silence in FLAC takes some bytes a second."""
    path = tmp_path / "bomb.flac"
    path.write_bytes(encoded(tone(600.0, amplitude=0.0), "flac", "flac"))

    assert path.stat().st_size < 200_000
    assert isinstance(refusal(path, AudioOptions(max_duration_seconds=60)), MediaTooLongError)


def test_a_reader_that_is_sent_round_in_circles_is_stopped(tmp_path: Path) -> None:
    path = tmp_path / "circles.m4a"
    path.write_bytes(bytes(20 * 1024 * 1024))

    def go_round(reader: BoundedReader) -> None:
        while True:
            reader.seek(0)
            reader.read()

    with open_media(path) as reader, pytest.raises(DamagedMediaError, match="circles"):
        go_round(reader)


def _let_pass(_reader: BoundedReader) -> None:
    """In place of the first check."""


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{url}\n",
        "ffconcat version 1.0\nfile '{url}'\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{url}</BaseURL></MPD>',
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nm=audio 9 RTP/AVP 0\r\n",
    ],
    ids=["hls", "hls-master", "concat", "dash", "sdp"],
)
def test_what_points_elsewhere_is_not_followed_even_past_the_first_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """The first bytes give a playlist away; without that check the lists of formats and protocols still hold."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        path = tmp_path / "list.mp3"
        path.write_text(text.format(url=f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"))

        assert isinstance(refusal(path), PlaylistError)
        monkeypatch.setattr(decode, "refuse_text", _let_pass)
        assert isinstance(refusal(path), NotMediaError)

        with pytest.raises(BlockingIOError):
            server.accept()


def _refuse_all(directory: Path, scratch: Path, count: int) -> tuple[list[tuple[str, str, str]], int]:
    """What a worker process says of each malformed file, and its peak memory in kilobytes."""
    tempfile.tempdir = str(scratch)
    answers: list[tuple[str, str, str]] = []
    for path in malformed_media(directory, count):
        try:
            normalise(path, OPTIONS)
        except MediaError as error:
            answers.append((path.name, type(error).__name__, str(error)))
        else:
            answers.append((path.name, "accepted", ""))
    return answers, peak_kilobytes()


def test_200_malformed_files_give_200_reasons(tmp_path: Path) -> None:
    """In a process of its own: a crash in a decoder would be a broken pool here, and not the end of the tests."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        answers, kilobytes = pool.submit(_refuse_all, tmp_path / "bad", scratch, 200).result()

    assert len({name for name, _, _ in answers}) == 200
    assert [name for name, kind, _ in answers if kind == "accepted"] == []
    assert all(message.startswith(f"{name}: ") and len(message) > len(name) + 12 for name, _, message in answers)
    kinds = Counter(kind for _, kind, _ in answers)
    assert set(kinds) == {
        "EmptyMediaError", "NotMediaError", "PlaylistError", "NoAudioError", "TruncatedMediaError", "DamagedMediaError",
    }  # fmt: skip
    assert kilobytes < 400_000
    assert list(scratch.iterdir()) == []


def test_malformed_files_are_the_same_in_every_run(tmp_path: Path) -> None:
    first, second = (malformed_media(tmp_path / name) for name in "ab")

    assert [path.name for path in first] == [path.name for path in second]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_errors_reach_other_processes_whole() -> None:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, MediaError):
            error = pickle.loads(pickle.dumps(kind("a.mp3", "the reason")))  # noqa: S301 - what process pools do
            assert type(error) is kind
            assert str(error) == f"a.mp3: {kind.reason}: the reason"
