"""Keys: everything that decides a result, canonicalised, hashed, and named in a manifest.

Canonicalising tags every value with its type, so that ``1``, ``1.0``, ``True`` and ``"1"`` differ, and sorts
what has no order, so that the digest is the same in every process and Python version.
"""

from __future__ import annotations

import ast
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import pathlib
import textwrap
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Final, cast

import pydantic
from blake3 import blake3
from fsspec.core import OpenFile

from cache_blocks.entry import check_key, check_tags
from cache_blocks.errors import UnhashableArgumentError
from cache_blocks.files import CachedFile
from cache_blocks.fingerprint import digest_open_file, digest_path

if TYPE_CHECKING:
    from cache_blocks.kinds import CacheKind

CacheTag = str | Callable[[dict[str, Any]], "str | Iterable[str]"]
"""A tag, or a function of the task's arguments that gives one or several."""

_SHOWN_CHARACTERS: Final = 80
_MAX_DEPTH: Final = 64


@dataclasses.dataclass(frozen=True, slots=True)
class TaskIdentity:
    """What makes a task this task, wherever its file lies and however it was loaded.

    Attributes:
        name: The task's name.
        qualified_name: ``__qualname__`` of its function.
        version: ``cache_version`` if one is given, which then stands for the source.
        source: The function's source; None when Python cannot show it.
    """

    name: str
    qualified_name: str
    version: str | None = None
    source: str | None = None

    def parts(self) -> dict[str, str]:
        """Return the named parts that go into a key."""
        parts = {"task": self.name, "function": self.qualified_name}
        if self.version is not None:
            return parts | {"version": self.version}
        return parts | {"source": blake3(normalise_source(self.source or "").encode()).hexdigest()}


@dataclasses.dataclass(frozen=True, slots=True)
class BuiltKey:
    """A key with the manifest of its parts.

    Attributes:
        key: ``kind:digest``.
        tags: Tags of the entry.
        manifest: Named parts: the task's, and per argument its digest and how it reads.
    """

    key: str
    tags: tuple[str, ...]
    manifest: dict[str, Any]


def normalise_source(source: str) -> str:
    """Return a function's source without comments, formatting, docstring and decorators.

    Decorators configure how Prefect runs the task, not what it computes. A source that does not parse on its
    own, such as a lambda's, is returned as it is.
    """
    try:
        tree = ast.parse(textwrap.dedent(source))
    except SyntaxError:
        return source
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            node.decorator_list = []
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def build_key(
    kind: CacheKind,
    task: TaskIdentity,
    arguments: Mapping[str, Any],
    *,
    ignore: Sequence[str] = (),
    tags: Sequence[CacheTag] = (),
) -> BuiltKey:
    """Return the key and manifest of one call.

    Args:
        kind: Kind of the result.
        task: Identity of the task.
        arguments: Arguments by parameter name.
        ignore: Parameters that do not decide the result.
        tags: Tags, or functions of the arguments.

    Raises:
        UnhashableArgumentError: An argument has no deterministic digest.
        OSError: A file among the arguments cannot be read.
    """
    inputs = {
        name: {"digest": digest_value(value, name), "shown": shown(value)}
        for name, value in sorted(arguments.items())
        if name not in ignore
    }
    parts = task.parts()
    decisive = {**parts, "inputs": {name: part["digest"] for name, part in inputs.items()}}
    return BuiltKey(
        key=check_key(f"{kind.name}:{digest_value(decisive, 'key')}"),
        tags=resolve_tags(tags, arguments),
        manifest={**parts, "inputs": inputs},
    )


def make_key(kind: CacheKind, *parts: Any) -> str:
    """Return a key for use without a task: ``kind`` and the digest of ``parts``."""
    return check_key(f"{kind.name}:{digest_value(list(parts), 'parts')}")


def resolve_tags(tags: Sequence[CacheTag], arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the tags of one call, the functions among them applied to its arguments."""
    resolved: list[str] = []
    for tag in tags:
        answer = tag if isinstance(tag, str) else tag(dict(arguments))
        resolved.extend([answer] if isinstance(answer, str) else answer)
    return check_tags(resolved)


def shown(value: Any) -> str:
    """Return how a value reads in a manifest: short, and a secret or large one never in clear."""
    match value:
        case pydantic.SecretStr() | pydantic.SecretBytes():
            return "**********"
        case CachedFile():
            return value.name
        case pathlib.PurePath():
            return value.name
        case OpenFile():
            return cast("str", value.path).rpartition("/")[2]
        case None | bool() | int() | float() | enum.Enum():
            return str(value)
        case str() if len(value) <= _SHOWN_CHARACTERS:
            return value
        case _:
            return type(value).__name__


def digest_value(value: Any, name: str) -> str:
    """Return the canonical digest of a value; ``name`` is what an error calls it."""
    hasher = blake3()
    _feed(hasher, value, name, 0)
    return hasher.hexdigest()


def _put(hasher: blake3, type_tag: str, data: bytes) -> None:
    """Feed one atom; tag and length in front keep neighbours from running into each other."""
    hasher.update(b"%s:%d:" % (type_tag.encode(), len(data)))
    hasher.update(data)


def _feed(hasher: blake3, value: Any, name: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise UnhashableArgumentError(name, _type_name(value), "nested too deeply, or contains itself")
    atom = _atom(value)
    if atom is not None:
        _put(hasher, *atom)
        return
    match value:
        case CachedFile():
            _put(hasher, "file", bytes.fromhex(value.digest))
        case pathlib.Path():
            _put(hasher, "file", bytes.fromhex(digest_path(value)))
        case OpenFile():
            _put(hasher, "file", bytes.fromhex(digest_open_file(value)))
        case pydantic.BaseModel():
            _put(hasher, "model", type(value).__qualname__.encode())
            _feed_mapping(hasher, _model_fields(value), name, depth)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            _put(hasher, "dataclass", type(value).__qualname__.encode())
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            _feed_mapping(hasher, fields, name, depth)
        case Mapping():
            _feed_mapping(hasher, cast("Mapping[Any, Any]", value), name, depth)
        case list() | tuple():
            items = cast("Sequence[Any]", value)
            _put(hasher, type(value).__name__ if type(value) in (list, tuple) else type(value).__qualname__, b"")
            _put(hasher, "length", str(len(items)).encode())
            for position, item in enumerate(items):
                _feed(hasher, item, f"{name}[{position}]", depth + 1)
        case AbstractSet():
            members = cast("AbstractSet[Any]", value)
            digests = sorted(_digest_at(item, f"{name}{{…}}", depth + 1) for item in members)
            _put(hasher, "set", b"".join(digests))
        case _:
            _feed_array(hasher, value, name)


def _atom(value: Any) -> tuple[str, bytes] | None:  # noqa: PLR0911, C901 - one line a type reads best as a table
    match value:
        case None:
            return "none", b""
        case enum.Enum():
            return "enum", f"{type(value).__qualname__}.{value.name}".encode()
        case bool():
            return "bool", b"1" if value else b"0"
        case int():
            return "int", str(int(value)).encode()
        case float():
            return "float", float(value).hex().encode()
        case str():
            return "str", str(value).encode("utf-8", "surrogatepass")
        case bytes() | bytearray() | memoryview():
            return "bytes", bytes(value)
        case complex():
            return "complex", f"{value.real.hex()},{value.imag.hex()}".encode()
        case dt.datetime():
            return "datetime", _instant(value).encode()
        case dt.date() | dt.time():
            return type(value).__name__, value.isoformat().encode()
        case dt.timedelta():
            return "timedelta", f"{value.days},{value.seconds},{value.microseconds}".encode()
        case decimal.Decimal() | fractions.Fraction() | uuid.UUID():
            return type(value).__name__, str(value).encode()
        case pydantic.SecretStr():
            return "secret", value.get_secret_value().encode("utf-8", "surrogatepass")
        case pydantic.SecretBytes():
            return "secret", value.get_secret_value()
        case _:
            return None


def _instant(value: dt.datetime) -> str:
    """Return an aware datetime as its instant in UTC, a naive one as it reads: the two differ."""
    return (value.astimezone(dt.UTC) if value.tzinfo else value).isoformat()


def _model_fields(model: pydantic.BaseModel) -> dict[str, Any]:
    """Return a model's own and extra fields; private attributes and computed fields decide nothing."""
    names = [name for name, field in type(model).model_fields.items() if not field.exclude]
    return {name: getattr(model, name) for name in names} | (model.model_extra or {})


def _feed_mapping(hasher: blake3, mapping: Mapping[Any, Any], name: str, depth: int) -> None:
    pairs = sorted(
        (_digest_at(key, f"{name} key", depth + 1), _digest_at(item, f"{name}.{key}", depth + 1))
        for key, item in mapping.items()
    )
    _put(hasher, "mapping", b"".join(key + item for key, item in pairs))


def _digest_at(value: Any, name: str, depth: int) -> bytes:
    hasher = blake3()
    _feed(hasher, value, name, depth)
    return hasher.digest()


def _feed_array(hasher: blake3, value: Any, name: str) -> None:
    """Feed a numpy array or scalar by dtype, shape and bytes, without importing numpy for those who have none."""
    dtype, shape, tobytes = (getattr(value, part, None) for part in ("dtype", "shape", "tobytes"))
    if type(value).__module__.partition(".")[0] != "numpy" or dtype is None or shape is None or tobytes is None:
        raise UnhashableArgumentError(name, _type_name(value))
    if dtype.hasobject:
        raise UnhashableArgumentError(name, _type_name(value), "an array of Python objects")
    canonical = value.astype(dtype.newbyteorder("<"))
    _put(hasher, "array", f"{canonical.dtype.str}{tuple(shape)}".encode())
    _put(hasher, "items", canonical.tobytes())


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def named_files(values: Iterable[Any]) -> list[str]:
    """Return the names of the files among some arguments."""
    files = (CachedFile, pathlib.PurePath, OpenFile)
    return [shown(value) for value in values if isinstance(value, files)]
