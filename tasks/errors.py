"""What goes wrong with recordings and engines, said so that a person knows which file and why.

PipelineError
├── MediaError                    a recording that cannot become audio; `name` is the file, `detail` the
reason │   ├── UnreadableMediaError      it cannot be opened or read
│   │   ├── MediaNotFoundError        there is no such file
│   │   └── MediaPermissionError      this process may not read it
│   ├── EmptyMediaError           no bytes
│   ├── NotMediaError             not a container of audio: text, an image, noise
│   ├── PlaylistError             a list of other files or addresses, which are never followed
│   ├── NoAudioError              media without an audio stream, or without one audible sample
│   ├── TruncatedMediaError       the container promises more than the file holds
│   ├── DamagedMediaError         a header or too many packets make no sense
│   └── MediaTooLongError         longer than `AudioOptions` allows
├── EngineError                   transcription could not be done; says what to change
│   ├── ModelNotFoundError        no such speech model here
│   ├── ModelChangedError         model files that are not the expected ones
│   └── EndpointError             the transcription endpoint refused or failed
└── TranscriptFormatError         a transcript file that cannot be read
"""

from __future__ import annotations


class PipelineError(Exception):
    """Base class of everything that the pipeline raises on purpose."""


class MediaError(PipelineError):
    """A recording that cannot become audio. Trying again gives the same answer.

    Attributes:
        name: File name of the recording, for people.
        detail: The reason, a clause without the file's name.
    """

    reason = "unusable"
    """One or two words for tables; each subclass has its own."""

    def __init__(self, name: str, detail: str) -> None:
        self.name = name
        self.detail = detail
        super().__init__(name, detail)

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}: {self.detail}"


class UnreadableMediaError(MediaError):
    """The file cannot be opened or read; `__cause__` is what the system said."""

    reason = "unreadable"


class MediaNotFoundError(UnreadableMediaError):
    """There is no such file."""

    reason = "not found"


class MediaPermissionError(UnreadableMediaError):
    """This process may not read the file."""

    reason = "no permission"


class EmptyMediaError(MediaError):
    """The file has no bytes."""

    reason = "empty"


class NotMediaError(MediaError):
    """The file is not a container of audio, whatever its name says."""

    reason = "not media"


class PlaylistError(MediaError):
    """The file is a list of other files or addresses. They are never followed: that could read anything."""

    reason = "playlist"


class NoAudioError(MediaError):
    """The file is media, but has no audio stream or not one sample of sound."""

    reason = "no audio"


class TruncatedMediaError(MediaError):
    """The container promises more than the file holds: an unfinished copy or recording."""

    reason = "truncated"


class DamagedMediaError(MediaError):
    """A header that makes no sense, or too many packets that cannot be decoded."""

    reason = "damaged"


class MediaTooLongError(MediaError):
    """There is more sound than `AudioOptions` allows."""

    reason = "too long"


class EngineError(PipelineError):
    """Transcription could not be done; the message says what to change."""


class ModelNotFoundError(EngineError):
    """There is no such speech model on this machine, and none could be fetched."""


class ModelChangedError(EngineError):
    """The model's files are not those that were expected: replaced, damaged, or another machine's."""


class EndpointError(EngineError):
    """The transcription endpoint refused or failed, retries included.

    Attributes:
        status: HTTP status, or None when there was no answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        self.status = status
        super().__init__(message, status)

    def __str__(self) -> str:
        return str(self.args[0])


class TranscriptFormatError(PipelineError, ValueError):
    """A transcript file (srt, vtt, json) that cannot be read; the message says where."""
