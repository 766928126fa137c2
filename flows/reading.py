"""The recordings of a batch as far as they can be read, with the digests of their bytes."""

from collections.abc import Sequence
from pathlib import Path

from fsspec.core import OpenFile

from cache_blocks.fingerprint import digest_many
from flows.outputs import RecordingResult
from flows.sources import Recording
from flows.stages import Readable
from tasks.errors import MediaError
from tasks.media.source import open_media


def read_all(recordings: Sequence[Recording]) -> tuple[list[Readable], dict[str, RecordingResult]]:
    """Digest recordings; return those that can be read, and by name what became of the others."""
    digests = digest_many([recording.handle for recording in recordings])
    readable: list[Readable] = []
    unreadable: dict[str, RecordingResult] = {}
    for recording, digest in zip(recordings, digests, strict=True):
        if isinstance(digest, str):
            readable.append(Readable(recording.name, recording.handle, digest))
        else:
            unreadable[recording.name] = failed(recording.name, _why_unreadable(recording.handle, digest))
    return readable, unreadable


def failed(name: str, error: Exception) -> RecordingResult:
    """Return the result of a recording that could not be done."""
    reason = f"{error.reason}: {error.detail}" if isinstance(error, MediaError) else str(error)
    return RecordingResult(name=name, status="failed", reason=reason or type(error).__name__)


def _why_unreadable(handle: Path | OpenFile, error: Exception) -> Exception:
    """Return the error in the pipeline's words, which say what to do."""
    try:
        with open_media(handle):
            return error
    except MediaError as explained:
        return explained
