"""What a batch leaves behind: text, subtitles and JSON per recording, and an index. Nothing is written twice."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import orjson
from pydantic import BaseModel

from cache_blocks.tiers.object_store import ObjectStore
from tasks.enhancement import EnhancedTranscript
from tasks.subtitles import to_json, to_srt, to_text, to_vtt
from tasks.transcript import Transcript


class RecordingResult(BaseModel):
    """What became of one recording.

    Attributes:
        name: Path relative to the source.
        status: ``done`` or ``failed``.
        reason: Why it failed.
        recording: Digest of its bytes.
        seconds: Length of the sound.
        text: The readable text.
        summary: A few sentences on it.
        keywords: Most important first.
        files: Outputs, relative to the batch's output.
        written: How many of them were new or different; the others were there already.
    """

    name: str
    status: str = "done"
    reason: str = ""
    recording: str = ""
    seconds: float = 0.0
    text: str = ""
    summary: str = ""
    keywords: list[str] = []
    files: list[str] = []
    written: int = 0


class Output:
    """A folder, or an fsspec URL, that outputs go to. A file appears whole or not at all.

    Args:
        url: Where.
        options: Handed to fsspec.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.url = url if "://" in url else str(Path(url).expanduser().absolute())
        """Where, for processes that have another current folder too."""
        self._store = ObjectStore(self.url, options)

    def write(self, name: str, content: bytes) -> bool:
        """Write one file unless it has this content already; return whether it was written.

        Raises:
            ValueError: The name leads out of the output, as the name of an object in a bucket may.
        """
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise ValueError(f"the outputs of {name!r} would lie outside of the batch's output")
        path = self._store.path(name)
        if self._store.read(path) == content:
            return False
        self._store.write(path, content)
        return True

    def read(self, name: str) -> bytes | None:
        """Return one file's content; None if there is no such file."""
        return self._store.read(self._store.path(name))

    def remove(self, folder: str) -> None:
        """Remove a folder that is below the output, if it is there."""
        fs, path = self._store.fs, self._store.path(folder)
        fs.invalidate_cache()
        if fs.exists(path):
            fs.rm(path, recursive=True)

    def write_recording(self, stem: str, transcript: Transcript, enhanced: EnhancedTranscript) -> tuple[list[str], int]:
        """Write a recording's files; return their names and how many were new or different.

        Args:
            stem: Their names without endings.
            transcript: By the recording's own clock.
            enhanced: Goes into the txt, and beside the transcript into the json.
        """
        document = orjson.dumps(
            {**orjson.loads(to_json(transcript)), "enhanced": enhanced.model_dump(mode="json")},
            option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
        )
        contents = {
            f"{stem}.txt": f"{enhanced.text or to_text(transcript)}".rstrip("\n").encode() + b"\n",
            f"{stem}.srt": to_srt(transcript).encode(),
            f"{stem}.vtt": to_vtt(transcript).encode(),
            f"{stem}.json": document,
        }
        return list(contents), sum(self.write(name, content) for name, content in contents.items())

    def write_index(self, results: Sequence[RecordingResult]) -> bool:
        """Write ``index.json``: what there is for each recording, or why there is nothing."""
        rows = [result.model_dump(mode="json", exclude={"written"}) for result in results]
        content = orjson.dumps({"recordings": rows}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        return self.write("index.json", content)


def output_stems(names: Sequence[str]) -> dict[str, str]:
    """Return the name of each recording's outputs: without its suffix, unless that could be mistaken."""
    bare = {name: str(PurePosixPath(name).with_suffix("")) for name in names}
    taken = Counter(stem.casefold() for stem in bare.values()) + Counter(name.casefold() for name in names)
    return {
        name: name if taken[stem.casefold()] > 1 or stem.casefold() == "index" else stem for name, stem in bare.items()
    }
