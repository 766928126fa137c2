"""The closed vocabulary by which un-annotated values go into JSON, and what may not go there.

JSON-able data is kept as it is; bytes, datetimes and files are wrapped (``{"$bytes": …}``), and a dictionary of the
user's that looks like that is wrapped itself.
"""

from __future__ import annotations

import base64
import datetime as dt
import math
from itertools import chain
from pathlib import Path
from typing import Any, Final, cast

import orjson

from cache_blocks.errors import UnsupportedValueError
from cache_blocks.files import CachedFile

_INLINE_BYTES: Final = 64 * 1024
_MAGIC_BYTES: Final = 12
_PLAIN: Final = frozenset({str, int, float, bool, type(None), list, dict})
_AUDIO_MAGIC: Final = (b"RIFF", b"fLaC", b"OggS", b"ID3", b"\x1aE\xdf\xa3")
_MP3_FRAME: Final = (b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")
_LEAST_MP3_BYTES: Final = 96
"""Two bytes alone say little: many a digest begins like a frame. This is the shortest frame of speech."""
WAY_OUT: Final = "return JSON-able data, bytes, datetime, a Path or CachedFile, or annotate the task's return type"


def plain_json(value: Any) -> bytes | None:
    """Return the JSON of a value that comes back from it as it is; None where there is something to wrap or to refuse.

    Most results are such, and are looked at level by level, by loops that run in C: `wrap` takes ten times as long.
    """
    try:
        json = orjson.dumps(value)
    except orjson.JSONEncodeError:
        return None
    # A dollar may begin a name, which is wrapped; a null may stand for a NaN.
    return json if b"$" not in json and _is_plain(value, check_floats=b"null" in json) else None


def _is_plain(value: Any, *, check_floats: bool) -> bool:
    items: list[Any] = [value]
    while items:
        kinds: set[Any] = set(map(type, items))
        if not kinds <= _PLAIN:
            return False
        if check_floats and not all(math.isfinite(item) for item in items if type(item) is float):
            return False
        mappings: list[Any] = [item.values() for item in items if type(item) is dict] if dict in kinds else []
        lists: list[Any] = [item for item in items if type(item) is list] if list in kinds else []
        items = [*chain.from_iterable(mappings), *chain.from_iterable(lists)]
    return True


def wrap(value: Any, where: str, files: list[CachedFile]) -> Any:
    """Return JSON-able data for an un-annotated value."""
    match value:
        case None | bool() | str():
            return value
        case int() if type(value) is int:
            return value
        case float() if type(value) is float:
            check_text_tree(value, where)
            return value
        case bytes():
            refuse_file_contents(value, where)
            return {"$bytes": base64.b64encode(value).decode()}
        case dt.datetime():
            return {"$datetime": value.isoformat()}
        case CachedFile() | Path():
            file = value if isinstance(value, CachedFile) else CachedFile.from_path(value)
            files.append(file)
            return {"$file": file.as_dict()}
        case list() | tuple() if type(value) in (list, tuple):  # pyright: ignore[reportUnknownArgumentType]
            return [wrap(item, f"{where}[{position}]", files) for position, item in enumerate(value)]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        case dict() if type(value) is dict:  # pyright: ignore[reportUnknownArgumentType]
            return _wrap_dict(cast("dict[Any, Any]", value), where, files)
        case _:
            name = f"{type(value).__module__}.{type(value).__qualname__}"
            raise UnsupportedValueError(f"{where} is a {name}, which is not kept without an annotation; {WAY_OUT}")


def _wrap_dict(value: dict[Any, Any], where: str, files: list[CachedFile]) -> Any:
    for key in value:
        if not isinstance(key, str):
            raise UnsupportedValueError(
                f"{where} has the key {key!r} of type {type(key).__qualname__}; JSON has text keys only; {WAY_OUT}"
            )
    wrapped = {key: wrap(item, f"{where}[{key!r}]", files) for key, item in value.items()}
    return {"$dict": wrapped} if any(key.startswith("$") for key in wrapped) else wrapped


def unwrap(value: Any) -> Any:
    """Return the value of what `wrap` has made; raise ValueError or TypeError for what it never makes."""
    if isinstance(value, list):
        return [unwrap(item) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    mapping = cast("dict[str, Any]", value)
    match mapping:
        case {"$bytes": str(text), **rest} if not rest:
            return base64.b64decode(text, validate=True)
        case {"$datetime": str(text), **rest} if not rest:
            return dt.datetime.fromisoformat(text)
        case {"$contents": descriptor, **rest} if not rest:
            return CachedFile.from_dict(descriptor).path.read_bytes()
        case {"$file": descriptor, **rest} if not rest:
            return CachedFile.from_dict(descriptor)
        case {"$dict": dict(inner), **rest} if not rest:  # pyright: ignore[reportUnknownVariableType]
            return {key: unwrap(item) for key, item in cast("dict[str, Any]", inner).items()}
        case _:
            return {key: unwrap(item) for key, item in mapping.items()}


def check_text_tree(value: Any, where: str) -> None:
    """Refuse what JSON would change without a word (NaN, infinities), and file contents in the guise of text."""
    match value:
        case float() if not math.isfinite(value):
            raise UnsupportedValueError(f"{where} is {value}, which JSON cannot hold; return None or a text instead")
        case str() if len(value) > _INLINE_BYTES and value[:8].isascii():
            _refuse_file_contents(_decoded_start(value), len(value) * 3 // 4, where)
        case list():
            for position, item in enumerate(cast("list[Any]", value)):
                check_text_tree(item, f"{where}[{position}]")
        case dict():
            for key, item in cast("dict[str, Any]", value).items():
                check_text_tree(item, f"{where}[{key!r}]")
        case _:
            pass


def _decoded_start(text: str) -> bytes:
    try:
        return base64.b64decode(text[:16], altchars=b"-_", validate=True)
    except ValueError:
        return b""


def refuse_file_contents(value: bytes, where: str) -> None:
    """Refuse audio, and anything large, among the small values that go to Redis and SQL.

    Raises:
        UnsupportedValueError: ``value`` is, or begins like, the contents of a file.
    """
    _refuse_file_contents(value[:_MAGIC_BYTES], len(value), where)


def _refuse_file_contents(start: bytes, size: int, where: str) -> None:
    is_mp3 = start.startswith(_MP3_FRAME) and size >= _LEAST_MP3_BYTES
    if size > _INLINE_BYTES or is_mp3 or start.startswith(_AUDIO_MAGIC) or start[4:8] == b"ftyp":
        raise UnsupportedValueError(
            f"{where} holds the contents of a file; return a CachedFile, or declare the kind with large_binary=True, "
            "so that they go to the object store and never to Redis or SQL"
        )
