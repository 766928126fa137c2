"""The canonical digest of a value: the same in every process and Python version, different for different values.

Every value is tagged with its type and its length, so that ``1``, ``1.0``, ``True`` and ``"1"`` differ and neighbours
do not run into each other; what has no order is sorted. Files count by their bytes.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import pathlib
import uuid
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, cast

import pydantic
from blake3 import blake3
from fsspec.core import OpenFile

from cache_blocks.errors import UnhashableArgumentError
from cache_blocks.files import CachedFile
from cache_blocks.fingerprint import digest_of

_MAX_DEPTH: Final = 64
_SHORT: Final = 256
_COMMON: Final = frozenset({str, int, bool, type(None)})
"""Types whose short values come again and again. No float: 0.0 and -0.0 are equal, and different arguments."""


def digest_value(value: Any, name: str) -> str:
    """Return the canonical digest of a value; ``name`` is what an error calls it."""
    return (_digest_of_common(value) or _digest_at(value, name, 0)).hex()


def _put(hasher: blake3, type_tag: str, data: bytes) -> None:
    """Feed one atom; tag and length in front keep neighbours from running into each other."""
    front = _front(type_tag, data)
    if len(data) < _SHORT:
        hasher.update(front + data)
    else:
        hasher.update(front)
        hasher.update(data)


def _front(type_tag: str, data: bytes) -> bytes:
    return b"%s:%d:" % (type_tag.encode(), len(data))


def _feed(hasher: blake3, value: Any, name: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise UnhashableArgumentError(name, _type_name(value), "nested too deeply, or contains itself")
    if type(value) is dict:
        _feed_mapping(hasher, cast("dict[Any, Any]", value), name, depth)
        return
    atom = _atom(value)
    if atom is not None:
        _put(hasher, *atom)
        return
    match value:
        case enum.Enum():
            _put(hasher, "enum", f"{type(value).__qualname__}.{value.name}".encode())
            _feed(hasher, value.value, f"{name}.value", depth + 1)
        case CachedFile():
            _put(hasher, "file", bytes.fromhex(value.digest))
        case pathlib.Path() | OpenFile():
            _put(hasher, "file", bytes.fromhex(digest_of(value)))
        case pydantic.BaseModel():
            _put(hasher, "model", type(value).__qualname__.encode())
            _feed_mapping(hasher, _model_fields(value), name, depth)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            instance: Any = value
            _put(hasher, "dataclass", type(instance).__qualname__.encode())
            fields = {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
            _feed_mapping(hasher, fields, name, depth)
        case Mapping():
            _feed_mapping(hasher, cast("Mapping[Any, Any]", value), name, depth)
        case list() | tuple():
            items = cast("Sequence[Any]", value)
            _put(hasher, type(items).__qualname__, b"")
            _put(hasher, "length", str(len(items)).encode())
            for position, item in enumerate(items):
                _feed(hasher, item, f"{name}[{position}]", depth + 1)
        case AbstractSet():
            members = cast("AbstractSet[Any]", value)
            digests = sorted(_digest_at(item, f"{name}{{…}}", depth + 1) for item in members)
            _put(hasher, "set", b"".join(digests))
        case _:
            _feed_array(hasher, value, name)


def _atom(value: Any) -> tuple[str, bytes] | None:
    match value:
        case None:
            return "none", b""
        case enum.Enum():
            return None
        case bool():
            return "bool", b"1" if value else b"0"
        case int():
            return "int", str(int(value)).encode()
        case float():
            return "float", float(value).hex().encode()
        case str():
            return "str", str(value).encode("utf-8", "surrogatepass")
        case bytes() | bytearray() | memoryview():
            return "bytes", bytes(cast("bytes", value))
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
    _put(hasher, "mapping", _pairs(mapping, name, depth))


def _pairs(mapping: Mapping[Any, Any], name: str, depth: int) -> bytes:
    """Return the digests of a mapping's keys and values, in an order that does not depend on the mapping's."""
    pairs = [
        _pair_of_texts(key, item)  # such as the parts of every key
        if type(key) is type(item) is str and len(key) + len(item) < _SHORT
        else (_digest_of_common(key) or _digest_at(key, f"{name} key", depth + 1))
        + (_digest_of_common(item) or _digest_at(item, f"{name}.{key}", depth + 1))
        for key, item in mapping.items()
    ]
    return b"".join(sorted(pairs))


def _digest_at(value: Any, name: str, depth: int) -> bytes:
    if type(value) is dict and depth <= _MAX_DEPTH:  # as `_feed` does; every key is the digest of one
        pairs = _pairs(cast("dict[Any, Any]", value), name, depth)
        return blake3(_front("mapping", pairs) + pairs).digest()
    hasher = blake3()
    _feed(hasher, value, name, depth)
    return hasher.digest()


def _digest_of_common(value: Any) -> bytes | None:
    """Return the digest of a short text or a number, such as the names of parameters; None for what is longer."""
    if type(value) not in _COMMON or (type(value) is str and len(value) >= _SHORT):
        return None
    return _digest_of_atom(value)


@functools.lru_cache(maxsize=4096, typed=True)
def _digest_of_atom(value: Any) -> bytes:
    atom = _atom(value)
    assert atom is not None  # noqa: S101 - text, numbers and None are
    return blake3(_front(*atom) + atom[1]).digest()


@functools.lru_cache(maxsize=4096)
def _pair_of_texts(key: str, item: str) -> bytes:
    return _digest_of_atom(key) + _digest_of_atom(item)


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
    module = type(value).__module__.removesuffix("._local")  # Python 3.13 says pathlib._local
    return f"{module}.{type(value).__qualname__}"
