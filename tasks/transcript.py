"""`Transcript`: what was said, when, in which language, and according to whom."""

from collections.abc import Iterable
from typing import Self

from pydantic import BaseModel, ConfigDict, Field


class Word(BaseModel):
    """One word.

    Attributes:
        start: Seconds from the start of the audio.
        end: Seconds from the start of the audio.
        word: The word with its punctuation, without spaces around it.
        probability: The engine's confidence from 0 to 1; None when it gives none.
    """

    model_config = ConfigDict(frozen=True)

    start: float
    end: float
    word: str
    probability: float | None = None


class Segment(BaseModel):
    """A stretch of speech of about a sentence; times in seconds from the start of the audio."""

    model_config = ConfigDict(frozen=True)

    start: float
    end: float
    text: str
    words: tuple[Word, ...] = ()

    def shifted(self, seconds: float) -> Self:
        """Return the same segment, later by ``seconds``; what would then lie before the start is at the start."""

        def moved(one: Segment | Word) -> dict[str, float]:
            return {"start": max(0.0, round(one.start + seconds, 3)), "end": max(0.0, round(one.end + seconds, 3))}

        words = tuple(word.model_copy(update=moved(word)) for word in self.words)
        return self.model_copy(update={**moved(self), "words": words})


class Transcript(BaseModel):
    """The text of one recording.

    Attributes:
        text: All of it, as one line.
        language: ISO 639-1 code such as ``en``; empty when nobody said.
        duration_seconds: Length of the audio.
        segments: In order of time.
        engine: What transcribed it, such as ``faster-whisper``, or ``import``.
        model: The engine's model, such as ``tiny.en``.
    """

    model_config = ConfigDict(frozen=True)

    text: str
    language: str = ""
    duration_seconds: float = Field(default=0.0, ge=0)
    segments: tuple[Segment, ...] = ()
    engine: str = ""
    model: str = ""

    @classmethod
    def of_segments(cls, segments: Iterable[Segment], **fields: str | float) -> Self:
        """Return a transcript whose text is that of its segments."""
        kept = tuple(segment for segment in segments if segment.text)
        return cls.model_validate({"text": " ".join(one.text for one in kept), "segments": kept, **fields})

    def shifted(self, seconds: float, duration_seconds: float) -> Self:
        """Return the same transcript by the clock of another cut of the sound.

        Args:
            seconds: By how much later everything is there.
            duration_seconds: Length of that cut.
        """
        segments = tuple(segment.shifted(seconds) for segment in self.segments)
        return self.model_copy(update={"segments": segments, "duration_seconds": round(duration_seconds, 3)})
