"""Values to JSON and back, exactly: what the task's return annotation says, or a clear refusal.

With an annotation that says more than "JSON", pydantic encodes and decodes. Without one, JSON-able data is
kept as it is, and bytes, datetimes and files are wrapped (``{"$bytes": …}``); that vocabulary is closed, and a
dictionary of the user's that looks like it is wrapped itself.
"""

from __future__ import annotations

import base64
import datetime as dt
import functools
import math
import typing
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import orjson
import pydantic
import pydantic_core

from cache_blocks.errors import CorruptEntryError, UnsupportedValueError
from cache_blocks.files import CachedFile

_PLAIN: Final = (Any, object, None, type(None), bool, int, float, str, list, dict)
_JSON_BYTES = pydantic.ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
_INLINE_BYTES: Final = 64 * 1024
_MAGIC_BYTES: Final = 12
_AUDIO_MAGIC: Final = (b"RIFF", b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"\x1aE\xdf\xa3")
_WAY_OUT: Final = "return JSON-able data, bytes, datetime, a Path or CachedFile, or annotate the task's return type"


Spool = Callable[[bytes], CachedFile]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A value as JSON, with the files that it refers to."""

    json: bytes
    files: tuple[CachedFile, ...]


class ValueCodec:
    """Encodes and decodes the values of one return annotation.

    Args:
        annotation: What the task says that it returns; ``Any`` when it says nothing.

    Raises:
        UnsupportedValueError: No value of this type could be given back as it was.
    """

    def __init__(self, annotation: Any = Any) -> None:
        self.annotation = annotation
        self._adapter = None if is_plain(annotation) else _adapter(annotation)

    def encode(self, value: Any, spool: Spool | None = None) -> Encoded:
        """Return the value as JSON.

        Args:
            value: The value.
            spool: Turns bytes into a file, for kinds of large binary results.

        Raises:
            UnsupportedValueError: It cannot be given back as it is; the message names the part and its type.
        """
        files: list[CachedFile] = []
        if spool is not None and isinstance(value, bytes):
            files.append(spool(value))
            jsonable: Any = {"$contents": files[0].as_dict()}
        elif self._adapter is None:
            jsonable = _wrap(value, "value", files)
        else:
            jsonable = self._dump(self._adapter, value, files)
        try:
            return Encoded(orjson.dumps(jsonable), tuple(files))
        except orjson.JSONEncodeError as error:
            raise UnsupportedValueError(f"the result cannot be written as JSON: {error}; {_WAY_OUT}") from error

    def decode(self, data: bytes) -> Any:
        """Return the value; `CorruptEntryError` when the JSON is not of the annotated type."""
        try:
            if self._adapter is not None and not data.startswith(b'{"$contents":'):
                return self._adapter.validate_json(data)
            value = orjson.loads(data)
            return _unwrap(value) if b'{"$' in data else value
        except (ValueError, TypeError) as error:
            raise CorruptEntryError(f"the payload is not a {self.annotation!r}: {error}") from error

    def _dump(self, adapter: pydantic.TypeAdapter[Any], value: Any, files: list[CachedFile]) -> Any:
        context: dict[str, Any] = {"files": files}
        try:
            if isinstance(value, Path):
                value = adapter.validate_python(value)
            jsonable = adapter.dump_python(value, mode="json", context=context, warnings="error")
        except (pydantic_core.PydanticSerializationError, ValueError, OSError) as error:
            raise UnsupportedValueError(
                f"the result of type {type(value).__qualname__} is not the annotated {self.annotation!r}: {error}"
            ) from error
        _check_text_tree(jsonable, "value")
        return jsonable


@functools.lru_cache(maxsize=512)
def _codec_for(annotation: Any) -> ValueCodec:
    """Return the codec of an annotation, made once per process."""
    return ValueCodec(annotation)


def codec_of(annotation: Any) -> ValueCodec:
    """Return the codec of an annotation, hashable or not."""
    try:
        return _codec_for(annotation)
    except TypeError:
        return ValueCodec(annotation)


def return_annotation(function: Callable[..., Any]) -> Any:
    """Return what a function says that it returns; ``Any`` when it says nothing or cannot be resolved."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):
        hints = getattr(function, "__annotations__", {})
    annotation = hints.get("return", Any)
    return Any if isinstance(annotation, str) else annotation


def is_plain(annotation: Any) -> bool:
    """Whether JSON alone gives values of this annotation back, so that no validation is needed."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is list:
        return all(is_plain(argument) for argument in arguments)
    if origin is dict:
        return arguments[0] is str and is_plain(arguments[1])
    return any(annotation is plain for plain in _PLAIN)


def _adapter(annotation: Any) -> pydantic.TypeAdapter[Any]:
    """Return the adapter; a `Path` of a produced file becomes a `CachedFile`."""
    annotation = _paths_as_files(annotation)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(annotation, config=_JSON_BYTES)
            except pydantic.PydanticUserError:
                adapter = pydantic.TypeAdapter(annotation)  # models and dataclasses bring a configuration of their own
    except (pydantic.PydanticUserError, pydantic_core.SchemaError, UserWarning) as error:
        raise UnsupportedValueError(
            f"results of type {annotation!r} cannot be stored: {str(error).splitlines()[0]}; {_WAY_OUT}"
        ) from error
    _refuse_lossy(adapter, annotation)
    return adapter


def _refuse_lossy(adapter: pydantic.TypeAdapter[Any], annotation: Any) -> None:
    """Refuse what would come back changed: a path in a field would be kept as a name, not as its bytes."""
    schema = repr(adapter.core_schema)
    if "_pathlib" in schema or "pathlib.Path" in schema or "path_type" in schema:
        raise UnsupportedValueError(
            f"{annotation!r} has a field of type Path, which would be cached as a name that may be gone tomorrow; "
            "make the field a CachedFile"
        )


def _paths_as_files(annotation: Any) -> Any:
    if annotation is Path:
        return CachedFile
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (list, dict, tuple, set, frozenset) and any(_paths_as_files(one) is not one for one in arguments):
        return cast("Any", origin)[tuple(_paths_as_files(one) for one in arguments)]
    return annotation


def _wrap(value: Any, where: str, files: list[CachedFile]) -> Any:
    """Return JSON-able data for an un-annotated value."""
    match value:
        case None | bool() | str():
            return value
        case int() if type(value) is int:
            return value
        case float() if type(value) is float:
            _check_text_tree(value, where)
            return value
        case bytes():
            _refuse_file_contents(value[:_MAGIC_BYTES], len(value), where)
            return {"$bytes": base64.b64encode(value).decode()}
        case dt.datetime():
            return {"$datetime": value.isoformat()}
        case CachedFile() | Path():
            file = value if isinstance(value, CachedFile) else CachedFile.from_path(value)
            files.append(file)
            return {"$file": file.as_dict()}
        case list() | tuple() if type(value) in (list, tuple):  # pyright: ignore[reportUnknownArgumentType]
            return [_wrap(item, f"{where}[{position}]", files) for position, item in enumerate(value)]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        case dict() if type(value) is dict:  # pyright: ignore[reportUnknownArgumentType]
            return _wrap_dict(cast("dict[Any, Any]", value), where, files)
        case _:
            name = f"{type(value).__module__}.{type(value).__qualname__}"
            raise UnsupportedValueError(f"{where} is a {name}, which is not kept without an annotation; {_WAY_OUT}")


def _wrap_dict(value: dict[Any, Any], where: str, files: list[CachedFile]) -> Any:
    for key in value:
        if not isinstance(key, str):
            raise UnsupportedValueError(
                f"{where} has the key {key!r} of type {type(key).__qualname__}; JSON has text keys only; {_WAY_OUT}"
            )
    wrapped = {key: _wrap(item, f"{where}[{key!r}]", files) for key, item in value.items()}
    return {"$dict": wrapped} if any(key.startswith("$") for key in wrapped) else wrapped


def _unwrap(value: Any) -> Any:
    if isinstance(value, list):
        return [_unwrap(item) for item in cast("list[Any]", value)]
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
            return {key: _unwrap(item) for key, item in cast("dict[str, Any]", inner).items()}
        case _:
            return {key: _unwrap(item) for key, item in mapping.items()}


def _check_text_tree(value: Any, where: str) -> None:
    """Refuse what JSON would change without a word (NaN, infinities), and file contents in the guise of text."""
    match value:
        case float() if not math.isfinite(value):
            raise UnsupportedValueError(f"{where} is {value}, which JSON cannot hold; return None or a text instead")
        case str() if len(value) > _INLINE_BYTES and value[:8].isascii():
            _refuse_file_contents(_decoded_start(value), 0, where)
        case list():
            for position, item in enumerate(cast("list[Any]", value)):
                _check_text_tree(item, f"{where}[{position}]")
        case dict():
            for key, item in cast("dict[str, Any]", value).items():
                _check_text_tree(item, f"{where}[{key!r}]")
        case _:
            pass


def _decoded_start(text: str) -> bytes:
    try:
        return base64.b64decode(text[:16], validate=True)
    except ValueError:
        return b""


def _refuse_file_contents(start: bytes, size: int, where: str) -> None:
    """Refuse audio, and anything large, among the small values that go to Redis and SQL."""
    if size > _INLINE_BYTES or start.startswith(_AUDIO_MAGIC) or start[4:8] == b"ftyp":
        raise UnsupportedValueError(
            f"{where} holds the contents of a file; return a CachedFile, or declare the kind with large_binary=True, "
            "so that they go to the object store and never to Redis or SQL"
        )
