"""Values to JSON and back, exactly: what the task's return annotation says, or a clear refusal.

With an annotation that says more than "JSON", pydantic encodes and decodes. Without one, JSON-able data is
kept as it is, and bytes, datetimes and files are wrapped (``{"$bytes": …}``); that vocabulary is closed, and a
dictionary of the user's that looks like it is wrapped itself.
"""

from __future__ import annotations

import functools
import typing
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import orjson
import pydantic
import pydantic_core

from cache_blocks.errors import CacheError, CorruptEntryError, UnsupportedValueError
from cache_blocks.files import CachedFile
from cache_blocks.wrapping import WAY_OUT, check_text_tree, plain_json, refuse_file_contents, unwrap, wrap

_PLAIN: Final = (Any, object, None, type(None), bool, int, float, str, list, dict)
_JSON_BYTES = pydantic.ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
_CONTENTS: Final = b'{"$contents":'
_KEPT: Final = "__cache_blocks_returns__"


Spool = Callable[[bytes], CachedFile]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A value as JSON, with the files that it refers to."""

    json: bytes
    files: tuple[CachedFile, ...]


class ValueCodec:
    """Encodes and decodes the values of one return annotation.

    Attributes:
        name: How the annotation reads.

    Args:
        annotation: What the task says that it returns; ``Any`` when it says nothing.

    Raises:
        UnsupportedValueError: No value of this type could be given back as it was.
    """

    def __init__(self, annotation: Any = Any) -> None:
        self.annotation = annotation
        self.name = repr(annotation)
        self._adapter = None if is_plain(annotation) else _adapter(annotation)

    def encode(self, value: Any, spool: Spool | None = None) -> Encoded:
        """Return the value as JSON.

        Args:
            value: The value.
            spool: Turns bytes into a file, for kinds of large binary results.

        Raises:
            UnsupportedValueError: It cannot be given back as it is; the message names the part and its type.
        """
        if self._adapter is None and (plain := plain_json(value)) is not None:
            return Encoded(plain, ())
        files: list[CachedFile] = []
        if spool is not None and isinstance(value, bytes):
            files.append(spool(value))
            jsonable: Any = {"$contents": files[0].as_dict()}
        elif self._adapter is None:
            jsonable = wrap(value, "value", files)
        else:
            value = self._with_files(self._adapter, value)
            jsonable = self._dump(self._adapter, value, files)
        try:
            json = orjson.dumps(jsonable)
        except orjson.JSONEncodeError as error:
            raise UnsupportedValueError(f"the result cannot be written as JSON: {error}; {WAY_OUT}") from error
        if self._adapter is not None and not json.startswith(_CONTENTS):
            self._check_it_comes_back(self._adapter, value, json)
        return Encoded(json, tuple(files))

    def decode(self, data: bytes) -> Any:
        """Return the value of what `encode` has written.

        Raises:
            CorruptEntryError: It is not, for whatever reason: a type's own validators raise what they please.
            BlobMissingError: The bytes of a file that is decoded to its contents are gone or damaged.
        """
        try:
            if self._adapter is not None and not (self.annotation is bytes and data.startswith(_CONTENTS)):
                return self._adapter.validate_json(data)
            value = orjson.loads(data)
            # One byte is looked for at the speed of memory; three, of which two are everywhere in JSON, are not.
            return unwrap(value) if b"$" in data and b'{"$' in data else value
        except CacheError:
            raise
        except Exception as error:
            raise CorruptEntryError(f"the payload is not a {self.annotation!r}: {_why(error)}") from error

    def _with_files(self, adapter: pydantic.TypeAdapter[Any], value: Any) -> Any:
        """Return the value with produced paths as files, where the annotation says that there are any."""
        if not _mentions_files(self.annotation):
            return value
        try:
            return adapter.validate_python(value)
        except (ValueError, OSError) as error:
            raise UnsupportedValueError(f"the result is not the annotated {self.annotation!r}: {error}") from error

    def _check_it_comes_back(self, adapter: pydantic.TypeAdapter[Any], value: Any, json: bytes) -> None:
        """Refuse what an annotation such as ``str | bytes`` would give back as something else."""
        try:
            back = adapter.validate_json(json)
            same = bool(back == value) and (type(back) is type(value) or isinstance(value, CachedFile))
        except (ValueError, TypeError) as error:
            raise UnsupportedValueError(f"the result does not come back from JSON: {error}; {WAY_OUT}") from error
        if not same:
            raise UnsupportedValueError(
                f"the result of type {type(value).__qualname__} would come back changed, as {type(back).__qualname__}; "
                f"annotate what the task returns more precisely than {self.annotation!r}"
            )

    def _dump(self, adapter: pydantic.TypeAdapter[Any], value: Any, files: list[CachedFile]) -> Any:
        if isinstance(value, bytes):
            refuse_file_contents(value, "value")
        context: dict[str, Any] = {"files": files}
        try:
            jsonable = adapter.dump_python(
                value, mode="json", context=context, warnings="error", by_alias=True, round_trip=True
            )
        except (pydantic_core.PydanticSerializationError, ValueError, OSError) as error:
            raise UnsupportedValueError(
                f"the result of type {type(value).__qualname__} is not the annotated {self.annotation!r}: {error}"
            ) from error
        check_text_tree(jsonable, "value")
        return jsonable


def _why(error: Exception) -> str:
    """Return what is wrong in one line and without the payload, which the log has no business with."""
    if isinstance(error, pydantic.ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return ": ".join([*map(str, first["loc"]), first["type"]])
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:160]}"


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
    if (kept := getattr(function, _KEPT, None)) is not None:
        return kept[0]
    try:
        annotation = _resolved_annotation(function)
    except (NameError, TypeError):
        annotation = getattr(function, "__annotations__", {}).get("return", Any)
    return Any if isinstance(annotation, str) else annotation


def keep_return_annotation(function: Callable[..., Any]) -> None:
    """Let what a function says that it returns survive pickling.

    A function that is pickled by value takes only those globals along that its code names, so that annotations which
    are text (``from __future__ import annotations``) could not be resolved in the other process.
    """
    setattr(function, _KEPT, (return_annotation(function),))


@functools.lru_cache(maxsize=512)
def _resolved_annotation(function: Callable[..., Any]) -> Any:
    """Return what a function says that it returns, resolved once; a name that is not known yet raises NameError."""
    return typing.get_type_hints(function, include_extras=True).get("return", Any)


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
            f"results of type {annotation!r} cannot be stored: {str(error).splitlines()[0]}; {WAY_OUT}"
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


def _mentions_files(annotation: Any) -> bool:
    return annotation in (Path, CachedFile) or any(_mentions_files(one) for one in typing.get_args(annotation))


def _paths_as_files(annotation: Any) -> Any:
    if annotation is Path:
        return CachedFile
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (list, dict, tuple, set, frozenset) and any(_paths_as_files(one) is not one for one in arguments):
        return cast("Any", origin)[tuple(_paths_as_files(one) for one in arguments)]
    return annotation
