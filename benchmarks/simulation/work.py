"""What a night's keys stand for: values as the pipeline makes them, their entries, and whether one is right."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import orjson

from benchmarks.payloads import transcript
from benchmarks.simulation.night import AUDIO, ENHANCEMENTS, KINDS, TRANSCRIPTS, Night
from cache_blocks import AI_ENHANCEMENT, AUDIO_PREPROCESSING, TRANSCRIPT, CachedFile, CacheKind, codec, plan
from cache_blocks.calls import Call
from cache_blocks.entry import Entry, check_tags
from cache_blocks.events import Origin
from cache_blocks.fingerprint import digest_bytes
from cache_blocks.values import codec_of
from tasks.transcript import Transcript

_OF_KIND: Final[tuple[CacheKind, ...]] = (TRANSCRIPT, AI_ENHANCEMENT, AUDIO_PREPROCESSING)
_TASKS: Final = ("transcribe", "enhance", "normalise_audio")
_DIFFERENT: Final = 8
"""Texts of each size; entries differ by their keys anyway."""
_BLOB_BYTES: Final = 2_048
_FENCE: Final = 1
_COMPUTE_SECONDS: Final = 12.5
FLOW: Final = "batch-transcription"


class Work:
    """The calls, values and entries of a night's numbers.

    Args:
        night: Which number is of which kind and size.
        namespace: Environment of the entries.
        now: When the entries were computed, in seconds since the epoch.
    """

    def __init__(self, night: Night, namespace: str, now: float) -> None:
        self._night = night
        self._namespace = namespace
        self._now = now
        self._seed = night.shape.seed
        self._recordings = max(night.shape.keys // len(KINDS), 1)

    def call(self, number: int) -> Call:
        """Return the call that asks for a number."""
        kind = self._night.kind(number)
        return Call(
            key=self.key(number),
            kind=_OF_KIND[kind],
            tags=self.tags(number),
            annotation=Transcript if kind == TRANSCRIPTS else Any,
            manifest=lambda: self.manifest(number),
        )

    def key(self, number: int) -> str:
        """Return the key."""
        return f"{KINDS[self._night.kind(number)]}:{self._digest('key', number)}"

    def tags(self, number: int) -> tuple[str, ...]:
        """Return the tags, as the pipeline's tasks give them."""
        recording = f"recording:{self._digest('recording', number % self._recordings)}"
        return check_tags((recording, *_TAGS[self._night.kind(number)]))

    def manifest(self, number: int) -> dict[str, Any]:
        """Return a manifest as long as the pipeline's."""
        kind = self._night.kind(number)
        main, others = _INPUTS[kind]
        inputs = {main: {"digest": self._digest("input", number), "shown": self.subject(number)}} | {
            name: {"digest": self._digest(name, 0), "shown": shown} for name, shown in others.items()
        }
        task = {"task": _TASKS[kind], "function": _TASKS[kind], "version": "1", "file": "tasks/transcription.py"}
        return {**task, "main": main, "inputs": inputs, "subject": self.subject(number)}

    def subject(self, number: int) -> str:
        """Return the name of the recording."""
        return f"calls/2026-11/{number % self._recordings:08}.mp3"

    def origin(self, number: int, flow_run: str, task_run: str = "") -> Origin:
        """Return whom a lookup's event belongs to."""
        task = _TASKS[self._night.kind(number)]
        return Origin(self.subject(number), task, flow_run, task_run, deferred=True, flow=FLOW)

    def blob(self, number: int) -> bytes:
        """Return what stands for the sound; real sound takes 32 kB a second, of which lookups read nothing."""
        return hashlib.shake_128(f"{self._seed}:{number}".encode()).digest(_BLOB_BYTES)

    def value(self, number: int, folder: Path | None = None) -> Any:
        """Return the value.

        Args:
            number: The number.
            folder: Where a task would put the sound; without it the value says which it is, and has no bytes.
        """
        size = self._night.size(number)
        match self._night.kind(number):
            case 0:
                return _transcript(size, number % _DIFFERENT)
            case 1:
                return _enhanced(size, number % _DIFFERENT)
            case _:
                return self._descriptor(number, folder)

    def is_right(self, number: int, value: Any) -> bool:
        """Whether this is what belongs to a number."""
        wanted = self.value(number)
        match self._night.kind(number):
            case 0:
                return value.text == wanted.text and len(value.segments) == len(wanted.segments)
            case 1:
                return value["text"] == wanted["text"]
            case _:
                return value["audio"] == wanted["audio"]

    def entry(self, number: int) -> Entry:
        """Return the entry as the cache would have stored it earlier."""
        kind = self._night.kind(number)
        call = self.call(number)
        blobs: Mapping[str, int] = {}
        marks: Mapping[str, str] = {}
        if kind == AUDIO:
            blob = self.blob(number)
            json = codec_of(Any).encode(self.value(number)).json
            payload, size = codec.compress(json), len(json)
            blobs = {digest_bytes(blob): len(blob)}
            marks = {digest_bytes(blob): hashlib.md5(blob, usedforsecurity=False).hexdigest()}
        else:
            payload, size = _payload(kind, self._night.size(number), number % _DIFFERENT)
        return Entry(
            key=call.key,
            namespace=self._namespace,
            created_at=self._now,
            expires_at=self._now + call.kind.ttl.total_seconds(),
            compute_seconds=_COMPUTE_SECONDS,
            tags=call.tags,
            generations=(0,) * len(call.scopes),
            fence=_FENCE,
            placement=plan.placement(call.kind, len(payload)),
            size=size,
            payload=payload,
            blobs=blobs,
            marks=marks,
            usage={"audio_seconds": _COMPUTE_SECONDS},
            manifest=self.manifest(number),
        )

    def _descriptor(self, number: int, folder: Path | None) -> dict[str, Any]:
        blob = self.blob(number)
        if folder is None:
            file = CachedFile(digest_bytes(blob), len(blob), f"{number}.wav", "audio/wav")
        else:
            path = folder / f"{number}.wav"
            path.write_bytes(blob)
            file = CachedFile.from_path(path, "audio/wav")
        return {"audio": file, **_MEASURES}

    def _digest(self, what: str, number: int) -> str:
        return digest_bytes(f"{self._seed}:{what}:{number}".encode())


@cache
def _transcript(size: int, which: int) -> Transcript:
    return Transcript.model_validate(transcript(size, which))


@cache
def _enhanced(size: int, which: int) -> dict[str, Any]:
    text = _transcript(size, which).text
    return {"text": text, "summary": text[:120], "keywords": text.split()[:8], "language": "en", "enhancer": "rules"}


@cache
def _payload(kind: int, size: int, which: int) -> tuple[bytes, int]:
    """Return what is stored, and the length of its JSON."""
    value = _enhanced(size, which) if kind == ENHANCEMENTS else _transcript(size, which).model_dump(mode="json")
    json = orjson.dumps(value)
    return codec.compress(json), len(json)


_MEASURES: Final = {
    "duration_seconds": 61.25,
    "original_duration_seconds": 63.5,
    "loudness_lufs": -31.27,
    "gain_db": 8.27,
    "peak": 0.87,
    "trimmed_leading_seconds": 0.75,
    "trimmed_trailing_seconds": 1.5,
}
_TAGS: Final = (
    ("model:large-v3", "stage:transcript"),
    ("enhancer:rules", "stage:enhancement"),
    ("stage:audio",),
)
_ENGINE: Final = {"name": "faster-whisper", "model": "large-v3", "base_url": "None", "device": "cpu", "beam_size": "5"}
_LEVELS: Final = {"target_lufs": "-23.0", "max_gain_db": "30.0", "ceiling_dbfs": "-1.0", "trim_silence": "True"}
_INPUTS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("audio", {"engine": _ENGINE, "chunks": "None", "language": "None", "vocabulary": "tuple #851eb3b55e2f"}),
    ("transcript", {"enhancer": {"name": "rules"}, "style": "clean", "vocabulary": "tuple #851eb3b55e2f"}),
    ("source", {"options": _LEVELS}),
)
"""For each kind the input that counts, and the others."""
