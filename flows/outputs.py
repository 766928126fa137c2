"""What a batch leaves behind: text, subtitles and JSON per recording, and an index. Nothing is written twice."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import cast

import fsspec
import orjson
from pydantic import BaseModel

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


@dataclass(frozen=True, slots=True)
class Output:
    """A folder, or an fsspec URL, that outputs go to.

    Attributes:
        url: Where.
        options: Handed to fsspec.
    """

    url: str
    options: dict[str, object]

    def write(self, name: str, content: bytes) -> bool:
        """Write one file unless it has this content already; return whether it was written."""
        fs, root = fsspec.url_to_fs(self.url, **self.options)
        path = f"{root}/{name}"
        try:
            if cast("bytes", fs.cat_file(path)) == content:
                return False
        except FileNotFoundError:
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        temporary = f"{path}.part"
        fs.pipe_file(temporary, content)
        fs.mv(temporary, path)
        return True

    def write_recording(self, stem: str, transcript: Transcript, enhanced: EnhancedTranscript) -> tuple[list[str], int]:
        """Write a recording's files; return their names and how many were new or different."""
        document = orjson.dumps(
            {"transcript": orjson.loads(to_json(transcript)), "enhanced": enhanced.model_dump(mode="json")},
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
    """Return the name of each recording's outputs: without its suffix, unless two would then be the same."""
    bare = {name: str(PurePosixPath(name).with_suffix("")) for name in names}
    taken = Counter(stem.casefold() for stem in bare.values())
    return {name: name if taken[stem.casefold()] > 1 or stem == "index" else stem for name, stem in bare.items()}
