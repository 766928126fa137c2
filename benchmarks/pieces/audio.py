"""Normalising a recording against ffmpeg: decode, mix down, resample, measure the loudness, amplify, limit, write.

Both are processes of their own, pinned to one and the same processor, so that both have one thread's worth of it:
ffmpeg runs its stages side by side otherwise, and we do not. Ours pays for starting Python and importing numpy and
PyAV, and cuts silence besides. ffmpeg goes the fastest way to the same file that we know of: it decodes once, measures
at 16 kHz mono, keeps the samples in a temporary file as we do, and amplifies and limits those. Its own way to normalise
by a measured loudness, decoding twice, is in the detail.
"""

from __future__ import annotations

import importlib
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import orjson

from benchmarks.measuring import Bar, Bench, Timing, interleaved, milliseconds, ratio

ORDER: Final = 8

_ROOT: Final = Path(__file__).parents[2]
_TEN_MINUTES: Final = 600
_HOUR: Final = 3600
_AS_OURS: Final = "aformat=sample_fmts=flt:sample_rates=16000:channel_layouts=mono"
_LIMITER: Final = "alimiter=limit=0.891:level=0"
_OURS: Final = """
import sys
from pathlib import Path
import orjson
from tasks.media.normalise import normalise
from tasks.media.options import AudioOptions

def peak_megabytes():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024

imported = peak_megabytes()
measured, _ = normalise(Path(sys.argv[1]), Path(sys.argv[2]), AudioOptions())
said = {"lufs": measured.lufs, "seconds": measured.samples / 16_000, "imported": imported, "peak": peak_megabytes()}
sys.stdout.buffer.write(orjson.dumps(said))
"""


def measure(bench: Bench) -> list[Bar]:
    """Return the time against ffmpeg's, and the memory of ten minutes and of an hour."""
    ffmpeg = _Ffmpeg(_program(), bench.folder)
    seconds = bench.rounds(_TEN_MINUTES, least=10)
    recording, long = ffmpeg.recording(seconds), ffmpeg.recording(seconds * _HOUR // _TEN_MINUTES)
    bench.note(f"{seconds} s of MP3, 44.1 kHz stereo, through ours and ffmpeg's chain")
    contestants = {"ours": partial(_ours, recording), "ffmpeg": partial(ffmpeg.once, recording)}
    contestants["ffmpeg, decoding twice"] = partial(ffmpeg.twice, recording)
    with _on_one_processor():
        _check_equal(_ours(recording), ffmpeg.once(recording))
        timings = interleaved(contestants, bench.rounds(9))
        cpu = {name: _processor_seconds(work) for name, work in contestants.items()}
    bench.note(f"{seconds * _HOUR // _TEN_MINUTES} s through ours, for its memory")
    return [_time_bar(timings, cpu, seconds), *_memory_bars(_ours(recording), _ours(long))]


def _time_bar(timings: dict[str, Timing], cpu: dict[str, float], seconds: int) -> Bar:
    found = ratio(timings["ours"], timings["ffmpeg"])
    detail: dict[str, Any] = found.spread | {
        "milliseconds": milliseconds(timings),
        "processor_seconds": cpu,
        "against_ffmpeg_decoding_twice": ratio(timings["ours"], timings["ffmpeg, decoding twice"]).median,
        "recording_seconds": seconds,
        "rounds": len(timings["ours"].samples),
        "note": "Both are pinned to one processor; ours starts Python and imports its libraries within the time.",
    }
    return Bar("10 minutes of MP3 normalised, against ffmpeg", found.median, 1.5, "lower", detail=detail)


def _memory_bars(short: _Normalised, long: _Normalised) -> list[Bar]:
    detail = {
        "imported_mb": short.imported,
        "above_imported_mb": short.peak - short.imported,
        "note": "The most that the whole process held at any time, Python and libraries included.",
    }
    growth = {"ten_minutes_mb": short.peak, "hour_mb": long.peak, "recording_seconds": long.seconds}
    return [
        Bar("Memory for 10 minutes of audio", short.peak, 120, "lower", "MB", detail),
        Bar("Memory for an hour of audio", long.peak, 120, "lower", "MB", detail | {"imported_mb": long.imported}),
        Bar("Memory for an hour against 10 minutes", long.peak / short.peak, 1.1, "lower", detail=growth),
    ]


@dataclass(frozen=True)
class _Normalised:
    """What a normalised recording was: its loudness and length; and for ours, megabytes of memory."""

    lufs: float
    seconds: float
    imported: float = 0.0
    peak: float = 0.0


def _ours(recording: Path) -> _Normalised:
    command = [sys.executable, "-c", _OURS, str(recording), str(recording.with_suffix(".ours.wav"))]
    done = subprocess.run(command, cwd=_ROOT, check=True, capture_output=True)
    return _Normalised(**orjson.loads(done.stdout))


@dataclass(frozen=True)
class _Ffmpeg:
    """ffmpeg's program, and the folder that its files go to."""

    program: str
    folder: Path

    def once(self, recording: Path) -> _Normalised:
        """Decode once, measure, keep; then amplify what was kept."""
        kept = self.folder / "kept.wav"
        said = self._run("-i", recording, "-af", f"{_AS_OURS},ebur128=framelog=quiet", "-c:a", "pcm_f32le", kept)
        return self._apply(kept, said, "")

    def twice(self, recording: Path) -> _Normalised:
        """Decode and measure; decode again and amplify."""
        said = self._run("-i", recording, "-af", "ebur128=framelog=quiet", "-f", "null", "-")
        return self._apply(recording, said, f"{_AS_OURS},")

    def recording(self, seconds: int) -> Path:
        """Return speech as stereo MP3 at 44.1 kHz and 128 kbit/s: the samples again and again, one side delayed."""
        speech, made = self.folder / "speech.wav", self.folder / f"{seconds}.mp3"
        samples = sorted((_ROOT / "samples").glob("austen-*"))
        inputs = [word for sample in samples for word in ("-i", sample)]
        stereo = f"concat=n={len(samples)}:v=0:a=1,aformat=sample_rates=44100:channel_layouts=stereo,adelay=0|9"
        self._run(*inputs, "-filter_complex", stereo, speech)
        self._run("-stream_loop", "-1", "-i", speech, "-t", str(seconds), "-c:a", "libmp3lame", "-b:a", "128k", made)
        return made

    def _apply(self, source: Path, said: str, prepare: str) -> _Normalised:
        lufs = float(re.findall(r"I:\s+(-?[\d.]+) LUFS", said)[-1])
        made = self.folder / "ffmpeg.wav"
        amplify = f"{prepare}volume={-23 - lufs:.2f}dB,{_LIMITER}"
        self._run("-i", source, "-af", amplify, "-ar", "16000", "-c:a", "pcm_s16le", made)
        return _Normalised(lufs, (made.stat().st_size - 44) / 2 / 16_000)

    def _run(self, *arguments: str | Path) -> str:
        command = [self.program, "-hide_banner", "-nostats", "-nostdin", "-y", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def _program() -> str:
    """Return ffmpeg as it is installed, or as the benchmark environment brings it."""
    if found := shutil.which("ffmpeg"):
        return found
    return cast("str", importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe())


def _check_equal(ours: _Normalised, theirs: _Normalised) -> None:
    """Make sure that both did the same work."""
    assert abs(ours.lufs - theirs.lufs) < 0.2, (ours, theirs)
    assert abs(ours.seconds - theirs.seconds) < 0.1, (ours, theirs)


@contextmanager
def _on_one_processor() -> Generator[None]:
    """Leave this process, and those that it starts, one processor."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _processor_seconds(work: Any) -> float:
    """Return how long the processes that this starts keep a processor busy."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 3)
