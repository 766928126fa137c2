"""How Prefect reads a cached result back from a state: as JSON, typed by what this process has declared."""

from __future__ import annotations

from typing import Any, Final

from prefect.serializers import Serializer

from cache_blocks.errors import CorruptEntryError
from cache_blocks.values import codec_of

_MARK: Final = b"cache-blocks/json:"
_declared: dict[str, Any] = {}


def declare(annotation: Any) -> str:
    """Make results of this type readable from a state in this process, and return its name."""
    name = codec_of(annotation).name
    _declared[name] = annotation
    return name


def path_of(key: str, annotation: Any) -> str:
    """Return what a state says of its result: the key, and the type's name.

    The name travels here because a state keeps of its serializer nothing but what sort it is.
    """
    return f"{key}#{declare(annotation)}"


def key_of(path: str) -> str:
    """Return the key of a path."""
    return path.partition("#")[0]


def mark(json: bytes, path: str) -> bytes:
    """Return JSON in the form that `TieredCacheSerializer.loads` reads and nothing else mistakes for its own."""
    return b"%s%s\n%s" % (_MARK, path.partition("#")[2].encode(), json)


class TieredCacheSerializer(Serializer):
    """Reads and writes values as JSON. The type is chosen among those declared in this process, never imported."""

    type: str = "tiered-cache"

    def dumps(self, obj: Any) -> bytes:
        """Return the value as JSON; raises `UnsupportedValueError`."""
        return mark(codec_of(Any).encode(obj).json, "")

    def loads(self, blob: bytes) -> Any:
        """Return the value of JSON, of its declared type where this process knows it."""
        if not blob.startswith(_MARK):
            raise CorruptEntryError("these bytes were not written by this serializer")
        name, _, json = blob.removeprefix(_MARK).partition(b"\n")
        return codec_of(_declared.get(name.decode(), Any)).decode(json)
