"""Any OpenAI-compatible ``/audio/transcriptions`` endpoint."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Final

from tasks.engines.base import OPENAI_URL
from tasks.errors import EndpointError, EngineError, TranscriptFormatError
from tasks.subtitles import parse_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import openai

    from tasks.engines.base import EngineConfig
    from tasks.transcript import Transcript

KEY_VARIABLE: Final = "OPENAI_API_KEY"
_RETRIES: Final = 5
"""The client waits between them: what the server's Retry-After says, else from 0.5 s doubling up to 8 s."""
_TIMEOUT_SECONDS: Final = 600.0
_TOO_LARGE: Final = 413


class OpenAIAudioEngine:
    """Sends audio to an endpoint and reads its ``verbose_json``.

    The access key is taken from ``OPENAI_API_KEY`` when a request is made. It is in no configuration, cache
    key or message; an endpoint's answers are quoted by their status only, because some repeat the key.

    Args:
        config: Resolved configuration.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._url = config.endpoint

    def transcribe(self, audio: Path, *, language: str | None, vocabulary: Sequence[str]) -> Transcript:
        """Transcribe one recording; see `Engine`. Rate limits, 5xx and lost connections are retried."""
        import openai  # the ai extra, half a second

        client = _client(self._url, _access_key(self._url))
        try:
            with audio.open("rb") as stream:
                answer = client.audio.transcriptions.with_raw_response.create(
                    file=("audio.wav", stream, "audio/wav"),
                    model=self._config.model_name,
                    response_format="verbose_json",
                    timestamp_granularities=["segment", "word"],
                    temperature=0.0,
                    language=language or openai.omit,
                    prompt=", ".join(vocabulary) or openai.omit,
                )
            transcript = parse_json(answer.content)
        except openai.APIStatusError as error:
            raise EndpointError(self._refusal(error.status_code), error.status_code) from None
        except openai.APIConnectionError as error:
            raise EndpointError(f"{self._url} does not answer: {type(error).__name__}") from None
        except TranscriptFormatError as error:
            raise EndpointError(f"{self._url} answered with something else than verbose_json: {error}") from error
        return transcript.model_copy(update={"engine": self._config.name, "model": self._config.model_name})

    def _refusal(self, status: int) -> str:
        ways_out = {
            401: f"set {KEY_VARIABLE}",
            403: f"the key in {KEY_VARIABLE} may not do this",
            404: f"is {self._config.model_name!r} a model there, and does the URL end in /v1?",
            _TOO_LARGE: "the audio is too large for it; pass chunks=ChunkOptions(...)",
            429: f"its rate limit held through {_RETRIES} retries",
        }
        return f"{self._url} answered {status}" + (f"; {ways_out[status]}" if status in ways_out else "")


def _access_key(url: str) -> str:
    key = os.environ.get(KEY_VARIABLE, "")
    if not key and url == OPENAI_URL:
        raise EngineError(f"{url} needs a key; set {KEY_VARIABLE}")
    return key or "none"  # the client insists on one; servers of one's own often want none


@functools.lru_cache(maxsize=8)
def _client(url: str, key: str) -> openai.OpenAI:
    import openai  # the ai extra, half a second

    return openai.OpenAI(base_url=url, api_key=key, max_retries=_RETRIES, timeout=_TIMEOUT_SECONDS)
