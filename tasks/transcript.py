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
        """Return the same segment, later by ``seconds``."""
        words = tuple(
            word.model_copy(update={"start": round(word.start + seconds, 3), "end": round(word.end + seconds, 3)})
            for word in self.words
        )
        start, end = round(self.start + seconds, 3), round(self.end + seconds, 3)
        return self.model_copy(update={"start": start, "end": end, "words": words})


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
