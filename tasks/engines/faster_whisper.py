"""Whisper on this machine, by CTranslate2 (https://github.com/SYSTRAN/faster-whisper)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from tasks.engines.whisper_models import locate
from tasks.errors import EngineError, ModelChangedError
from tasks.media.wav import read_samples
from tasks.transcript import Segment, Transcript, Word

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from faster_whisper import WhisperModel
    from faster_whisper.transcribe import Segment as WhisperSegment

    from tasks.engines.base import EngineConfig

_loading = threading.Lock()
_models: Final[dict[tuple[str, str, str, str], WhisperModel]] = {}


def models_loaded() -> int:
    """Return how many models this process has loaded so far."""
    return len(_models)


class FasterWhisperEngine:
    """Transcribes with a Whisper model that is loaded once per process and shared by its threads.

    Decoding is deterministic: temperature 0, and no batched pipeline, which loses words. Windows are decoded
    without the text of the one before, which otherwise can repeat itself to the end at temperature 0.

    Args:
        config: Resolved configuration.

    Raises:
        EngineError: faster-whisper is not installed, or the model on this machine is another than the one in
            the key.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._model = _load(config)

    def transcribe(self, audio: Path, *, language: str | None, vocabulary: Sequence[str]) -> Transcript:
        """Transcribe one recording; see `Engine`."""
        known = self._model.supported_languages
        if language is not None and language not in known:
            languages = "only English" if known == ["en"] else f"{len(known)} languages"
            raise EngineError(f"model {self._config.model} knows {languages}, not {language!r}; choose another one")
        samples = read_samples(audio)
        segments, info = self._model.transcribe(
            samples,
            language=language,
            hotwords=", ".join(vocabulary) or None,
            beam_size=self._config.beam_size,
            temperature=0.0,
            condition_on_previous_text=False,
            word_timestamps=True,
        )
        return Transcript.of_segments(
            map(_segment, segments),
            language=info.language,
            duration_seconds=round(info.duration, 3),
            engine=self._config.name,
            model=self._config.model,
        )


def _load(config: EngineConfig) -> WhisperModel:
    located = locate(config.model_name)
    if f"sha256:{located.sha256}" != config.model_digest:
        raise ModelChangedError(
            f"model {config.model} here has the weights sha256:{located.sha256}, the run was started for "
            f"{config.model_digest}; give all workers the same model"
        )
    key = (str(located.folder), located.sha256, config.device, config.compute_type)
    with _loading:
        if key not in _models:
            _models[key] = _new_model(*key)
        return _models[key]


def _new_model(folder: str, _sha256: str, device: str, compute_type: str) -> WhisperModel:
    try:
        from faster_whisper import WhisperModel  # takes a second; no hit needs it
    except ImportError as error:
        raise EngineError(
            "faster-whisper is not installed; pip install 'prefect-cache-blocks[transcription]'"
        ) from error
    try:
        return WhisperModel(folder, device=device, compute_type=compute_type, local_files_only=True)
    except (RuntimeError, ValueError, OSError) as error:
        raise EngineError(f"the model in {folder} cannot be loaded: {error}") from error


def _segment(segment: WhisperSegment) -> Segment:
    words: Iterable[Word] = (
        Word(
            start=round(one.start, 3),
            end=round(one.end, 3),
            word=one.word.strip(),
            probability=round(one.probability, 4),
        )
        for one in segment.words or ()
    )
    return Segment(
        start=round(segment.start, 3),
        end=round(segment.end, 3),
        text=segment.text.strip(),
        words=tuple(words),
    )
