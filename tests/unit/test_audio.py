"""Normalising: any container in, one form of audio out, and the same bytes for the same sound."""

import gc
import pickle
import subprocess
import sys
import tempfile
import wave
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from cache_blocks import CachedFile
from tasks.audio import AudioOptions, ChunkOptions, NormalisedAudio, normalise, split
from tasks.errors import DamagedMediaError, MediaError
from tasks.media.loudness import LoudnessMeter, k_weighting, limited
from tasks.media.wav import read_samples
from tests.unit.media_samples import RECORDINGS, SAMPLES, Pcm, encoded, noise, remote, silence, tone, video, wav

RATE = 16_000
ROOT = Path(__file__).parents[2]


@pytest.fixture
def scratch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go in this test."""
    home = tmp_path / "scratch"
    home.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    return home


def normalised(folder: Path, content: bytes, name: str = "recording.wav", **options: float) -> NormalisedAudio:
    source = folder / name
    source.write_bytes(content)
    return normalise(source, AudioOptions.model_validate(options))


def loudness(audio: NormalisedAudio) -> float:
    """What pyloudnorm, which shares no code with ours, says of the result."""
    return float(pyloudnorm.Meter(RATE, filter_class="DeMan").integrated_loudness(read_samples(audio.audio)))


def level_at(samples: np.ndarray, hertz: float) -> float:
    """Level of the strongest component within 50 Hz, in dB."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(samples.size)))
    frequencies = np.fft.rfftfreq(samples.size, 1 / RATE)
    return float(20 * np.log10(spectrum[np.abs(frequencies - hertz) < 50].max() + 1e-12))


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.name)
def test_every_recording_comes_out_in_one_form_and_equally_loud(recording: Path) -> None:
    result = normalise(recording, AudioOptions())

    with wave.open(str(result.audio.path), "rb") as audio:
        assert (audio.getframerate(), audio.getnchannels(), audio.getsampwidth()) == (RATE, 1, 2)
        assert audio.getnframes() == pytest.approx(result.duration_seconds * RATE)
    assert loudness(result) == pytest.approx(-23.0, abs=0.2)
    assert result.peak < 0.8913
    assert result.audio.name == f"{recording.stem}.wav"


def test_the_output_is_samples_and_nothing_else() -> None:
    """A tag, a date or an encoder's name in the file would give one sound two digests."""
    result = normalise(RECORDINGS[0], AudioOptions())

    assert result.audio.size == 44 + 2 * round(result.duration_seconds * RATE)


@pytest.mark.parametrize(
    "container, codec, rate, ending",
    [
        ("mp3", "libmp3lame", 44_100, "mp3"),
        ("ipod", "aac", 44_100, "m4a"),
        ("adts", "aac", 48_000, "aac"),
        ("ogg", "libopus", 48_000, "opus"),
        ("webm", "libopus", 48_000, "webm"),
        ("flac", "flac", 44_100, "flac"),
        ("wav", "pcm_s24le", 48_000, "wav"),
        ("wav", "pcm_alaw", 8_000, "wav"),
        ("w64", "pcm_f32le", 96_000, "w64"),
        ("aiff", "pcm_s16be", 22_050, "aiff"),
        ("caf", "pcm_s16le", 44_100, "caf"),
        ("asf", "wmav2", 44_100, "wma"),
        ("matroska", "pcm_s16le", 44_100, "mka"),
        ("mpegts", "mp2", 48_000, "ts"),
        ("flv", "aac", 44_100, "flv"),
        ("avi", "ac3", 48_000, "avi"),
    ],
)
def test_formats_that_people_have(tmp_path: Path, container: str, codec: str, rate: int, ending: str) -> None:
    content = encoded(tone(2.0, hertz=440, rate=rate), container, codec, rate=rate)

    result = normalised(tmp_path, content, f"tone.{ending}")

    assert result.original_duration_seconds == pytest.approx(2.0, abs=0.15)
    samples = read_samples(result.audio)
    assert level_at(samples, 440) > level_at(samples, 1_000) + 30


@pytest.mark.parametrize("container, ending", [("mp4", "mp4"), ("matroska", "mkv"), ("mpegts", "ts")])
def test_a_video_is_heard_without_being_looked_at(tmp_path: Path, container: str, ending: str) -> None:
    result = normalised(tmp_path, video(container, sound=tone(2.0)), f"talk.{ending}")

    assert result.original_duration_seconds == pytest.approx(2.0, abs=0.15)
    assert level_at(read_samples(result.audio), 440) > 30


def test_the_same_sound_in_another_container_is_the_same_audio(tmp_path: Path) -> None:
    original = SAMPLES / "austen-880.wav"
    with wave.open(str(original), "rb") as recording:
        samples = np.frombuffer(recording.readframes(recording.getnframes()), dtype="<i2")

    as_flac = normalised(tmp_path, encoded(samples, "flac", "flac"), "another name.flac")

    assert as_flac.audio.digest == normalise(original, AudioOptions()).audio.digest


def test_how_a_container_cuts_the_sound_does_not_matter(tmp_path: Path) -> None:
    """Resampling and mixing down carry state from packet to packet, and packets differ in length."""
    stereo = np.stack([noise(9.7, rate=44_100, seed=1), noise(9.7, rate=44_100, seed=2)], axis=1).reshape(-1)

    digests = {
        normalised(tmp_path, content, name).audio.digest
        for name, content in {
            "a.wav": wav(stereo, rate=44_100, channels=2),
            "b.flac": encoded(stereo, "flac", "flac", rate=44_100, channels=2),
            "c.mka": encoded(stereo, "matroska", "pcm_s16le", rate=44_100, channels=2),
        }.items()
    }

    assert len(digests) == 1


def test_a_remote_object_is_read_through_fsspec() -> None:
    local = SAMPLES / "austen-890.m4a"
    MemoryFileSystem().pipe_file("/meetings/austen-890.m4a", local.read_bytes())

    result = normalise(remote("memory://meetings/austen-890.m4a"), AudioOptions())

    assert result == normalise(local, AudioOptions())


def test_a_text_is_not_taken_for_a_path() -> None:
    """As an argument of a cached task it would count by its letters, and a changed file would be a stale hit."""
    with pytest.raises(TypeError, match="Path"):
        normalise(str(RECORDINGS[0]), AudioOptions())  # pyright: ignore[reportArgumentType]


def test_what_lies_above_8_khz_does_not_come_back_below(tmp_path: Path) -> None:
    """Resampling without a filter turns a 10 kHz tone into one of 6 kHz."""
    mixed = tone(3.0, hertz=440, rate=44_100, amplitude=0.1) + tone(3.0, hertz=10_000, rate=44_100, amplitude=0.5)

    samples = read_samples(normalised(tmp_path, wav(mixed, rate=44_100)).audio)

    assert level_at(samples, 6_000) < level_at(samples, 440) - 70


def test_the_meter_uses_the_filters_of_the_recommendation() -> None:
    """ITU-R BS.1770-4, tables 1 and 2, are for 48 kHz."""
    shelf, high_pass = k_weighting(48_000)

    assert shelf == pytest.approx(
        (1.53512485958697, -2.69169618940638, 1.19839281085285, 1.0, -1.69065929318241, 0.73248077421585), abs=1e-7
    )
    assert high_pass == pytest.approx((1.0, -2.0, 1.0, 1.0, -1.99004745483398, 0.99007225036621), abs=1e-7)


@pytest.mark.parametrize("piece", [997, 16_000, 200_000])
def test_measuring_piece_by_piece_agrees_with_pyloudnorm(piece: int) -> None:
    samples = np.concatenate([noise(4.0, amplitude=0.2), silence(3.0), noise(5.3, amplitude=0.02)])
    sound = samples.astype(np.float32) / np.float32(32_768)
    meter = LoudnessMeter(RATE)

    for start in range(0, sound.size, piece):
        meter.add(sound[start : start + piece])

    expected = pyloudnorm.Meter(RATE, filter_class="DeMan").integrated_loudness(sound)
    assert meter.integrated() == pytest.approx(expected, abs=0.05)


def test_the_meter_knows_a_sine() -> None:
    """BS.1770: a 997 Hz sine at full scale in one channel reads -3.01 LKFS."""
    meter = LoudnessMeter(48_000)
    time = np.arange(48_000 * 5) / 48_000
    meter.add(np.sin(2 * np.pi * 997 * time).astype(np.float32))

    assert meter.integrated() == pytest.approx(-3.01, abs=0.02)


def test_a_clip_shorter_than_a_block_of_the_measure_is_normalised(tmp_path: Path) -> None:
    result = normalised(tmp_path, wav(tone(0.15, hertz=1_000, amplitude=0.9)))

    assert result.loudness_lufs == pytest.approx(-3.9, abs=0.3)
    assert result.gain_db == pytest.approx(-23.0 + 3.9, abs=0.3)


def test_a_whisper_is_not_amplified_without_end(tmp_path: Path) -> None:
    result = normalised(tmp_path, wav(noise(2.0, amplitude=0.0005)))

    assert result.gain_db == 30.0


def test_no_sample_reaches_full_scale_however_loud_it_has_to_become(tmp_path: Path) -> None:
    """Soft speech with a bang in it: amplified for the speech, the bang would go to several times full scale."""
    speech = noise(6.0, amplitude=0.01).astype(np.int32)
    speech[RATE * 3 : RATE * 3 + 40] = 30_000

    result = normalised(tmp_path, wav(speech.astype(np.int16)), target_lufs=-16.0)

    assert result.gain_db > 10
    assert 0.5 < result.peak < 0.8913
    untouched = speech[: 2 * RATE] / 32_768 * 10 ** (result.gain_db / 20)
    np.testing.assert_allclose(read_samples(result.audio)[: 2 * RATE], untouched, atol=1e-3)


pieces_of_sound = st.lists(
    st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=700).map(np.array), min_size=1, max_size=8
)


@given(pieces_of_sound)
def test_the_limiter_keeps_every_sample_under_the_ceiling(pieces: list[np.ndarray]) -> None:
    out = np.concatenate(list(limited(iter(pieces), 0.9, RATE)))

    assert out.size == sum(piece.size for piece in pieces)
    assert np.abs(out).max() <= 0.9 + 1e-9


@given(pieces_of_sound)
def test_the_limiter_does_not_care_how_the_sound_is_cut(pieces: list[np.ndarray]) -> None:
    cut = np.concatenate(list(limited(iter(pieces), 0.9, RATE)))
    whole = np.concatenate(list(limited(iter([np.concatenate(pieces)]), 0.9, RATE)))

    np.testing.assert_allclose(cut, whole, atol=1e-9)


def test_the_limiter_leaves_alone_what_is_not_too_loud() -> None:
    sound = np.sin(np.arange(RATE) / 20) * 0.5

    assert np.array_equal(np.concatenate(list(limited(iter([sound]), 0.9, RATE))), sound)


def test_silence_at_both_ends_is_cut_and_accounted_for(tmp_path: Path) -> None:
    recording = np.concatenate([silence(1.0), tone(2.0), silence(0.5), tone(1.0), silence(1.5)])

    result = normalised(tmp_path, wav(recording), keep_silence_seconds=0.2)

    assert result.trimmed_leading_seconds == pytest.approx(0.8, abs=0.03)
    assert result.trimmed_trailing_seconds == pytest.approx(1.3, abs=0.03)
    assert result.duration_seconds == pytest.approx(3.9, abs=0.06)
    assert result.original_duration_seconds == 6.0
    assert result.duration_seconds == pytest.approx(
        result.original_duration_seconds - result.trimmed_leading_seconds - result.trimmed_trailing_seconds
    )


def test_hiss_and_an_offset_are_silence_and_a_click_is_no_beginning(tmp_path: Path) -> None:
    recording = np.concatenate([noise(2.0, amplitude=0.001), tone(2.0), noise(1.0, amplitude=0.001, seed=2)]) + 900
    recording[RATE // 2 : RATE // 2 + 30] = 20_000

    result = normalised(tmp_path, wav(recording.astype(np.int16)), keep_silence_seconds=0.0)

    assert result.trimmed_leading_seconds == pytest.approx(2.0, abs=0.05)
    assert result.trimmed_trailing_seconds == pytest.approx(1.0, abs=0.05)


def test_a_silent_recording_has_nothing_left(tmp_path: Path) -> None:
    result = normalised(tmp_path, wav(silence(2.0)))

    assert result.duration_seconds == 0
    assert result.original_duration_seconds == 2.0
    assert result.loudness_lufs is None
    assert read_samples(result.audio).size == 0


def test_trimming_can_be_left_out(tmp_path: Path) -> None:
    recording = np.concatenate([silence(1.0), tone(1.0)])

    assert normalised(tmp_path, wav(recording), trim_silence=False).duration_seconds == 2.0


def test_a_scratch_in_a_long_recording_costs_the_scratch_only(tmp_path: Path) -> None:
    content = bytearray(encoded(tone(20.0, rate=44_100), "mp3", "libmp3lame", rate=44_100))
    middle = len(content) // 2
    content[middle : middle + 300] = bytes(300)

    assert normalised(tmp_path, bytes(content), "tape.mp3").duration_seconds == pytest.approx(20.0, abs=0.3)


PEAK_MEMORY = """
import sys
from pathlib import Path
from types import SimpleNamespace
from tasks.media.normalise import normalise
from tests.unit.media_samples import peak_kilobytes
options = SimpleNamespace(target_lufs=-23.0, max_gain_db=30.0, ceiling_dbfs=-1.0, trim_silence=True, \
silence_below_lu=30.0, keep_silence_seconds=0.2, max_duration_seconds=1e6, max_decoded_bytes=10**12)
measured, _ = normalise(Path(sys.argv[1]), Path(sys.argv[2]), options)
print(measured.samples // 16000, peak_kilobytes())
"""


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    """Ten minutes of CD audio are 106 MB; what they cost more than half a minute may be a tenth of that."""
    second = noise(1.0, rate=88_200).tobytes()
    peaks: dict[int, int] = {}
    for seconds in (30, 600):
        source = tmp_path / f"{seconds}.wav"
        with wave.open(str(source), "wb") as recording:
            recording.setnchannels(2)
            recording.setsampwidth(2)
            recording.setframerate(44_100)
            for _ in range(seconds):
                recording.writeframes(second)
        answer = subprocess.run(
            [sys.executable, "-c", PEAK_MEMORY, source, tmp_path / "out.wav"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        )  # fmt: skip
        decoded, kilobytes = map(int, answer.stdout.split())
        assert decoded == seconds
        peaks[seconds] = kilobytes

    assert peaks[600] - peaks[30] < 12_000


def test_nothing_is_left_behind_once_the_result_is_gone(scratch_home: Path) -> None:
    result = normalise(RECORDINGS[0], AudioOptions())
    assert result.audio.path.is_relative_to(scratch_home)

    del result
    gc.collect()

    assert list(scratch_home.iterdir()) == []


def test_a_result_that_was_sent_to_another_process_is_still_there(scratch_home: Path) -> None:
    """A task in a process of its own sends its result and ends; the file must not end with it."""
    result = normalise(RECORDINGS[0], AudioOptions())
    sent = pickle.dumps(result)
    del result
    gc.collect()

    received = pickle.loads(sent)  # noqa: S301 - what process runners do

    assert read_samples(received.audio).size > 0
    assert received.audio.path.is_relative_to(scratch_home)


def test_nothing_is_left_behind_after_a_failure(tmp_path: Path, scratch_home: Path) -> None:
    with pytest.raises(MediaError):
        normalised(tmp_path, (SAMPLES / "austen-930.flac").read_bytes()[:40_000], "cut.flac")

    assert list(scratch_home.iterdir()) == []


@pytest.fixture
def speech_with_pauses(tmp_path: Path) -> NormalisedAudio:
    """Bursts of 1.5 s with pauses of 0.6 s between them, 41.4 s in all."""
    parts: list[Pcm] = []
    for number in range(20):
        parts += [tone(1.5, hertz=300 + 20 * number), silence(0.6)]
    return normalised(tmp_path, wav(np.concatenate(parts)), keep_silence_seconds=0.0)


def test_chunks_are_cut_in_pauses_and_are_the_whole_together(speech_with_pauses: NormalisedAudio) -> None:
    chunks = split(speech_with_pauses.audio, ChunkOptions(max_seconds=10))

    whole = read_samples(speech_with_pauses.audio)
    assert np.array_equal(np.concatenate([read_samples(chunk.audio) for chunk in chunks]), whole)
    assert len(chunks) >= 5
    assert all(chunk.duration_seconds <= 10 for chunk in chunks)
    for chunk in chunks[1:]:
        edge = round(chunk.offset_seconds * RATE)
        assert np.abs(whole[edge - 800 : edge + 800]).max() < 0.001, "the cut lies in a pause"


def test_somebody_who_never_pauses_is_cut_all_the_same(tmp_path: Path) -> None:
    audio = normalised(tmp_path, wav(noise(25.0))).audio

    chunks = split(audio, ChunkOptions(max_seconds=10))

    assert sum(chunk.duration_seconds for chunk in chunks) == pytest.approx(25.0)
    assert all(5 <= chunk.duration_seconds <= 10 for chunk in chunks[:-1])


def test_audio_that_fits_is_one_chunk(speech_with_pauses: NormalisedAudio) -> None:
    (chunk,) = split(speech_with_pauses.audio, ChunkOptions(max_seconds=600))

    assert chunk.audio == speech_with_pauses.audio
    assert chunk.offset_seconds == 0


@pytest.mark.parametrize(
    "content", [wav(tone(1.0, rate=44_100), rate=44_100), b"no wave at all"], ids=["another rate", "another format"]
)
def test_chunks_are_cut_from_normalised_audio_only(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "raw.wav"
    source.write_bytes(content)

    with pytest.raises(DamagedMediaError, match=r"raw\.wav.*normalise"):
        split(CachedFile.from_path(source), ChunkOptions())
