"""Streaming decoder: any media file to mono float samples at 16 kHz, in constant memory.

The file is hostile until shown otherwise. It is handed to FFmpeg's libraries (through PyAV) as a stream of
bytes and never as a name; containers that refer to other files are not on the list of formats, and every
protocol is refused. Video is never decoded: only audio decoders are enabled.
"""

from __future__ import annotations

import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Never, cast

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.codec.codec import UnknownCodecError

from tasks.errors import (
    DamagedMediaError,
    MediaTooLongError,
    NoAudioError,
    TruncatedMediaError,
)
from tasks.media.inspect import check_complete, not_media, refuse_text
from tasks.media.wav import SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

    from tasks.media.source import BoundedReader

Samples = npt.NDArray[np.float32]
"""One-dimensional samples, full scale at 1.0."""

_FORMATS: Final = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,gsm,matroska,mlp,mov,mp3,mpc,mpc8,mpeg,mpegts,"
    "ogg,rm,tak,truehd,tta,voc,w64,wav,webm,wv,xwma"
)
_RATES: Final = range(1_000, 768_001)
"""Hz. A resampler's filter grows with the ratio: an absurd rate would allocate gigabytes."""
_MOST_CHANNELS: Final = 64
_MOST_STREAMS: Final = 64
_READ_BYTES: Final = 256 * 1024
_PIECE_SAMPLES: Final = SAMPLE_RATE
"""Some decoders give 26 ms at a time; turning each into an array of its own would cost as much as the decoding."""
_DAMAGE_ALLOWED: Final = 0.05
"""Share of packets that may fail to decode. Scratched recordings are common."""
_SHORTFALL_ALLOWED: Final = 0.02
_SHORTFALL_SECONDS: Final = 0.25
"""Encoder delay and rounding explain a shorter duration; by more than both of these, sound is missing."""


def decode(reader: BoundedReader, *, max_seconds: float, max_bytes: int) -> Iterator[Samples]:
    """Yield the first audio stream as mono at `SAMPLE_RATE`, in pieces of up to a second.

    Channels are mixed down and resampled by libswresample, band-limited.

    Args:
        reader: The opened file.
        max_seconds: Longest duration to decode.
        max_bytes: Most bytes of decoded samples, before mixing down: what a bomb would cost.

    Raises:
        MediaError: What is wrong with the file; `tasks.errors` has the kinds. Pieces may have come before.
    """
    refuse_text(reader)
    check_complete(reader)
    with _opened(reader) as container:
        stream = _audio_stream(container, reader.file_name)
        declared = _declared_seconds(container, stream, reader)
        samples = 0
        for piece in _resampled(_frames(container, stream, reader, max_bytes), reader.file_name):
            samples += piece.size
            if samples > max_seconds * SAMPLE_RATE:
                raise MediaTooLongError(reader.file_name, f"there is more than {max_seconds:g} s of sound, the limit")
            yield piece
    seconds = samples / SAMPLE_RATE
    if declared - seconds > max(_SHORTFALL_SECONDS, _SHORTFALL_ALLOWED * declared):
        raise TruncatedMediaError(
            reader.file_name, f"{declared:.1f} s of sound are declared, {seconds:.1f} s are there"
        )
    if samples == 0:
        raise NoAudioError(reader.file_name, "its audio stream has no sample of sound")


@contextmanager
def _opened(reader: BoundedReader) -> Generator[InputContainer]:
    options = {
        "format_whitelist": _FORMATS,
        "codec_whitelist": _audio_decoders(),
        "protocol_whitelist": "none",
        "max_streams": str(_MOST_STREAMS),
    }
    try:
        container = av.open(
            reader,
            "r",
            options=options,
            metadata_errors="replace",
            buffer_size=_READ_BYTES,
            io_open=functools.partial(_refuse_other_file, reader.file_name),
        )
    except av.error.FFmpegError as error:
        raise not_media(reader) from error
    with container:
        yield container


def _refuse_other_file(name: str, url: str, *_: Any) -> Never:
    raise DamagedMediaError(name, f"it refers to another file or address ({url[:80]!r}), which is not followed")


@functools.cache
def _audio_decoders() -> str:
    """Return the names of all audio decoders, so that hostile video is not even probed."""
    names: list[str] = []
    for name in sorted(av.codecs_available):
        try:
            if av.Codec(name, "r").type == "audio":
                names.append(name)
        except UnknownCodecError:  # an encoder only
            continue
    return ",".join(names)


def _audio_stream(container: InputContainer, name: str) -> AudioStream:
    if not container.streams.audio:
        kinds = sorted({stream.type or "unknown" for stream in container.streams})
        what = f"only {' and '.join(kinds)}" if kinds else "no stream at all"
        raise NoAudioError(name, f"the {container.format.name} container has {what}")
    stream = container.streams.audio[0]
    if stream.codec_context is None:  # pyright: ignore[reportUnnecessaryComparison] - None when no decoder is known
        raise NoAudioError(name, "no decoder is known for its audio stream")
    return stream


def _declared_seconds(container: InputContainer, stream: AudioStream, reader: BoundedReader) -> float:
    """Return the duration that the file itself declares, 0 when it declares none that can be relied on.

    For other formats FFmpeg estimates a duration from the bit rate, which says nothing about what is missing.
    """
    trusted = {"flac", "mov,mp4,m4a,3gp,3g2,mj2"}
    if container.format.name == "mp3" and _has_xing_header(reader):
        trusted.add("mp3")
    if container.format.name not in trusted or stream.duration is None or stream.time_base is None:
        return 0.0
    return float(stream.duration * stream.time_base)


def _has_xing_header(reader: BoundedReader) -> bool:
    """Whether the first frame after an ID3v2 tag (sizes of 7 bits a byte) carries the number of frames."""
    head = reader.at(0, 10)
    start = 0
    if head[:3] == b"ID3":
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=False))
    first_frame = reader.at(start, 2048)
    return b"Xing" in first_frame or b"Info" in first_frame


def _frames(
    container: InputContainer, stream: AudioStream, reader: BoundedReader, max_bytes: int
) -> Iterator[AudioFrame]:
    """Yield decoded frames; single packets that fail are skipped, too many of them are an error."""
    packets = failed = decoded_bytes = 0
    try:
        for packet in container.demux(stream):
            packets += 1
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                failed += 1
                continue
            for frame in frames:
                _check_frame(frame, reader.file_name)
                decoded_bytes += frame.samples * frame.layout.nb_channels * frame.format.bytes
                if decoded_bytes > max_bytes:
                    raise MediaTooLongError(reader.file_name, f"it decodes to more than {max_bytes:,} bytes, the limit")
                yield frame
    except av.error.FFmpegError as error:
        raise DamagedMediaError(reader.file_name, f"reading stops after {packets} packets: {error.strerror}") from error
    if failed > max(1, _DAMAGE_ALLOWED * packets):
        raise DamagedMediaError(reader.file_name, f"{failed} of {packets} packets cannot be decoded")


def _check_frame(frame: AudioFrame, name: str) -> None:
    if frame.sample_rate not in _RATES:
        raise DamagedMediaError(name, f"a sample rate of {frame.sample_rate} Hz makes no sense")
    if not 1 <= frame.layout.nb_channels <= _MOST_CHANNELS:
        raise DamagedMediaError(name, f"{frame.layout.nb_channels} channels make no sense")


def _resampled(frames: Iterator[AudioFrame], name: str) -> Iterator[Samples]:
    """Mix down and resample; a stream may change its rate or layout on the way, as radio recordings do."""
    resampler: av.AudioResampler | None = None
    before: tuple[int, str, str] | None = None
    try:
        for frame in frames:
            now = (frame.sample_rate, frame.layout.name, frame.format.name)
            if resampler is None or now != before:
                if resampler is not None:
                    yield from map(_samples, resampler.resample(None))
                resampler, before = av.AudioResampler("flt", "mono", SAMPLE_RATE, _PIECE_SAMPLES), now
            frame.pts = None  # gaps in time stamps are not silence that was recorded
            yield from map(_samples, resampler.resample(frame))
        if resampler is not None:
            yield from map(_samples, resampler.resample(None))
    except av.error.FFmpegError as error:
        raise DamagedMediaError(name, f"its sound cannot be resampled: {error.strerror}") from error


def _samples(frame: AudioFrame) -> Samples:
    return cast("Samples", frame.to_ndarray().reshape(-1))
