"""How Prefect reads a cached result back from a state: as JSON, typed by what this process has declared."""

from __future__ import annotations

from typing import Any, Final

from prefect.serializers import Serializer
from pydantic import Field

from cache_blocks.errors import CorruptEntryError
from cache_blocks.values import codec_of

_MARK: Final = b"cache-blocks/json:"
_declared: dict[str, Any] = {}


def declare(annotation: Any) -> str:
    """Make results of this type readable from a state in this process, and return its name."""
    name = repr(annotation)
    _declared[name] = annotation
    return name


def mark(json: bytes) -> bytes:
    """Return JSON in the form that `TieredCacheSerializer.loads` reads and nothing else mistakes for its own."""
    return _MARK + json


class TieredCacheSerializer(Serializer):
    """Reads and writes values as JSON. The type is chosen among those declared in this process, never imported."""

    type: str = "tiered-cache"
    returns: str = Field(default="", description="Name of the declared type of the value.")

    def dumps(self, obj: Any) -> bytes:
        """Return the value as JSON; raises `UnsupportedValueError`."""
        return mark(codec_of(_declared.get(self.returns, Any)).encode(obj).json)

    def loads(self, blob: bytes) -> Any:
        """Return the value of JSON, of its declared type where this process knows it."""
        if not blob.startswith(_MARK):
            raise CorruptEntryError("these bytes were not written by this serializer")
        return codec_of(_declared.get(self.returns, Any)).decode(blob[len(_MARK) :])
