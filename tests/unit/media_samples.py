"""Media files for tests: sound to encode in any container, and files that are broken in some 200 ways.

Everything is made from fixed seeds, so that a file that once found a bug is there again in the next run.
"""

from __future__ import annotations

import io
import itertools
import random
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

import av
import fsspec
import numpy as np
import numpy.typing as npt
from fsspec.core import OpenFile

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLES = Path(__file__).parents[2] / "samples"
RECORDINGS = tuple(sorted(path for path in SAMPLES.glob("austen-*") if path.is_file()))

Pcm = npt.NDArray[np.int16]
Named = tuple[str, bytes]


def peak_kilobytes() -> int:
    """Peak memory of this process. `resource.getrusage` would say its parent's, when that had been larger."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def remote(url: str) -> OpenFile:
    """An object in any store that fsspec knows."""
    return cast("OpenFile", fsspec.open(url, "rb"))


def tone(seconds: float, *, hertz: float = 440.0, rate: int = 16_000, amplitude: float = 0.2) -> Pcm:
    """A sine as PCM16."""
    time = np.arange(round(seconds * rate)) / rate
    return np.rint(32_767 * amplitude * np.sin(2 * np.pi * hertz * time)).astype(np.int16)


def silence(seconds: float, *, rate: int = 16_000) -> Pcm:
    return np.zeros(round(seconds * rate), dtype=np.int16)


def noise(seconds: float, *, rate: int = 16_000, amplitude: float = 0.1, seed: int = 1) -> Pcm:
    samples = np.random.default_rng(seed).standard_normal(round(seconds * rate)) * amplitude
    return np.rint(np.clip(samples, -1, 1) * 32_767).astype(np.int16)


def wav(samples: Pcm, *, rate: int = 16_000, channels: int = 1) -> bytes:
    """A WAV file; several channels are interleaved in ``samples``."""
    data = samples.astype("<i2").tobytes()
    return wav_header(len(data), rate=rate, channels=channels) + data


def wav_header(
    data_bytes: int,
    *,
    rate: int = 16_000,
    channels: int = 1,
    bits: int = 16,
    form: int = 1,
) -> bytes:
    """The 44 bytes before the samples, with whatever is asked for in them."""
    align = channels * bits // 8
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF", (36 + data_bytes) & 0xFFFFFFFF, b"WAVE", b"fmt ", 16, form,
        channels, rate, (rate * align) & 0xFFFFFFFF, align & 0xFFFF, bits, b"data", data_bytes & 0xFFFFFFFF,
    )  # fmt: skip


def encoded(samples: Pcm, container: str, codec: str, *, rate: int = 16_000, channels: int = 1) -> bytes:
    """The same samples in another container, by FFmpeg's encoders."""
    target = io.BytesIO()
    with av.open(target, "w", format=container, options={"fflags": "+bitexact"}) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono" if channels == 1 else "stereo")
        assert isinstance(stream, av.AudioStream)
        stream.codec_context.bit_rate = 64_000
        frame = av.AudioFrame.from_ndarray(
            samples.reshape(1, -1), format="s16", layout="mono" if channels == 1 else "stereo"
        )
        frame.sample_rate = rate
        # Encoders take frames of their own size and format.
        resampler = av.AudioResampler(stream.codec_context.format, stream.codec_context.layout, rate, frame_size=1024)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return target.getvalue()


def video(container: str, *, codec: str = "mpeg4", sound: Pcm | None = None, frames: int = 10) -> bytes:
    """A few grey pictures, with a track of sound or without."""
    target = io.BytesIO()
    with av.open(target, "w", format=container, options={"fflags": "+bitexact"}) as output:
        pictures = output.add_stream(codec, rate=10)
        assert isinstance(pictures, av.VideoStream)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 64, "yuv420p"
        track = None
        if sound is not None:
            track = output.add_stream("aac", rate=16_000, layout="mono")
            assert isinstance(track, av.AudioStream)
        for number in range(frames):
            picture = np.full((64, 64, 3), 20 * number, dtype=np.uint8)
            output.mux(pictures.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(pictures.encode(None))
        if sound is not None and track is not None:
            frame = av.AudioFrame.from_ndarray(sound.reshape(1, -1), format="s16", layout="mono")
            frame.sample_rate = 16_000
            resampler = av.AudioResampler("fltp", "mono", 16_000, frame_size=1024)
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                output.mux(track.encode(piece))
            output.mux(track.encode(None))
    return target.getvalue()


def malformed_media(directory: Path, count: int = 200) -> list[Path]:
    """Write ``count`` files that are no usable recording, no two alike, and return their paths.

    Names end in what people name such files, whatever the contents.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for number, (name, content) in enumerate(itertools.islice(_all(), count)):
        stem, _, ending = name.rpartition(".")
        path = directory / f"{number:03}-{stem}.{ending}"
        path.write_bytes(content)
        paths.append(path)
    return paths


def _all() -> Iterator[Named]:
    """Every kind of broken file; noise without end after them, for whoever asks for more."""
    yield from _nothing_in_it()
    yield from _not_media()
    yield from _playlists()
    yield from _wrong_wav()
    yield from _no_sound()
    yield from _hostile_structures()
    yield from _cut_headers()
    yield from _cut_bodies()
    yield from _flipped_headers()
    yield from _noise_after_magic()
    for number in itertools.count():
        yield (
            f"noise-{number}.{('mp3', 'wav', 'ogg', 'm4a')[number % 4]}",
            _noise_bytes(number, 64 + 512 * number),
        )


def _sources() -> dict[str, bytes]:
    """Intact files to break, by ending."""
    sources = {path.suffix[1:]: path.read_bytes() for path in RECORDINGS}
    speech_like = noise(2.0)
    sources["webm"] = encoded(speech_like.repeat(3), "webm", "libopus", rate=48_000)
    sources["mka"] = encoded(speech_like, "matroska", "pcm_s16le")
    sources["aiff"] = encoded(speech_like, "aiff", "pcm_s16be")
    return sources


def _nothing_in_it() -> Iterator[Named]:
    for ending in ("mp3", "wav", "m4a"):
        yield f"empty.{ending}", b""
    for value in (0x00, 0x0A, 0x52, 0xFF):
        yield f"one-byte-{value:02x}.mp3", bytes([value])
    for size in (2, 44, 512, 4096, 65_536, 1_000_000):
        yield f"zeros-{size}.wav", bytes(size)
    for size in (100, 20_000):
        yield f"ones-{size}.mp3", b"\xff" * size


def _not_media() -> Iterator[Named]:
    texts = {
        "letter.mp3": "Dear all,\n\nplease find the recording attached.\n" * 20,
        "page.wav": "<!doctype html><html><body><h1>404 Not Found</h1></body></html>\n",
        "answer.m4a": '{"error": {"code": 403, "message": "Access denied"}}',
        "table.flac": "name,size\naudio,12\n" * 50,
        "script.ogg": "#!/bin/sh\nexec cat /etc/hostname\n",
        "subtitles.wav": "1\n00:00:01,000 --> 00:00:02,000\nHello.\n\n",
        "captions.mp3": "WEBVTT\n\n00:01.000 --> 00:02.000\nHello.\n",
        "styled.mp3": "[Script Info]\nTitle: x\n\n[Events]\nDialogue: 0,0:00:01.00,0:00:02.00,,,0,0,0,,Hi\n",
        "lyrics.mp3": "[00:01.00]Hello\n[00:02.00]world\n",
        "metadata.m4a": ";FFMETADATA1\ntitle=x\n",
        "vector.wav": '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>',
        "pointer.wav": "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 95724\n",
        "umlauts.mp3": "Grüße aus Köln, 你好, привет\n" * 30,
    }
    yield from ((name, text.encode()) for name, text in texts.items())
    yield "wide.mp3", ("Sense and Sensibility\n" * 20).encode("utf-16")
    yield "picture.wav", _png()
    yield "photo.mp3", b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00\xff\xd9"
    yield (
        "moving.ogg",
        b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;",
    )
    yield "bitmap.flac", b"BM" + struct.pack("<IHHIIiiHH", 58, 0, 0, 54, 40, 1, 1, 1, 24) + bytes(28)
    yield "paper.m4a", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\ntrailer\n<<>>\n%%EOF\n"
    yield "office.wav", b"PK\x03\x04" + bytes(26) + b"word/document.xml"
    yield "packed.mp3", b"\x1f\x8b\x08\x00" + bytes(6) + _noise_bytes(1, 200)
    yield "program.wav", b"\x7fELF\x02\x01\x01" + bytes(57)
    yield "database.m4a", b"SQLite format 3\x00" + bytes(84)


def _playlists() -> Iterator[Named]:
    """Files that ask whoever opens them to read other files or addresses."""
    secret, address = "/etc/passwd", "http://127.0.0.1:9/secret.mp3"
    lists = {
        "hls-http.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\n{address}\n#EXT-X-ENDLIST\n",
        "hls-file.mp3": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        "hls-self.wav": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\nhls-self.wav\n#EXT-X-ENDLIST\n",
        "hls-nested.m4a": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nconcat:a.m3u8|b.m3u8\n",
        "hls-key.mp4": f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{address}"\n#EXTINF:1,\nx.ts\n',
        "concat.mp3": f"ffconcat version 1.0\nfile '{secret}'\n",
        "concat-bare.wav": "file 'austen-880.wav'\nfile 'austen-880.wav'\n",
        "list.m3u": f"{address}\n",
        "list.pls": f"[playlist]\nFile1={address}\nNumberOfEntries=1\n",
        "windows.asx": f'<asx version="3.0"><entry><ref href="{address}"/></entry></asx>',
        "dash.mp4": f'<?xml version="1.0"?><MPD><BaseURL>{address}</BaseURL></MPD>',
        "smooth.mp4": '<?xml version="1.0"?><SmoothStreamingMedia MajorVersion="2"/>',
        "smil.wav": f'<smil><body><audio src="{address}"/></body></smil>',
        "session.sdp": "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\nm=audio 9 RTP/AVP 0\r\n",
        "reference.wmv": f"[Reference]\r\nRef1={address}\r\n",
        "real.ram": "rtsp://127.0.0.1:9/a.rm\n",
    }
    yield from ((name, text.encode()) for name, text in lists.items())


def _wrong_wav() -> Iterator[Named]:
    """Headers that promise what no file holds."""
    sound = tone(0.5).tobytes()
    size = len(sound)
    headers = {
        "no-samples": wav_header(0),
        "rate-zero": wav_header(size, rate=0) + sound,
        "rate-one": wav_header(size, rate=1) + sound,
        "rate-huge": wav_header(size, rate=0x7FFFFFFF) + sound,
        "rate-largest": wav_header(size, rate=0xFFFFFFFF) + sound,
        "rate-2-mhz": wav_header(size, rate=2_000_000) + sound,
        "channels-zero": wav_header(size, channels=0) + sound,
        "channels-65535": wav_header(size, channels=0xFFFF) + sound,
        "channels-255": wav_header(size, channels=255) + sound,
        "bits-zero": wav_header(size, bits=0) + sound,
        "bits-4096": wav_header(size, bits=4096) + sound,
        "codec-unknown": wav_header(size, form=0x7777) + sound,
        "promises-1-gb": wav_header(1_000_000_000) + sound,
        "promises-one-second": wav_header(32_000) + sound,
        "no-format": b"RIFF" + struct.pack("<I", 20 + size) + b"WAVEdata" + struct.pack("<I", size) + sound,
        "format-huge": b"RIFF" + struct.pack("<I", 60) + b"WAVEfmt " + struct.pack("<I", 0x7FFFFFF0) + bytes(48),
        "chunk-of-4-gb": b"RIFF" + struct.pack("<I", 60) + b"WAVELIST" + struct.pack("<I", 0xFFFFFFFE) + bytes(48),
        "riff-only": b"RIFF" + struct.pack("<I", 4) + b"WAVE",
    }
    yield from ((f"{name}.wav", content) for name, content in headers.items())


def _no_sound() -> Iterator[Named]:
    yield "tag-only.mp3", b"ID3\x04\x00\x00\x00\x00\x00\x0aTIT2" + bytes(6)
    yield "tag-long.mp3", b"ID3\x03\x00\x00\x00\x01\x00\x00" + bytes(16_384)
    yield "tag-promises.mp3", b"ID3\x03\x00\x00\x7f\x7f\x7f\x7f" + bytes(100)
    yield "tag-at-end.mp3", b"TAG" + b"A title".ljust(125, b"\0")
    yield (
        "tag-picture.mp3",
        b"ID3\x03\x00\x00\x00\x00\x02\x00APIC" + struct.pack(">IH", 0x100, 0) + _png().ljust(0xF6, b"\0"),
    )
    for container, ending in (
        ("mp4", "mp4"),
        ("mp4", "m4a"),
        ("matroska", "mkv"),
        ("avi", "avi"),
        ("mpegts", "ts"),
        ("flv", "flv"),
    ):
        yield (
            f"pictures-only.{ending}",
            video(container, codec="flv" if container == "flv" else "mpeg4", frames=8 + len(ending)),
        )


def _hostile_structures() -> Iterator[Named]:
    deep = b""
    for _ in range(2_000):
        deep = struct.pack(">I4s", len(deep) + 8, b"moov") + deep
    head = struct.pack(">I4s4sI4s", 20, b"ftyp", b"M4A ", 0, b"isom")
    yield "boxes-in-boxes.m4a", head + deep
    yield "box-of-2-to-63.m4a", head + struct.pack(">I4sQ", 1, b"moov", 2**63 - 1) + bytes(64)
    yield "box-too-small.m4a", head + struct.pack(">I4s", 7, b"moov") + bytes(64)
    yield "no-index.m4a", head + struct.pack(">I4s", 4104, b"mdat") + bytes(4096)
    table = struct.pack(">I4sIII", 20, b"stsz", 0, 1, 0xFFFFFFFF)
    for kind in (b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        table = struct.pack(">I4s", len(table) + 8, kind) + table
    yield "four-billion-samples.m4a", head + table
    ebml = b"\x1aE\xdf\xa3\x84\x42\x82\x81w"
    yield "element-of-2-to-56.mka", ebml + b"\x18\x53\x80\x67\x01" + b"\xff" * 6 + b"\xfe" + bytes(64)
    yield "segment-empty.mka", b"\x1aE\xdf\xa3\x8b\x42\x82\x88matroska\x18\x53\x80\x67\x80"
    yield (
        "flac-declares-a-day.flac",
        b"fLaC\x80\x00\x00\x22"
        + struct.pack(">HH", 4096, 4096)
        + bytes(6)
        + bytes([0x0A, 0xC4, 0x42, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF])
        + bytes(16),
    )
    yield "flac-metadata-16-mb.flac", b"fLaC\x04\xff\xff\xff" + bytes(64)
    yield "ogg-page-of-nothing.ogg", b"OggS\x00\x02" + bytes(20) + b"\x00"
    yield "ogg-pages-without-end.ogg", (b"OggS\x00\x02" + bytes(20) + b"\x01\x00") * 5_000
    yield "ogg-opus-255-channels.ogg", _ogg_page(b"OpusHead\x01\xff\x00\x00\x80\xbb\x00\x00\x00\x00\x00")
    yield "au-without-end.au", b".snd" + struct.pack(">IIIII", 24, 0xFFFFFFFF, 3, 0xFFFFFFFF, 0xFFFFFFFF)
    yield (
        "aiff-rate-infinite.aiff",
        b"FORM\x00\x00\x00\x2eAIFFCOMM\x00\x00\x00\x12\x00\x01\x00\x00\x00\x10\x00\x10\x7f\xff"
        + bytes(8)
        + b"SSND\x00\x00\x00\x08"
        + bytes(8),
    )


def _cut_headers() -> Iterator[Named]:
    for ending, content in _sources().items():
        for size in (4, 12, 20, 36, 64):
            yield f"header-{size}.{ending}", content[:size]


def _cut_bodies() -> Iterator[Named]:
    for ending, content in _sources().items():
        for percent in (30, 60, 90):
            yield f"cut-{percent}-percent.{ending}", content[: len(content) * percent // 100]


def _flipped_headers() -> Iterator[Named]:
    """One byte of the magic, or of a length that all that follows hangs on, turned round."""
    places = {
        "wav": (0, 3, 8, 12), "m4a": (3,), "ogg": (0, 2),
        "webm": (0, 2), "mka": (1, 4), "aiff": (0, 9),
    }  # fmt: skip
    sources = _sources()
    for ending, offsets in places.items():
        for offset in offsets:
            broken = bytearray(sources[ending])
            broken[offset] ^= 0xFF
            yield f"flipped-{offset}.{ending}", bytes(broken)


def _noise_after_magic() -> Iterator[Named]:
    magics = {
        "wav": b"RIFF\x24\x08\x00\x00WAVEfmt ", "flac": b"fLaC", "ogg": b"OggS\x00\x02",
        "mp3": b"ID3\x03\x00",
        "m4a": b"\x00\x00\x00\x20ftypM4A ", "webm": b"\x1aE\xdf\xa3", "aiff": b"FORM\x00\x00\x08\x00AIFF",
        "amr": b"#!AMR\n\xff", "avi": b"RIFF\x00\x08\x00\x00AVI LIST", "wma": b"0&\xb2u\x8ef\xcf\x11",
        "caf": b"caff\x00\x01\x00\x00", "flv": b"FLV\x01\x05", "au": b".snd\x00\x00",
    }  # fmt: skip
    for seed, (ending, magic) in enumerate(magics.items()):
        yield f"magic-then-noise.{ending}", magic + _noise_bytes(seed, 2_000)


def _noise_bytes(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311 - the same in every run is what is wanted


def _png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(4))) + chunk(b"IEND", b"")


def _ogg_page(packet: bytes) -> bytes:
    return b"OggS\x00\x02" + bytes(20) + bytes([1, len(packet)]) + packet
