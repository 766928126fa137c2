"""What an engine is, and how one is chosen: a small configuration that is part of a transcript's key."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tasks.transcript import Transcript

OPENAI_URL = "https://api.openai.com/v1"
DEFAULT_MODELS = {"faster-whisper": "tiny.en", "openai": "whisper-1"}
"""Models by engine name, used where a configuration names none."""


class Engine(Protocol):
    """Turns audio into text."""

    def transcribe(self, audio: Path, *, language: str | None, vocabulary: Sequence[str]) -> Transcript:
        """Transcribe one recording.

        Args:
            audio: 16 kHz mono PCM16 WAV, with at least one sample.
            language: ISO 639-1 code; None lets the engine find out.
            vocabulary: Names and terms to expect.

        Raises:
            EngineError: It could not be done; the message says what to change.
        """
        ...


class EngineConfig(BaseModel):
    """Which engine transcribes, with which model.

    It holds no secrets, since it is stored in keys and manifests and shown in the Prefect UI: the key of an
    endpoint comes from the environment variable ``OPENAI_API_KEY``.

    Call `resolved` before handing one to a task: a name like ``base`` or a folder says nothing about the
    weights behind it, and a transcript must not be taken for that of another model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["faster-whisper", "openai"] = Field(default="faster-whisper", description="Engine")
    model: str = Field(
        default="",
        description="faster-whisper: a folder, or a name such as tiny.en; openai: the endpoint's name",
    )
    base_url: str | None = Field(default=None, description="openai: any compatible endpoint, up to /v1")
    device: Literal["cpu", "cuda", "auto"] = Field(default="cpu", description="faster-whisper: where")
    compute_type: str = Field(default="int8", description="faster-whisper: CTranslate2's type")
    beam_size: int = Field(default=5, ge=1, le=20, description="faster-whisper: hypotheses kept")
    model_digest: str = Field(default="", description="What the name stands for; filled in by resolved()")

    @field_validator("base_url")
    @classmethod
    def _without_secrets(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("an endpoint is an http or https URL")
        if parts.username or parts.password or parts.query:
            raise ValueError("an endpoint's URL holds no credentials or query; set OPENAI_API_KEY instead")
        return url.rstrip("/")

    @property
    def model_name(self) -> str:
        """The model, or the engine's default."""
        return self.model or DEFAULT_MODELS[self.name]

    @property
    def endpoint(self) -> str:
        """The endpoint: configured, else ``OPENAI_BASE_URL``, else OpenAI's own."""
        return self.base_url or os.environ.get("OPENAI_BASE_URL", "").rstrip("/") or OPENAI_URL

    def resolved(self) -> Self:
        """Return the same configuration with `model` and `model_digest` filled in.

        For faster-whisper that is the SHA-256 of the model's weights, read once per process, without loading
        the model; a model that is neither in a folder nor bundled is fetched from the model hub. What runs
        behind an endpoint cannot be seen: its address and model name are the identity.

        Raises:
            EngineError: The model is missing, or is not what it should be.
        """
        if self.name == "openai":
            url = self.endpoint
            identity = {"base_url": url, "model_digest": f"endpoint:{url}/{self.model_name}"}
            return self.model_copy(update={"model": self.model_name, **identity})
        from tasks.engines.whisper_models import locate  # only for this engine

        identity = {"model_digest": f"sha256:{locate(self.model_name).sha256}"}
        return self.model_copy(update={"model": self.model_name, **identity})
