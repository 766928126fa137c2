"""What results cost in money: prices per kind, times what computing them has consumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel, ConfigDict, NonNegativeFloat

AUDIO_SECONDS: Final = "audio_seconds"
TOKENS_IN: Final = "tokens_in"
TOKENS_OUT: Final = "tokens_out"


class Prices(BaseModel):
    """What a kind's results cost to compute, in the currency of the settings.

    Attributes:
        audio_minute: Per minute of audio, as transcription services charge.
        tokens_in: Per 1,000 tokens that a model reads.
        tokens_out: Per 1,000 tokens that a model writes.
        compute_hour: Per hour that computing takes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    audio_minute: NonNegativeFloat = 0.0
    tokens_in: NonNegativeFloat = 0.0
    tokens_out: NonNegativeFloat = 0.0
    compute_hour: NonNegativeFloat = 0.0

    def cost(self, usage: Mapping[str, float], compute_seconds: float) -> float:
        """Return what a computation has cost.

        Args:
            usage: What it consumed, as `record_usage` noted it: ``audio_seconds``, ``tokens_in``, ``tokens_out``.
            compute_seconds: How long it took.
        """
        return (
            self.audio_minute * usage.get(AUDIO_SECONDS, 0.0) / 60
            + self.tokens_in * usage.get(TOKENS_IN, 0.0) / 1000
            + self.tokens_out * usage.get(TOKENS_OUT, 0.0) / 1000
            + self.compute_hour * compute_seconds / 3600
        )


FREE: Final = Prices()
